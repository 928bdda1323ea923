// m40d as the npm package `openai` sees it.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { test } from "node:test";

const packages = createRequire(process.env.M40_NODE_PACKAGES + "/package.json");
const OpenAI = packages("openai");

const client = new OpenAI({
  baseURL: process.env.M40_URL + "/v1", apiKey: "none", maxRetries: 0, timeout: 120_000,
});
const messages = [{ role: "user", content: "What is the capital of France? Answer briefly." }];
const asked = { model: "smollm2", messages, temperature: 0, max_tokens: 24 };
const tools = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "Says how the weather is in a city.",
    parameters: {
      type: "object",
      properties: { city: { type: "string", enum: ["Paris", "Rome"] } },
      required: ["city"],
      additionalProperties: false,
    },
  },
}];

test("a stream says what the whole answer says", async () => {
  const whole = await client.chat.completions.create(asked);
  assert.match(whole.choices[0].message.content, /Paris/);
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
    text += chunk.choices[0]?.delta.content ?? "";
  }
  assert.equal(text, whole.choices[0].message.content);
});

test("the package's own reader of streams puts the answer together", async () => {
  const answer = await client.chat.completions.stream(asked).finalChatCompletion();
  assert.match(answer.choices[0].message.content, /Paris/);
});

test("a schema is kept", async () => {
  const schema = {
    type: "object", properties: { large: { type: "boolean" } }, required: ["large"], additionalProperties: false,
  };
  const response_format = { type: "json_schema", json_schema: { name: "city", schema, strict: true } };
  const answer = await client.chat.completions.create({ ...asked, response_format, max_tokens: 100 });
  assert.equal(typeof JSON.parse(answer.choices[0].message.content).large, "boolean");
});

test("a tool that must be called is called, streamed as well", async () => {
  const call = { ...asked, model: "tools", tools, tool_choice: "required", max_tokens: 100 };
  const whole = await client.chat.completions.create(call);
  const streamed = await client.chat.completions.stream(call).finalChatCompletion();
  for (const answer of [whole, streamed]) {
    const [first] = answer.choices[0].message.tool_calls;
    assert.equal(first.function.name, "get_weather");
    assert.ok(["Paris", "Rome"].includes(JSON.parse(first.function.arguments).city));
    assert.equal(answer.choices[0].finish_reason, "tool_calls");
  }
});

test("embeddings have all texts", async () => {
  const { data } = await client.embeddings.create({ model: "smollm2", input: ["a cat", "a dog"] });
  const lengths = data.map(({ embedding }) => Math.hypot(...embedding));
  assert.equal(lengths.length, 2);
  for (const length of lengths) assert.ok(Math.abs(length - 1) < 1e-3, `${length}`);
});

test("responses are given whole and streamed", async () => {
  const question = { model: "smollm2", input: messages[0].content, max_output_tokens: 24, temperature: 0 };
  const whole = await client.responses.create(question);
  assert.match(whole.output_text, /Paris/);
  let text = "";
  for await (const event of await client.responses.create({ ...question, stream: true })) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  assert.equal(text, whole.output_text);
});

test("models are listed, and an unknown one is not found", async () => {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  assert.ok(names.includes("smollm2"));
  const unknown = client.chat.completions.create({ ...asked, model: "nobody" });
  await assert.rejects(unknown, (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.equal(error.code, "model_not_found");
    return true;
  });
});

test("an answer that is left is no harm", async () => {
  const stream = await client.chat.completions.create({ ...asked, stream: true, max_tokens: 500, ignore_eos: true });
  for await (const chunk of stream) {
    if (chunk.choices[0]?.delta.content) break;
  }
  const after = await client.chat.completions.create(asked);
  assert.match(after.choices[0].message.content, /Paris/);
});
