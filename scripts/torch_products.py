"""Times the GEMMs of an `arithmo bench` log with torch on the same GPU, and compares the speeds.

    python3 scripts/torch_products.py BENCH.log

BENCH.log is the output of bench: its line of JSON has the shapes, the type and the speeds. Prints a table, then one line of
JSON.
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
            share = f"{100 * ours[by][key] / torch_rates[key]:.0f} %" if ours[by] else "-"
            cells.append(f"{share:>9}")
    shape = f"[{ours['d_out']}, {ours['d_in']}]"
    return f"  {', '.join(ours['weights']):<22}{shape:<16}" + "".join(cells)


def main():
    with open(sys.argv[1]) as log:
        results = [json.loads(line) for line in log if line.startswith("{")]
    if not results or not results[-1]["products"]:
        sys.exit(f"error: {sys.argv[1]} has no GEMM speeds: run bench on cuda to its end")
    bench = results[-1]
    products = bench["products"]
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}; {bench['products_by']}")
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
