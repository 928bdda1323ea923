// Writes tiny_golden.json: what llama.cpp computes for the models of src/tiny_golden.rs.
//
//     cargo run -p m40-testkit --example write_tiny_models /tmp/tiny
//     npm install --prefix /tmp/llama node-llama-cpp
//     NODE_LLAMA=/tmp/llama node make_tiny_golden.mjs /tmp/tiny > tiny_golden.json
//
// CPU only, f16 KV cache, no flash attention. Integer products round activations to 8 bits:
// TinyGolden::tolerance says what that is worth.
import fs from "node:fs";
import path from "node:path";

const folder = process.argv[2];
const library = path.resolve(process.env.NODE_LLAMA, "node_modules/node-llama-cpp/dist/index.js");
const { getLlama, LlamaLogLevel } = await import(library);
const llama = await getLlama({ gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: 1 });
const { models, context, prompt } = JSON.parse(fs.readFileSync(path.join(folder, "prompt.json")));
const indices = [0, 5, 15, 16, 31, prompt.length - 1];

const result = {};
for (const name of models) {
  const model = await llama.loadModel({ modelPath: path.join(folder, `${name}.gguf`) });
  const running = await model.createContext({ contextSize: context, flashAttention: false, threads: 1 });
  const input = prompt.map((token, i) =>
    indices.includes(i) ? [token, { generateNext: { probabilities: true } }] : token);
  const output = await running.getSequence().controlledEvaluate(input);
  result[name] = indices.map((index) => {
    const all = [...output[index].next.probabilities.entries()].sort((a, b) => b[1] - a[1]);
    return { index, top: all.slice(0, 5).map(([id, p]) => [id, Number(Math.log(p).toFixed(5))]) };
  });
  await running.dispose();
  await model.dispose();
}
const lines = Object.entries(result).map(([name, positions]) =>
  `  ${JSON.stringify(name)}: [\n    ${positions.map((p) => JSON.stringify(p)).join(",\n    ")}\n  ]`);
process.stdout.write(`{"models": {\n${lines.join(",\n")}\n}}\n`);
process.exit(0);
