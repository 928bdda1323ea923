// llama.cpp's side of tests/compare-llama-cpp: node throughput.mjs ROUNDS THREADS MODEL.gguf ...
// Measures what engine/benches/throughput.rs measures: tokens/s, the best of several rounds.
import path from "node:path";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const DECODE_TOKENS = 64;
const DEEP = 1024;
const [rounds, threads] = process.argv.slice(2, 4).map(Number);

const llama = await getLlama({
  gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: threads,
});
const seconds = () => Number(process.hrtime.bigint()) / 1e9;

async function best(rate) {
  let result = 0;
  for (let i = 0; i < rounds; i++) result = Math.max(result, await rate());
  return result.toFixed(1);
}

async function prefill(sequence, tokens) {
  await sequence.clearHistory();
  const start = seconds();
  // The last token's distribution is asked for, as the first token of an answer needs it.
  const input = tokens.map((token, i) =>
    i + 1 === tokens.length ? [token, {generateNext: {token: true}}] : token);
  await sequence.controlledEvaluate(input);
  return tokens.length / (seconds() - start);
}

async function decode(sequence, tokens) {
  await sequence.clearHistory();
  let start = 0, n = 0;
  for await (const _ of sequence.evaluate(tokens, {temperature: 0, yieldEogToken: true})) {
    if (n++ === 0) start = seconds();
    if (n > DECODE_TOKENS) break;
  }
  return DECODE_TOKENS / (seconds() - start);
}

console.log(`llama.cpp (node-llama-cpp), ${threads} threads; tokens/s, best of ${rounds} rounds\n`);
console.log(`| model | prefill 128 | prefill 512 | decode at 0 | decode at ${DEEP} |`);
console.log("|---|---|---|---|---|");
for (const file of process.argv.slice(4)) {
  const model = await llama.loadModel({modelPath: file});
  const vocab = Math.min(40000, [...model.iterateAllTokens()].length);
  const tokens = (n) => Array.from({length: n}, (_, i) => (i * 7919) % vocab);
  for (const flashAttention of [false, true]) {
    const context = await model.createContext({
      contextSize: 2048, batchSize: 512, flashAttention, threads: {ideal: threads, min: threads},
    });
    const sequence = context.getSequence();
    const cells = [
      await best(() => prefill(sequence, tokens(128))),
      await best(() => prefill(sequence, tokens(512))),
      await best(() => decode(sequence, tokens(1))),
      await best(() => decode(sequence, tokens(DEEP))),
    ];
    const name = path.basename(file, ".gguf") + (flashAttention ? ", flash attention" : "");
    console.log(`| ${name} | ${cells.join(" | ")} |`);
    await context.dispose();
  }
  await model.dispose();
}
process.exit(0);
