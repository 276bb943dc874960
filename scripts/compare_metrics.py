"""Compares the metrics of two runs of the same training: compare_metrics.py REFERENCE.jsonl OTHER.jsonl

Prints the largest difference of each metric, relative to its largest value, and a line of JSON. Fails if a loss differs by more than 1e-3.
"""
import json
import sys

METRICS = ["loss", "grad_norm", "logps/chosen", "logps/rejected", "rewards/margins"]
TOLERANCE = 1e-3


def steps(path):
    with open(path) as file:
        return [line for line in map(json.loads, file) if "loss" in line]


reference, other = steps(sys.argv[1]), steps(sys.argv[2])
if not reference or len(reference) != len(other):
    sys.exit(f"error: {len(reference)} and {len(other)} steps")
differences = {}
for metric in METRICS:
    pairs = [(a[metric], b[metric]) for a, b in zip(reference, other)]
    scale = max(max(abs(a) for a, _ in pairs), 1e-6)
    differences[metric] = max(abs(a - b) for a, b in pairs) / scale
    print(f"{metric:<18}{differences[metric]:.1e}")
print(json.dumps({"command": "compare_metrics", "steps": len(reference), "differences": differences}))
sys.exit(not differences["loss"] <= TOLERANCE)
