//! Packed weights on a backend: bitsandbytes' own values. (Projections by packed weights are among the cases of `ops`.)

use arithmo_backends::ops::packed::dynamic_code;
use arithmo_backends::{Format, PackedWeight, Scales, TrainBackend};
use burn::tensor::backend::Backend;
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::golden::{Tensors, assert_close, reference};

/// Packs bytes into little-endian 32-bit words, padded with zeros.
fn words<B: Backend>(bytes: &[u8], device: &B::Device) -> Tensor<B, 1, Int> {
    let word = |four: &[u8]| {
        let mut all = [0; 4];
        all[..four.len()].copy_from_slice(four);
        u32::from_le_bytes(all)
    };
    let words: Vec<u32> = bytes.chunks(4).map(word).collect();
    let count = words.len();
    Tensor::from_data(TensorData::new(words, [count]), (device, DType::U32))
}

fn floats<B: Backend>(values: &[f32], device: &B::Device) -> Tensor<B, 1> {
    let data = TensorData::new(values.to_vec(), [values.len()]);
    Tensor::from_data(data, (device, DType::F32))
}

/// Compares the dequantized values of a matrix with those of bitsandbytes, with f32 scales and with 8-bit scales.
pub fn golden<B: TrainBackend>(device: &B::Device) {
    let Some(path) = reference("nf4/matrix.safetensors") else {
        return;
    };
    let file = Tensors::open(&path);
    assert_eq!(Format::Nf4.code(), file.f32("nf4_code").1);
    assert_eq!(dynamic_code(), file.f32("double.nested_code").1);
    let plain = PackedWeight::<B> {
        format: Format::Nf4,
        dims: [128, 256],
        words: words(&file.u8("packed").1, device),
        scales: Some(Scales::Plain(floats(&file.f32("absmax").1, device))),
    };
    let double = PackedWeight::<B> {
        format: Format::Nf4,
        dims: [128, 256],
        words: words(&file.u8("double.packed").1, device),
        scales: Some(Scales::Double {
            words: words(&file.u8("double.absmax_u8").1, device),
            absmax: floats(&file.f32("double.nested_absmax").1, device),
            offset: file.f32("double.offset").1[0],
        }),
    };
    for (packed, name) in [(plain, "dequantised"), (double, "double.dequantised")] {
        packed.check();
        let expected = file.f32(name).1;
        let ours = B::unpack(&packed, 0..128, DType::F32).into_data();
        let ours: Vec<f32> = ours.iter().collect();
        assert_close(name, &ours, &expected, 1e-7);
        let ids = Tensor::from_data(TensorData::new(vec![127i64, 3], [2]), device);
        let rows = B::unpack_rows(&packed, ids, DType::F32).into_data();
        let rows: Vec<f32> = rows.iter().collect();
        let expected = [&expected[127 * 256..], &expected[3 * 256..4 * 256]].concat();
        assert_close(name, &rows, &expected, 1e-7);
    }
}
