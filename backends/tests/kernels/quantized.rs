//! Quantized weights on the CPU: dequantization bit for bit, bitsandbytes' order of bytes, codebooks. GEMMs with them are
//! among the cases of `conformance`.
#![allow(clippy::unwrap_used, reason = "a test may stop at the first surprise, in its helpers too")]

use arithmo_backends::conformance::{HostPacked, HostScales, Source};
use arithmo_backends::ops::packed::dynamic_code;
use arithmo_backends::{Format, PackedWeight, TrainBackend};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Tensor, TensorData};
use burn_ndarray::NdArray;

type Cpu = NdArray<f32>;

fn random(format: Format, dims: [usize; 2], double: bool) -> HostPacked {
    let mut source = Source::new(dims[0] * 31 + dims[1], DType::F32);
    HostPacked::random(format, double, dims, &mut source)
}

fn values<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

fn all_cases() -> Vec<HostPacked> {
    let mut cases = Vec::new();
    for format in [Format::Nf4, Format::Fp4, Format::Int8, Format::Bf16] {
        for dims in [[1, 1], [3, 5], [7, 96], [5, 64], [12, 129], [40, 1000]] {
            cases.push(random(format, dims, false));
            if format != Format::Bf16 {
                cases.push(random(format, dims, true));
            }
        }
    }
    cases
}

fn check_dequantization<B: TrainBackend>(dtype: DType) {
    for case in all_cases() {
        let (packed, [d_out, d_in]) = (case.on::<B>(&Default::default()), case.dims);
        packed.check();
        let exact = case.values();
        let rows = |rows: &[usize]| exact.rows(rows.iter().copied()).to_f32();
        for range in [0..d_out, 0..1, d_out / 2..d_out] {
            let ours = B::unpack(&packed, range.clone(), dtype);
            assert_eq!((ours.dims(), ours.dtype()), ([range.len(), d_in], dtype));
            let label = format!("{:?} {:?} {range:?}", case.format, case.dims);
            assert_eq!(values(ours), rows(&range.collect::<Vec<_>>()), "{label}");
        }
        let ids = [d_out - 1, 0, d_out / 2, 0];
        let data = TensorData::new(ids.map(|id| id as i64).to_vec(), [4]);
        let ours = B::unpack_rows(&packed, Tensor::from_data(data, &Default::default()), dtype);
        assert_eq!(ours.dtype(), dtype);
        assert_eq!(values(ours), rows(&ids), "{:?} {:?}", case.format, case.dims);
    }
}

#[test]
fn dequantized_values_match_the_definition() {
    check_dequantization::<Cpu>(DType::F32);
    check_dequantization::<NdArray<f64>>(DType::F64);
    check_dequantization::<Autodiff<Cpu>>(DType::F32);
}

/// Bytes as bitsandbytes writes them: 0x0f is the lowest and the highest value, 0x74 is zero and the value below
/// -0.25.
#[test]
fn bytes_and_half_bytes_are_in_order() {
    let host = HostPacked {
        format: Format::Nf4,
        dims: [2, 3],
        words: vec![u32::from_le_bytes([0x0f, 0x74, 0xe8, 0])],
        scales: HostScales::Plain(vec![2.0]),
    };
    let ours = values(Cpu::unpack(&host.on(&Default::default()), 0..2, DType::F32));
    let expected = [-2.0, 2.0, 0.0, -0.568_882_76, 1.445_913_7, 0.159_160_6];
    assert_eq!(ours, expected);
    assert_eq!(host.values().to_f32(), expected);
}

/// All tensors of the weight survive the conversion to autodiff and back.
#[test]
fn a_quantized_weight_survives_autodiff() {
    let host = random(Format::Nf4, [7, 96], true);
    let converted = PackedWeight::<Autodiff<Cpu>>::from_inner(host.on(&Default::default()));
    let ours = Cpu::unpack(&converted.valid(), 0..7, DType::F32);
    assert_eq!(values(ours), host.values().to_f32());
}

#[test]
#[should_panic(expected = "packed: words of Nf4")]
fn mismatched_parts_are_refused() {
    let mut packed = random(Format::Nf4, [7, 96], false).on::<Cpu>(&Default::default());
    packed.dims = [8, 96];
    packed.check();
}

/// The ends of the map, its steps and its order.
#[test]
fn the_dynamic_map_has_a_power_of_ten_for_each_exponent() {
    let code = dynamic_code();
    assert_eq!((code.len(), code[127], code[255]), (256, 0.0, 1.0));
    assert!(code.is_sorted_by(|a, b| a < b));
    assert_eq!(code[128], 5.500_000_4e-7);
    assert_eq!((code[0], code[254]), (-0.992_968_74, 0.992_968_74));
    assert_eq!(Format::Fp4.code()[..4], [0.0, 0.005_208_333_5, 2.0 / 3.0, 1.0]);
    assert_eq!(Format::Fp4.code()[10], -2.0 / 3.0);
}
