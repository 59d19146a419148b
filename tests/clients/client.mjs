// What applications do with the official OpenAI SDK for Node; a case is a function.
//
// usage: NODE_PATH=... OPENAI_BASE_URL=... OPENAI_API_KEY=... client.mjs CASE...
// Exits with 1 and a stack at the first case that does not end as it must. client.py is the same for Python.

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { createRequire } from "node:module";

// `import` knows no NODE_PATH, and the SDK is not installed beside this file.
const { default: OpenAI } = createRequire(import.meta.url)("openai");

const MODEL = "qwen-vl";
const CROWD = 12;
const HELLO = [{ role: "user", content: "hello" }];

const cases = {
  async chat(client) {
    const answer = await client.chat.completions.create({ model: MODEL, messages: HELLO });
    assert.equal(answer.model, MODEL);
    assert.match(answer.choices[0].message.content, /1 message\(s\), 0 image\(s\)/);
    assert.ok(answer.usage.completion_tokens > 0);
    assert.ok(answer._request_id);
  },

  async stream(client) {
    const stream_options = { include_usage: true };
    const events = await client.chat.completions.create({ model: MODEL, messages: HELLO, stream: true, stream_options });
    const chunks = await all(events);
    assert.deepEqual([...new Set(chunks.map((chunk) => chunk.model))], [MODEL]);
    const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
    assert.match(text, /1 message\(s\), 0 image\(s\)/);
    assert.ok(chunks.at(-1).usage.completion_tokens > 0);
  },

  async vision(client) {
    const image = randomBytes(3_000_000).toString("base64");
    const parts = [
      { type: "text", text: "what is this?" },
      { type: "image_url", image_url: { url: `data:image/png;base64,${image}` } },
    ];
    const answer = await client.chat.completions.create({ model: MODEL, messages: [{ role: "user", content: parts }] });
    assert.match(answer.choices[0].message.content, /1 message\(s\), 1 image\(s\)/);
  },

  async embeddings(client) {
    // The SDK asks for base64 and unpacks it.
    const answer = await client.embeddings.create({ model: MODEL, input: ["one", "two"] });
    assert.equal(answer.model, MODEL);
    assert.deepEqual(answer.data.map((entry) => entry.index), [0, 1]);
    assert.ok(answer.data.every((entry) => entry.embedding.length > 0 && entry.embedding.every(Number.isFinite)));
    assert.notDeepEqual(answer.data[0].embedding, answer.data[1].embedding);
  },

  async responses(client) {
    const answer = await client.responses.create({ model: MODEL, input: "hello" });
    assert.equal(answer.model, MODEL);
    assert.match(answer.output_text, /1 input\(s\)/);
    const events = await all(await client.responses.create({ model: MODEL, input: "hello", stream: true }));
    assert.equal(events.at(-1).type, "response.completed");
    // llama.cpp names its model in the last of them alone.
    const names = events.map((event) => event.response?.model).filter((name) => name !== undefined);
    assert.deepEqual([...new Set(names)], [MODEL]);
  },

  async models(client) {
    const listed = await all(client.models.list());
    assert.deepEqual(listed.map((model) => model.id), [MODEL]);
    assert.equal((await client.models.retrieve(MODEL)).id, MODEL);
    const error = await raised(OpenAI.NotFoundError, () => client.models.retrieve("nobody/has-it"));
    assert.equal(error.code, "model_not_found");
  },

  async unknown_model(client) {
    const ask = () => client.chat.completions.create({ model: "nobody/has-it", messages: HELLO });
    const error = await raised(OpenAI.NotFoundError, ask);
    assert.equal(error.code, "model_not_found");
    assert.ok(error.requestID);
    assert.ok(error.message.includes(MODEL), `it says what is served: ${error.message}`);
  },

  async refused_by_proxy(client) {
    const error = await raised(OpenAI.BadRequestError, () => client.post("/chat/completions", { body: {} }));
    assert.equal(error.code, "missing_model");
    assert.ok(error.requestID);
  },

  async refused_by_backend(client) {
    const ask = () => client.chat.completions.create({ model: MODEL, messages: { not: "a list" } });
    const error = await raised(OpenAI.BadRequestError, ask);
    assert.match(error.message, /messages/);
    assert.ok(error.requestID);
  },

  // The backend is full and the queue too, until whoever started us has seen us refused.
  async saturated(client) {
    const answers = [];
    const noting = async (...request) => {
      const answer = await fetch(...request);
      answers.push({ status: answer.status, waitMs: answer.headers.get("retry-after-ms"), at: performance.now() });
      return answer;
    };
    const patient = client.withOptions({ fetch: noting });
    const answer = await patient.chat.completions.create({ model: MODEL, messages: HELLO });
    assert.equal(answer.choices[0].message.content, "ok");
    const served = answers.pop();
    assert.equal(served.status, 200);
    assert.deepEqual([...new Set(answers.map((answer) => answer.status))], [429]);
    // A timer of Node's may fire up to a millisecond early.
    assert.ok(served.at - answers.at(-1).at >= Number(answers.at(-1).waitMs) - 1, JSON.stringify([answers, served]));
  },

  // Many at once before few slots and no queue, with the retries that the SDK makes by itself.
  async crowd(client) {
    const ask = () => client.chat.completions.create({ model: MODEL, messages: HELLO });
    for (let warm = 0; warm < 4; warm++) await ask();
    const answers = await Promise.all(Array.from({ length: CROWD }, ask));
    assert.ok(answers.every((answer) => answer.choices[0].message.content), JSON.stringify(answers));
  },

  async saturated_for_good(client) {
    const impatient = client.withOptions({ maxRetries: 0 });
    const ask = () => impatient.chat.completions.create({ model: MODEL, messages: HELLO });
    const error = await raised(OpenAI.RateLimitError, ask);
    assert.equal(error.code, "backends_saturated");
    assert.ok(error.requestID);
    const waitMs = Number(error.headers.get("retry-after-ms"));
    assert.ok(waitMs > 0 && waitMs <= 60_000, String(waitMs));
  },

  // The backend dies within its answer.
  async interrupted(client) {
    const words = [];
    const error = await raised(OpenAI.APIError, async () => {
      const events = await client.chat.completions.create({ model: MODEL, messages: HELLO, stream: true });
      for await (const chunk of events) words.push(chunk.choices[0].delta.content);
    });
    assert.equal(error.code, "upstream_interrupted");
    assert.deepEqual(words, ["one"]);
  },
};

async function all(items) {
  const list = [];
  for await (const item of items) list.push(item);
  return list;
}

async function raised(kind, call) {
  let answer;
  try {
    answer = await call();
  } catch (error) {
    assert.ok(error instanceof kind, `no ${kind.name}, but ${error.stack}`);
    return error;
  }
  assert.fail(`no ${kind.name}, but ${JSON.stringify(answer)}`);
}

for (const name of process.argv.slice(2)) {
  console.log(name);
  await cases[name](new OpenAI());
}
