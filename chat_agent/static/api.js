// Talking to the server: JSON in, JSON or a stream of events out. Errors carry a message that can be shown.

import { raw } from "./store.js";

export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const key = raw("key");
  const headers = {
    ...(options.body ? { "Content-Type": "application/json" } : {}),
    ...(key ? { Authorization: "Bearer " + key } : {}),
  };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("连不上服务。它还在运行吗？", 0);
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    throw new ApiError(key ? "密钥不对。请在设置里改正 API 密钥。" : "这个服务要密钥。请在设置里填写 API 密钥。", 401);
  }
  let message = "";
  try {
    message = (await answer.json()).error.message;
  } catch {
    /* not one of ours */
  }
  throw new ApiError(message || "服务答复了 " + answer.status + "。", answer.status);
}

export async function getJson(path) {
  return (await call(path)).json();
}

export async function postJson(path, content, signal) {
  return (await call(path, { method: "POST", signal, body: JSON.stringify(content) })).json();
}

// Calls onText for each piece of the reply, onAbout with what is said about the prompt, onDelta with all else.
// -> {finish, usage, ids}
export async function streamChat(request, signal, onText, onAbout, onDelta = () => {}) {
  const answer = await call("/v1/chat/completions", {
    method: "POST",
    signal,
    body: JSON.stringify({ ...request, stream: true, stream_options: { include_usage: true }, return_token_ids: true }),
  });
  const result = { finish: null, usage: null, ids: [] };
  for await (const data of events(answer.body)) {
    if (data === "[DONE]") continue; // read on to the end, so that the connection can be used again
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, 0);
    if (chunk.usage) result.usage = chunk.usage;
    if (chunk.tinyseek) onAbout(chunk.tinyseek);
    const choice = chunk.choices[0];
    if (!choice) continue;
    if (choice.delta.content) onText(choice.delta.content);
    if (choice.delta.reasoning_content || choice.delta.tool_calls) onDelta(choice.delta);
    if (choice.token_ids) result.ids = choice.token_ids;
    if (choice.finish_reason) result.finish = choice.finish_reason;
  }
  if (!result.finish) throw new ApiError(BROKEN, 0);
  return result;
}

const BROKEN = "服务断开了，回答没有写完。它还在运行吗？";

// The data of server-sent events, one by one.
async function* events(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  try {
    for (;;) {
      const { done, value } = await next(reader);
      if (done) return;
      text += decoder.decode(value, { stream: true });
      const parts = text.split("\n\n");
      text = parts.pop();
      for (const part of parts) if (part.startsWith("data: ")) yield part.slice(6);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    // the browser's own words for it are English
    throw error.name === "AbortError" ? error : new ApiError(BROKEN, 0);
  }
}
