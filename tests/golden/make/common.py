"""Helpers of the scripts that make golden data. Every script writes to $REF_ROOT/out.
"""

import argparse
import json
import os
import random
from pathlib import Path

# CPU only, one thread and offline, so that results do not depend on how a reduction is split over threads. REF_THREADS
# sets another number of threads, to measure noise.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", os.environ.get("REF_THREADS", "1"))

ROOT = Path(os.environ.get("REF_ROOT", "ref"))
OUT = {"main": ROOT / "out"}
SEED = {"main": 20240}


def parse_set(extra=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", choices=["main"], default="main")
    if extra:
        extra(parser)
    return parser.parse_args()


def torch_setup():
    import torch

    torch.set_num_threads(int(os.environ.get("REF_THREADS", "1")))
    torch.use_deterministic_algorithms(True)
    return torch


def write_json(path, obj, compact=False):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        if compact:
            json.dump(obj, f, ensure_ascii=False, separators=(",", ":"))
        else:
            json.dump(obj, f, ensure_ascii=False, indent=1)
        f.write("\n")


def write_jsonl(path, rows):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")


def save_tensors(path, tensors, metadata=None):
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, str(path), metadata=metadata)


def rng(set_name, stream):
    """Returns an independent random number generator for a named stream of a set."""
    return random.Random(f"{SEED[set_name]}/{stream}")
