// A client with OpenAI's library for Node: prints what it got as JSON.
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const messages = [{ role: "system", content: "作诗" }, { role: "user", content: "床前明月光" }];
const common = { model: "nano", temperature: 0 };

const chat = await client.chat.completions.create({ ...common, messages, max_tokens: 12 });
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...common, messages, max_tokens: 12, stream: true })) {
  streamed += chunk.choices[0]?.delta.content ?? "";
}
const response = await client.responses.create({ ...common, input: messages, max_output_tokens: 12 });
const completion = await client.completions.create({
  ...common, prompt: "床前明月光，", max_tokens: 8, n: 2, logprobs: 2, stop: "。",
});

async function failure(call) {
  try {
    await call();
    return null;
  } catch (error) {
    return error;
  }
}
const wrongKey = new OpenAI({ baseURL, apiKey: "wrong", maxRetries: 0 });
const ask = (more) => failure(() => client.chat.completions.create({ ...common, messages, ...more }));
const abort = new AbortController();
const cancelled = failure(async () => {
  const body = { ...common, messages, max_tokens: 400, n: 32, stream: true };
  for await (const _ of await client.chat.completions.create(body, { signal: abort.signal })) abort.abort();
  if (abort.signal.aborted) throw new OpenAI.APIUserAbortError();
});
const tool = { type: "function", function: { name: "f", parameters: { type: "object" } } };
const errors = {
  key: (await failure(() => wrongKey.models.list())).status,
  model: (await ask({ model: "gpt" })).status,
  temperature: (await ask({ temperature: -1 })).status,
  tools: (await ask({ tools: [tool] })).param,
  schema: (await ask({ response_format: { type: "json_object" } })).param,
  embeddings: (await failure(() => client.embeddings.create({ model: "nano", input: "x" }))).status,
  cancelled: (await cancelled).constructor.name,
};
console.log(JSON.stringify({
  chat: chat.choices[0].message.content, streamed, response: response.output_text,
  texts: completion.choices.map((choice) => choice.text),
  logprobs: completion.choices[0].logprobs.token_logprobs,
  usage: completion.usage.prompt_tokens, errors,
}));
