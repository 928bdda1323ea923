#!/usr/bin/env python3
"""Makes tests/data/golden/*.f32.json: what a model says in plain 32-bit arithmetic.

A second opinion on the oracle, sharing no code with it: numpy, weights dequantised by the `gguf`
package, keys and values rounded to f16 as every engine stores them, activations never quantised.
Each prompt of the llama.cpp golden is run in one pass with its greedy tokens appended; kept are
the log-probability of each greedy token and the five likeliest tokens of the first eight steps.

    pip install gguf numpy
    tests/data/reference.py MODEL.gguf tests/data/golden/NAME.json > tests/data/golden/NAME.f32.json
"""

import json
import sys

import numpy as np
from gguf import GGUFReader, dequantize

TOP_STEPS, TOP = 8, 5


class Model:
    def __init__(self, path):
        reader = GGUFReader(path)
        self.weights = {
            t.name: dequantize(t.data, t.tensor_type).astype(np.float32) for t in reader.tensors
        }
        self.fields = {name: field.contents() for name, field in reader.fields.items()
                       if not name.startswith("tokenizer.")}
        self.arch = self.fields["general.architecture"]
        self.gemma = self.arch == "gemma3"
        self.width = self.key("embedding_length")
        self.heads = self.key("attention.head_count")
        self.kv_heads = self.key("attention.head_count_kv", self.heads)
        self.dim = self.key("attention.key_length", self.width // self.heads)
        self.eps = np.float32(self.key("attention.layer_norm_rms_epsilon"))

    def key(self, name, default=None):
        return self.fields.get(f"{self.arch}.{name}", default)

    def norm(self, x, name):
        mean = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
        return x / np.sqrt(mean + self.eps) * self.weights[name]

    def rope(self, x, base):
        """x: [tokens, heads, dim]; llama pairs neighbours, gemma pairs halves."""
        angle = np.arange(len(x))[:, None] * base ** (-np.arange(0, self.dim, 2) / self.dim)
        cos, sin = (f(angle).astype(np.float32)[:, None] for f in (np.cos, np.sin))
        half = self.dim // 2
        first, second = (
            (slice(0, half), slice(half, None)) if self.gemma
            else (slice(0, None, 2), slice(1, None, 2))
        )
        out = np.empty_like(x)
        a, b = x[..., first], x[..., second]
        out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
        return out

    def attention(self, x, layer):
        blk = f"blk.{layer}."
        local = self.gemma and layer % 6 != 5
        q, k, v = (
            (x @ self.weights[f"{blk}attn_{part}.weight"].T).reshape(len(x), -1, self.dim)
            for part in "qkv"
        )
        if self.gemma:
            q, k = self.norm(q, blk + "attn_q_norm.weight"), self.norm(k, blk + "attn_k_norm.weight")
        base = 10000.0 if local else self.key("rope.freq_base")
        q, k = self.rope(q, base), self.rope(k, base)
        k, v = (z.astype(np.float16).astype(np.float32) for z in (k, v))
        distance = np.arange(len(x))[:, None] - np.arange(len(x))[None]
        seen = (distance >= 0) & (distance < (self.key("attention.sliding_window") if local else 1 << 30))
        group = self.heads // self.kv_heads
        out = np.empty((len(x), self.heads, self.dim), np.float32)
        for head in range(self.heads):
            scores = q[:, head] @ k[:, head // group].T / np.sqrt(np.float32(self.dim))
            scores = np.where(seen, scores, -np.inf)
            p = np.exp(scores - scores.max(axis=-1, keepdims=True))
            out[:, head] = p / p.sum(axis=-1, keepdims=True) @ v[:, head // group]
        return out.reshape(len(x), -1) @ self.weights[blk + "attn_output.weight"].T

    def feed_forward(self, x, layer):
        gate, up, down = (self.weights[f"blk.{layer}.ffn_{p}.weight"] for p in ("gate", "up", "down"))
        g = x @ gate.T
        if self.gemma:
            g = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
        else:
            g = g / (1 + np.exp(-g))
        return (g * (x @ up.T)).astype(np.float32) @ down.T

    def log_probabilities(self, ids):
        x = self.weights["token_embd.weight"][ids]
        if self.gemma:
            x = x * np.sqrt(np.float32(self.width))
        post = self.norm if self.gemma else lambda y, _: y
        for layer in range(self.key("block_count")):
            blk = f"blk.{layer}."
            y = self.attention(self.norm(x, blk + "attn_norm.weight"), layer)
            x = x + post(y, blk + "post_attention_norm.weight")
            y = self.feed_forward(self.norm(x, blk + "ffn_norm.weight"), layer)
            x = x + post(y, blk + "post_ffw_norm.weight")
        head = self.weights.get("output.weight", self.weights["token_embd.weight"])
        logits = (self.norm(x, "output_norm.weight") @ head.T).astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def main(model_path, golden_path):
    model = Model(model_path)
    with open(golden_path) as file:
        golden = json.load(file)
    cases = []
    for case in golden["greedy"]:
        ids = np.array(case["prompt_ids"] + case["ids"])
        first = len(case["prompt_ids"]) - 1
        rows = model.log_probabilities(ids)[first:-1]
        chosen = [round(float(row[i]), 5) for row, i in zip(rows, case["ids"])]
        top = [
            [[int(i), round(float(row[i]), 5)] for i in np.argsort(-row, kind="stable")[:TOP]]
            for row in rows[:TOP_STEPS]
        ]
        cases.append({"prompt_ids": case["prompt_ids"], "ids": case["ids"],
                      "top5_logprobs_first8": top, "chosen_logprob": chosen})
    json.dump({"model": golden["model"], "source": "tests/data/reference.py", "greedy": cases},
              sys.stdout, separators=(",", ":"))
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
