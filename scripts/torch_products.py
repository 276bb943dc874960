"""Times the GEMMs of Mistral-7B with torch on this GPU, and compares the speeds with those of an `arithmo bench` log.

    python3 scripts/torch_products.py [BENCH.log]

BENCH.log is the output of bench, whose line of JSON has the speeds; without it, or if it has none, torch's alone are printed. Prints a
table, then one line of JSON.
"""
import json
import sys

import torch

REPEATS, ROUNDS = 20, 5
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def rate(gemm, flop):
    """Returns FLOP per second: the median of several rounds, each of several GEMMs between two events."""
    for _ in range(3):
        gemm()
    seconds = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPEATS):
            gemm()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / REPEATS)
    return flop / sorted(seconds)[ROUNDS // 2]


def measure(ours):
    """Returns torch's speed of `x W^T` and of `dy W`, on random values as in bench."""
    d_out, d_in, tokens, dtype = ours["d_out"], ours["d_in"], ours["tokens"], DTYPES[ours["dtype"]]

    def random(*shape):
        return torch.empty(shape, dtype=dtype, device="cuda").uniform_(-1, 1)

    x, dy, weight = random(tokens, d_in), random(tokens, d_out), random(d_out, d_in)
    flop = 2.0 * tokens * d_in * d_out
    return {
        "forward_flop_per_second": rate(lambda: torch.matmul(x, weight.T), flop),
        "backward_flop_per_second": rate(lambda: torch.matmul(dy, weight), flop),
    }


def line(ours, torch_rates):
    """Returns a line of the table."""
    cells = []
    for key in ("forward_flop_per_second", "backward_flop_per_second"):
        cells.append(f"{torch_rates[key] / 1e12:>10.1f}")
        for by in ("library", "kernels"):
            share = f"{100 * ours[by][key] / torch_rates[key]:.0f} %" if ours.get(by) else "-"
            cells.append(f"{share:>9}")
    shape = f"[{ours['d_out']}, {ours['d_in']}]"
    return f"  {', '.join(ours['weights']):<22}{shape:<16}" + "".join(cells)


# The weights of Mistral-7B that have each shape.
MISTRAL_7B = [
    {"weights": weights, "d_out": d_out, "d_in": d_in, "tokens": 8192, "dtype": "bf16"}
    for weights, d_out, d_in in (
        (["q_proj", "o_proj"], 4096, 4096),
        (["k_proj", "v_proj"], 1024, 4096),
        (["gate_proj", "up_proj"], 14336, 4096),
        (["down_proj"], 4096, 14336),
        (["lm_head"], 32000, 4096),
    )
]


def products_of(log):
    """Returns the GEMMs that bench measured, or else Mistral-7B's without speeds."""
    try:
        with open(log) as lines:
            found = [json.loads(text) for text in lines if text.startswith("{")]
    except OSError:
        found = []
    return found[-1]["products"] if found and found[-1].get("products") else MISTRAL_7B


def main():
    products = products_of(sys.argv[1] if len(sys.argv) > 1 else "")
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}")
    print(f"{products[0]['tokens']} tokens in {products[0]['dtype']}: TFLOP/s of torch, and the percentage of it that arithmo reaches")
    header = "".join(f"{name:>10}{'library':>9}{'kernels':>9}" for name in ("x W^T", "dy W"))
    print(f"  {'weights':<22}{'shape':<16}{header}")
    results = []
    for ours in products:
        rates = measure(ours)
        print(line(ours, rates), flush=True)
        results.append({**ours, "torch": rates})
    print(json.dumps({"command": "torch_products", "torch": torch.__version__, "products": results}))


main()
