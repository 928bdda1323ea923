// m40d as the npm package `ollama` sees it.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";

const packages = createRequire(process.env.M40_NODE_PACKAGES + "/package.json");
const { Ollama } = packages("ollama");

const client = new Ollama({ host: process.env.M40_URL });
const messages = [{ role: "user", content: "What is the capital of France? Answer briefly." }];
const asked = { model: "smollm2", messages, options: { temperature: 0, num_predict: 24 } };

test("a stream says what the whole answer says", async () => {
  const whole = await client.chat(asked);
  assert.match(whole.message.content, /Paris/);
  let text = "";
  let last;
  for await (const part of await client.chat({ ...asked, stream: true })) {
    text += part.message.content;
    last = part;
  }
  assert.equal(text, whole.message.content);
  assert.equal(last.done, true);
  assert.ok(last.eval_count > 0);
});

test("a prompt is gone on from", async () => {
  const options = { temperature: 0, num_predict: 4 };
  const answer = await client.generate({ model: "smollm2", prompt: "The capital of France is", raw: true, options });
  assert.equal(answer.response, " Paris.\n\n");
});

test("a schema is kept", async () => {
  const format = {
    type: "object", properties: { large: { type: "boolean" } }, required: ["large"], additionalProperties: false,
  };
  const answer = await client.chat({ ...asked, format, options: { temperature: 0, num_predict: 100 } });
  assert.equal(typeof JSON.parse(answer.message.content).large, "boolean");
});

test("models are listed and shown", async () => {
  const { models } = await client.list();
  assert.ok(models.some((model) => model.name === "smollm2:latest"));
  const shown = await client.show({ model: "smollm2" });
  assert.equal(shown.details.format, "gguf");
  await client.ps();
});

test("texts are embedded", async () => {
  const { embeddings } = await client.embed({ model: "smollm2", input: ["a cat", "a dog"] });
  assert.equal(embeddings.length, 2);
});

test("an unknown model is not found", async () => {
  await assert.rejects(client.chat({ ...asked, model: "nobody" }), (error) => {
    assert.equal(error.status_code, 404);
    return true;
  });
});

test("an answer can be aborted", async () => {
  const stream = await client.chat({ ...asked, stream: true, options: { num_predict: 1000 } });
  await assert.rejects(async () => {
    for await (const _ of stream) stream.abort();
  }, { name: "AbortError" });
  assert.match((await client.chat(asked)).message.content, /Paris/);
});
