"""The products that `arithmo bench` timed, by torch on the same GPU, and what share of its speed ours have.

    python3 scripts/torch_products.py BENCH.log

BENCH.log is what bench printed: its line of JSON tells the shapes, the type and the speeds. Prints a table, then such a line.
"""
import json
import sys

import torch

REPEATS, ROUNDS = 20, 5
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def rate(product, flop):
    """FLOP a second: the median of some rounds, each of several products in a row between two events."""
    for _ in range(3):
        product()
    seconds = []
    for _ in range(ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(REPEATS):
            product()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / REPEATS)
    return flop / sorted(seconds)[ROUNDS // 2]


def measure(ours):
    """torch's speed of `x W^T` and of `dy W`, on random numbers as bench has them."""
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
    """A line of the table."""
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
        sys.exit(f"error: {sys.argv[1]} has no products: run bench on cuda, to its end")
    bench = results[-1]
    products = bench["products"]
    print(f"torch {torch.__version__}, CUDA {torch.version.cuda}, {torch.cuda.get_device_name()}; {bench['products_by']}")
    print(f"{products[0]['tokens']} tokens in {products[0]['dtype']}: TFLOP/s of torch, and the share of it that ours reach")
    header = "".join(f"{name:>10}{'library':>9}{'kernels':>9}" for name in ("x W^T", "dy W"))
    print(f"  {'weights':<22}{'shape':<16}{header}")
    results = []
    for ours in products:
        rates = measure(ours)
        print(line(ours, rates), flush=True)
        results.append({**ours, "torch": rates})
    print(json.dumps({"command": "torch_products", "torch": torch.__version__, "products": results}))


main()
