// What a reply does beside speaking: thoughts and calls of tools, told round by round in reply.rounds
// [{thought, content, calls: [{id, name, arguments: JSON text, result}]}]. The server carries the calls out.

import { announce, copyText, iconButton, make } from "./view.js";
import { postJson, streamChat } from "./api.js";

const ROUNDS = 4; // times that a reply may call; then it has to answer
const AT_ONCE = 4; // calls of one round

// Ask, carry out what the reply calls, ask again with what that gave. grew: called when there is more to see.
export async function act(request, signal, reply, heard, grew) {
  const messages = [...request.messages];
  for (let number = 0; ; number++) {
    const round = { thought: "", content: "", calls: [] };
    const more = number < ROUNDS ? {} : { tool_choice: "none" };
    const onText = (text) => {
      round.content += text;
      heard.text(text);
    };
    const onDelta = (delta) => {
      if (collect(delta, round) && !reply.rounds?.includes(round)) reply.rounds = [...(reply.rounds || []), round];
      grew();
    };
    const result = await streamChat({ ...request, messages, ...more }, signal, onText, heard.about, onDelta);
    if (result.finish !== "tool_calls" || !round.calls.length || !request.tools) return result;
    for (const [place, call] of round.calls.entries()) {
      call.result = place < AT_ONCE ? await carryOut(call, signal) : "出错：一次最多调用 " + AT_ONCE + " 次";
      grew();
    }
    messages.push(...ofRound(round));
    reply.content = "";
  }
}

// Add a piece of a stream to its round. -> whether there is anything to show of it
function collect(delta, round) {
  round.thought += delta.reasoning_content || "";
  for (const part of delta.tool_calls || []) {
    const call = (round.calls[part.index] ||= { id: part.id, name: part.function.name, arguments: "" });
    call.arguments += part.function.arguments || "";
  }
  return Boolean(round.thought || round.calls.length);
}

async function carryOut(call, signal) {
  try {
    const asked = { name: call.name, arguments: JSON.parse(call.arguments) };
    return (await postJson("/tools", asked, signal)).result;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    return "出错：" + error.message;
  }
}

function ofRound({ thought, content, calls }) {
  const called = calls.map(({ id, name, arguments: text }) => ({
    id,
    type: "function",
    function: { name, arguments: text },
  }));
  const results = calls.map(({ id, result }) => ({ role: "tool", tool_call_id: id, content: result || "" }));
  return [
    { role: "assistant", content, tool_calls: called, ...(thought ? { reasoning_content: thought } : {}) },
    ...results,
  ];
}

// A kept message as it is sent: a reply that called is several.
export function told({ role, content, rounds }) {
  const done = Array.isArray(rounds) ? rounds.filter((r) => r.calls?.length && r.calls.every((c) => c.result)) : [];
  return [...done.flatMap(ofRound), { role, content }];
}

// ---- on the screen

// Thoughts and calls of a message, folded; empty where there are none.
export function steps(message) {
  const box = make("div", { class: "steps" });
  fill(box, message);
  return box;
}

export function fill(box, message) {
  const open = new Set([...box.children].map((one, i) => (one.open ? i : -1)));
  const rounds = Array.isArray(message.rounds) ? message.rounds : [];
  const parts = rounds.flatMap(({ thought: text, calls }) => [...(text ? [thought(text)] : []), ...calls.map(used)]);
  parts.forEach((one, i) => (one.open = open.has(i)));
  box.replaceChildren(...parts);
  box.hidden = !parts.length;
}

function folded(kind, summary, body, text) {
  const copy = iconButton("copy", "复制", async () => {
    if (await copyText(text)) announce("已复制");
  });
  return make("details", { class: "step " + kind }, make("summary", {}, ...summary), make("div", {}, body, copy));
}

function thought(text) {
  return folded("thought", ["想了 " + [...text].length + " 个字"], make("p", {}, text), text);
}

function used({ name, arguments: text, result }) {
  const given = entries(text);
  const failed = result?.startsWith("出错");
  const short = result === undefined ? "正在用…" : result.split("\n")[0];
  const rows = [...given, ["得到", result === undefined ? "…" : result]];
  const list = make("dl", {}, ...rows.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]));
  const all = [name, ...rows.map(([key, value]) => key + "：" + value)].join("\n");
  const summary = ["用 ", make("b", {}, name), make("span", { class: "result" }, short)];
  return folded("used" + (failed ? " failed" : ""), summary, list, all);
}

function entries(text) {
  try {
    return Object.entries(JSON.parse(text)).map(([key, value]) => [key, readable(value)]);
  } catch {
    return []; // still being written
  }
}

function readable(value) {
  if (Array.isArray(value)) return value.map(readable).join("、");
  if (value && typeof value === "object") {
    return Object.entries(value)
      .map(([key, one]) => key + "：" + readable(one))
      .join("，");
  }
  return String(value);
}
