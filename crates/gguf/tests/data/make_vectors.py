#!/usr/bin/env python3
"""Writes the dequantisation vectors that tests/vectors.rs reads.

    pip install gguf==0.19.0 && python3 make_vectors.py

For each type, vectors/NAME.bin is: number of blocks (u32, little endian), the blocks, and the
weights the package makes of them (f32, little endian). vectors/types.tsv is its table of tensor
types: number, name, weights in a block, bytes in a block.

    python3 make_vectors.py MODEL.gguf

prints the rows of tests/real_models.rs: of the first tensor of each type and shape, a sum over the
bits of the weights of its first and last row.
"""

import struct
import sys
from pathlib import Path

import gguf
import numpy as np

HERE = Path(__file__).parent / "vectors"

# Where the f16 fields of a block are.
F16_FIELDS = {
    "F16": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [], "BF16": [], "F32": [],
}

# Zeros of both signs, smallest and largest subnormal, smallest and largest normal, one.
EDGE_F16 = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0xFBFF]
EDGE_BF16 = [0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x3F80, 0xBF80, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80]
EDGE_F32 = [0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x00800000, 0x3F800000, 0x7F7FFFFF]
# Exponents around the subnormal scales, one, and the largest.
EDGE_E8M0 = [0, 1, 2, 3, 126, 127, 128, 129, 200, 252, 253, 254, 255]


def finite_f16(rng, n):
    values = rng.integers(0, 1 << 16, n, dtype=np.uint16)
    return np.where((values & 0x7C00) == 0x7C00, values & 0xBFFF, values).astype("<u2")


def blocks_of(name, rng, size):
    """Edge blocks first, then random ones."""
    blocks = []
    if name == "F32":
        return np.array(EDGE_F32, "<u4").view(np.uint8).reshape(-1, 4)
    if name == "BF16":
        return np.array(EDGE_BF16, "<u2").view(np.uint8).reshape(-1, 2)
    if name == "F16":
        values = np.concatenate([np.array(EDGE_F16, "<u2"), finite_f16(rng, 500)])
        return values.view(np.uint8).reshape(-1, 2)
    fields = F16_FIELDS[name]
    for i, edge in enumerate(EDGE_E8M0 if name == "MXFP4" else EDGE_F16):
        # One fill for each edge of the large types keeps the files small.
        fills = (0xFF, None, 0x00)
        for fill in fills if size <= 64 else fills[i % 2 : i % 2 + 1]:
            block = rng.integers(0, 256, size, dtype=np.uint8) if fill is None else np.full(size, fill, np.uint8)
            if name == "MXFP4":
                block[0] = edge
            for at in fields:
                block[at : at + 2] = np.frombuffer(struct.pack("<H", edge), np.uint8)
            blocks.append(block)
    for _ in range(8):
        block = rng.integers(0, 256, size, dtype=np.uint8)
        for at in fields:
            block[at : at + 2] = finite_f16(rng, 1).view(np.uint8)
        blocks.append(block)
    return np.stack(blocks)


def main():
    HERE.mkdir(exist_ok=True)
    table = []
    for ty, (length, size) in sorted(gguf.GGML_QUANT_SIZES.items()):
        table.append(f"{int(ty)}\t{ty.name}\t{length}\t{size}\n")
        if ty.name not in F16_FIELDS:
            continue
        blocks = blocks_of(ty.name, np.random.default_rng(int(ty)), size)
        with np.errstate(over="ignore"):
            weights = gguf.dequantize(blocks.copy(), ty).astype("<f4").ravel()
        assert weights.size == len(blocks) * length
        assert not np.isnan(weights).any()
        data = struct.pack("<I", len(blocks)) + blocks.tobytes() + weights.tobytes()
        (HERE / f"{ty.name}.bin").write_bytes(data)
    (HERE / "types.tsv").write_text("".join(table))


def row_sum(row, ty):
    total = 0
    for bits in gguf.dequantize(row, ty).astype("<f4").ravel().view("<u4").tolist():
        total = (total * 31 + bits) & 0xFFFF_FFFF_FFFF_FFFF
    return total


def print_model_sums(path):
    seen = set()
    for tensor in gguf.GGUFReader(path).tensors:
        dims = tuple(int(n) for n in tensor.shape)
        if (tensor.tensor_type, dims) in seen:
            continue
        seen.add((tensor.tensor_type, dims))
        rows = tensor.data.reshape(-1, tensor.data.shape[-1])
        sums = [f"0x{row_sum(row, tensor.tensor_type):x}" for row in (rows[0], rows[-1])]
        ty = tensor.tensor_type.name.replace("_K", "K")
        print(f'("{tensor.name}", TensorType::{ty}, &{list(dims)}, [{", ".join(sums)}]),')


if __name__ == "__main__":
    print_model_sums(sys.argv[1]) if len(sys.argv) > 1 else main()
