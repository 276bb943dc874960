"""Quantizes eight super-blocks with ggml itself, for the tests of src/model/gguf.

Usage: python 09_gguf.py LIBGGML_BASE OUTPUT
LIBGGML_BASE is libggml-base.so, for example that of the package llama-cpp-python; the package gguf has to agree where it
can quantize too.
"""
import ctypes
import sys
from pathlib import Path

import gguf
import numpy as np

SUPER_BLOCK = 256
TYPES = ["q8_0", "q5_0", "q4_0", "q4_K", "q6_K"]


def inputs():
    """Values that take every branch: usual weights, outliers, zeros, constants, one sign, very small and very large."""
    random = np.random.default_rng(20261201)
    normal = random.standard_normal((8, SUPER_BLOCK)).astype(np.float32)
    values = normal * np.float32(0.02)
    values[1] *= np.exp(2 * random.standard_normal(SUPER_BLOCK)).astype(np.float32)
    values[2, :96] = 0  # three zero blocks of 32 in a super-block
    values[3] = np.abs(values[3]) + np.float32(0.5)
    values[4] = np.repeat(np.arange(8, dtype=np.float32) - 3, 32) / 7  # constant blocks
    values[5] = normal[5] * np.float32(3e-7)  # scales that are subnormal in f16
    values[6] = np.round(normal[6] * 4) / 4  # many ties
    values[7] = 0
    values[7, 40] = 1000.0
    return values


def main():
    library = ctypes.CDLL(sys.argv[1])
    output = Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    values = np.ascontiguousarray(inputs())
    values.astype("<f4").tofile(output / "values.f32")
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name.upper()]
        block, size = gguf.GGML_QUANT_SIZES[kind]
        out = np.zeros(values.size // block * size, dtype=np.uint8)
        quantize = getattr(library, f"quantize_row_{name}_ref")
        pointers = values.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p)
        quantize(*pointers, ctypes.c_int64(values.size))
        try:
            same = gguf.quants.quantize(values, kind).tobytes() == out.tobytes()
            assert same, name
            print(name, "gguf agrees")
        except NotImplementedError:
            print(name, "gguf cannot quantize")
        out.tofile(output / f"{name.lower()}.bin")


if __name__ == "__main__":
    main()
