#!/usr/bin/env python3
"""Makes tests/data/golden/encoders.json: what encoders say in plain 32-bit arithmetic.

A second opinion on the oracle, sharing no code with it: numpy, weights read by the `gguf` package.
The models are the tiny ones of m40_testkit; of each sequence of tokens are kept a few floats of the
first, the last and the mean hidden state, and what the classifier says if there is one.

    pip install gguf numpy
    cargo run -p m40-testkit --example write_tiny_encoders /tmp/encoders
    tests/data/reference_encoder.py /tmp/encoders > tests/data/golden/encoders.json
"""

import json
import pathlib
import sys

import numpy as np
from gguf import GGUFReader, dequantize

KEPT = 8


class Encoder:
    def __init__(self, path):
        reader = GGUFReader(path)
        self.weights = {
            t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors
        }
        self.fields = {name: field.contents() for name, field in reader.fields.items()
                       if not name.startswith("tokenizer.")}
        self.arch = self.fields["general.architecture"]
        self.heads = self.key("attention.head_count")
        self.dim = self.key("embedding_length") // self.heads
        self.eps = self.key("attention.layer_norm_epsilon")

    def key(self, name):
        return self.fields[f"{self.arch}.{name}"]

    def linear(self, x, stem):
        y = x @ self.weights[stem + ".weight"].T
        return y + self.weights[stem + ".bias"] if stem + ".bias" in self.weights else y

    def norm(self, x, stem):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.eps)
        return (x * self.weights[stem + ".weight"] + self.weights[stem + ".bias"]).astype(np.float32)

    def rope(self, x):
        """x: [tokens, heads, dim]; the first half of a head is paired with the second."""
        base = self.key("rope.freq_base")
        angle = np.arange(len(x))[:, None] * base ** (-np.arange(0, self.dim, 2) / self.dim)
        cos, sin = (f(angle).astype(np.float32)[:, None] for f in (np.cos, np.sin))
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)

    def attention(self, x, blk):
        if blk + "attn_qkv.weight" in self.weights:
            q, k, v = np.split(self.linear(x, blk + "attn_qkv"), 3, axis=-1)
        else:
            q, k, v = (self.linear(x, f"{blk}attn_{part}") for part in "qkv")
        q, k, v = (z.reshape(len(x), self.heads, self.dim) for z in (q, k, v))
        if self.arch == "nomic-bert":
            q, k = self.rope(q), self.rope(k)
        k, v = (z.astype(np.float16).astype(np.float32) for z in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(np.float32(self.dim))
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = np.einsum("hqk,khd->qhd", p / p.sum(axis=-1, keepdims=True), v)
        return self.linear(out.reshape(len(x), -1), blk + "attn_output")

    def feed_forward(self, x, blk):
        up = self.linear(x, blk + "ffn_up")
        if blk + "ffn_gate.weight" in self.weights:
            gate = self.linear(x, blk + "ffn_gate")
            up = gate / (1 + np.exp(-gate)) * up
        else:
            up = 0.5 * up * (1 + np.tanh(np.sqrt(2 / np.pi) * (up + 0.044715 * up**3)))
        return self.linear(up.astype(np.float32), blk + "ffn_down")

    def hidden(self, ids, segments):
        x = self.weights["token_embd.weight"][ids] + self.weights["token_types.weight"][segments]
        if "position_embd.weight" in self.weights:
            x = x + self.weights["position_embd.weight"][: len(ids)]
        x = self.norm(x, "token_embd_norm")
        for layer in range(self.key("block_count")):
            blk = f"blk.{layer}."
            x = self.norm(x + self.attention(x, blk), blk + "attn_output_norm")
            x = self.norm(x + self.feed_forward(x, blk), blk + "layer_output_norm")
        return x

    def classes(self, first):
        if "cls.output.weight" not in self.weights:
            return []
        return self.linear(np.tanh(self.linear(first, "cls")), "cls.output")


def rounded(values):
    return [round(float(value), 6) for value in values]


def main(folder):
    folder = pathlib.Path(folder)
    with open(folder / "texts.json") as file:
        texts = json.load(file)
    models = {}
    for path in sorted(folder.glob("*.gguf")):
        model = Encoder(path)
        models[path.stem] = cases = []
        for text in texts:
            x = model.hidden(text["tokens"], text["segments"])
            cases.append({
                **text,
                "first": rounded(x[0][:KEPT]),
                "last": rounded(x[-1][:KEPT]),
                "mean": rounded(x.mean(axis=0)[:KEPT]),
                "classes": rounded(model.classes(x[0])),
            })
    lines = [f'"{name}": [\n' + ",\n".join(json.dumps(case) for case in cases) + "\n]"
             for name, cases in models.items()]
    print('{"source": "tests/data/reference_encoder.py", "models": {\n' + ",\n".join(lines) + "\n}}")


if __name__ == "__main__":
    main(*sys.argv[1:])
