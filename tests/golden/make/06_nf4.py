"""NF4 block quantization by bitsandbytes (CPU backend), plain and with double quantization.

nf4/matrix.safetensors   a 128x256 f32 matrix and all results of bitsandbytes for it
nf4/<model>-bnb4/        the tiny model saved by transformers in bitsandbytes' 4 bit format (main set only)
"""

from common import OUT, SEED, parse_set, save_tensors, torch_setup, write_json

import shutil

import bitsandbytes
import bitsandbytes.functional as bnb
import transformers

torch = torch_setup()
transformers.logging.set_verbosity_error()
BLOCK = 64


def matrix(set_name):
    gen = torch.Generator().manual_seed(SEED[set_name] + 4)
    rows, cols = {"main": (128, 256)}[set_name]
    w = torch.randn(rows, cols, generator=gen) * 0.05
    w[3] *= 40  # a loud row
    w[4, :64] = 0  # an all-zero block
    w[5, 10] = 9.0  # one outlier in a block
    w[6, :64] = torch.linspace(-1, 1, 64)  # every code
    w[7, :64] = 1e-20  # tiny
    w[8, :64] = -0.3  # constant
    return w


def reference(w):
    """Computes the same in plain torch: rounds to the nearest code, and at midpoints to the lower code."""
    code = bnb.get_4bit_type("nf4", device="cpu")
    bounds = (code[1:] + code[:-1]) / 2
    blocks = w.reshape(-1, BLOCK)
    absmax = blocks.abs().amax(1)
    scaled = (blocks * (1 / absmax.clamp(min=1e-38))[:, None]).clamp(-1, 1)
    q = torch.bucketize(scaled, bounds).to(torch.uint8).reshape(-1)
    return (q[::2] << 4 | q[1::2]), absmax, code


def main():
    args = parse_set()
    out = OUT[args.set] / "nf4"
    w = matrix(args.set)
    tensors = {"weight": w}
    info = {"source": f"bitsandbytes {bitsandbytes.__version__} on CPU", "shape": list(w.shape), "blocksize": BLOCK, "nested_blocksize": 256}

    packed, state = bnb.quantize_4bit(w, blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
    tensors |= {"nf4_code": state.code, "packed": packed.reshape(-1), "absmax": state.absmax,
                "dequantised": bnb.dequantize_4bit(packed, state), "dequantised_bf16": bnb.dequantize_4bit(
                    packed, bnb.QuantState(absmax=state.absmax, shape=w.shape, code=state.code, blocksize=BLOCK, quant_type="nf4", dtype=torch.bfloat16))}

    packed2, state2 = bnb.quantize_4bit(w, blocksize=BLOCK, quant_type="nf4", compress_statistics=True)
    tensors |= {"double.packed": packed2.reshape(-1), "double.absmax_u8": state2.absmax, "double.nested_absmax": state2.state2.absmax,
                "double.nested_code": state2.state2.code, "double.offset": state2.offset.reshape(1),
                "double.dequantised": bnb.dequantize_4bit(packed2, state2)}
    absmax2 = bnb.dequantize_blockwise(state2.absmax, state2.state2) + state2.offset
    tensors["double.absmax_restored"] = absmax2

    # bf16 input, like the weights of a real checkpoint
    wb = w.to(torch.bfloat16)
    packed3, state3 = bnb.quantize_4bit(wb, blocksize=BLOCK, quant_type="nf4", compress_statistics=False)
    tensors |= {"bf16.packed": packed3.reshape(-1), "bf16.absmax": state3.absmax}

    mine, absmax, code = reference(w)
    info["plain_torch_reference"] = {
        "packed_bytes_differing": int((mine != packed.reshape(-1)).sum()),
        "absmax_max_diff": (absmax - state.absmax).abs().max().item(),
    }
    q = torch.stack([mine >> 4, mine & 15], 1).reshape(-1).long()
    mine_deq = (code[q].reshape(-1, BLOCK) * state.absmax[:, None]).reshape(w.shape)
    info["plain_torch_reference"]["dequantised_max_diff"] = (mine_deq - tensors["dequantised"]).abs().max().item()
    info["packed_same_with_double_quant"] = bool((packed == packed2).all())
    # the nested quantization in plain torch: (absmax - mean) in blocks of 256, nearest entry of the 256-entry map
    am, offset = state.absmax, state.absmax.mean()
    blocks = torch.nn.functional.pad(am - offset, (0, -len(am) % 256)).reshape(-1, 256)
    scale = blocks.abs().amax(1)
    nearest = ((blocks / scale[:, None]).reshape(-1, 1) - state2.state2.code).abs().argmin(1)[: len(am)]
    info["plain_torch_nested"] = {
        "offset_diff": (offset - state2.offset).abs().item(), "nested_absmax_max_diff": (scale - state2.state2.absmax).abs().max().item(),
        "codes_differing": int((nearest.to(torch.uint8) != state2.absmax).sum()), "codes": len(am)}
    # bitsandbytes' CPU backend looks up codes in a table and, close to a midpoint, sometimes misses the nearest one
    tensors["double.absmax_u8_nearest"] = nearest.to(torch.uint8)
    info["mean_abs_error"] = {"nf4": (tensors["dequantised"] - w).abs().mean().item(), "double": (tensors["double.dequantised"] - w).abs().mean().item()}
    save_tensors(out / "matrix.safetensors", tensors)
    write_json(out / "matrix.json", info)
    print(args.set, info)

    if args.set == "main":
        from transformers import BitsAndBytesConfig, MistralForCausalLM

        source = OUT["main"] / "models" / "tiny-a"
        for name, double in (("tiny-a-bnb4", False), ("tiny-a-bnb4-dq", True)):
            folder = out / name
            shutil.rmtree(folder, ignore_errors=True)
            model = MistralForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager", device_map={"": "cpu"},
                quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=double, bnb_4bit_compute_dtype=torch.float32))
            model.save_pretrained(folder)
            again = MistralForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", device_map={"": "cpu"})
            ids = torch.arange(3, 43).reshape(1, -1)
            with torch.no_grad():
                a, b = model(input_ids=ids).logits, again(input_ids=ids).logits
            save_tensors(folder / "golden_logits.safetensors", {"input_ids": ids, "logits": b})
            print(name, "reload diff", (a - b).abs().max().item())


if __name__ == "__main__":
    main()
