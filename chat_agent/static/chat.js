// The conversations of this tab: sending, streaming, stopping, retrying, editing. What is on the screen is drawn by
// bubbles.js and list.js.

import { $, announce, make } from "./view.js";
import { ApiError } from "./api.js";
import { act, told } from "./acting.js";
import {
  idOf,
  loadConversation,
  loadConversations,
  newId,
  ofTab,
  raw,
  removeConversation,
  saveConversation,
  titleOf,
} from "./store.js";
import { sampling } from "./settings.js";
import { Bubbles, grow } from "./bubbles.js";
import { drawList } from "./list.js";
import { earlier, settle } from "./versions.js";
import { startFiles } from "./files.js";

const ENDINGS = { length: "到了长度上限", stopped: "已停止", left: "页面关了，没有写完" };

export class Chat {
  constructor() {
    this.all = new Map(loadConversations().map((c) => [c.id, c]));
    this.current = blank();
    this.models = [];
    this.running = new Map(); // conversation -> what aborts the reply it is getting
    this.bubbles = new Bubbles(this);
    this.onSwitch = () => {};
    this.onLocked = () => {};
    this.onGlass = () => {}; // somebody wants to look into a reply
  }

  // Whether the conversation on the screen is getting a reply; others may be getting theirs.
  get busy() {
    return this.running.has(this.current);
  }

  get model() {
    return this.models.find((m) => m.id === $("model").value);
  }

  get listed() {
    return [...this.all.values()].sort((a, b) => b.time - a.time);
  }

  start() {
    $("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    $("stop").addEventListener("click", () => this.stop());
    $("new-chat").addEventListener("click", () => this.open(null));
    $("search").addEventListener("input", () => this.drawList());
    startFiles(this);
    const input = $("input");
    input.addEventListener("input", () => {
      grow(input);
      ofTab("draft." + this.draft, input.value);
    });
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return; // Enter that confirms Chinese input is not "send"
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        this.submit();
      }
      if (event.key === "ArrowUp" && !input.value && !this.busy) {
        event.preventDefault();
        this.editLast();
      }
    });
    addEventListener("storage", (event) => this.elsewhere(event));
    addEventListener("pagehide", () => this.leave());
    this.open(this.all.get(ofTab("current")) || (ofTab("current") ? null : this.listed[0]) || null);
  }

  // ---- models

  setModels(models) {
    this.models = models;
    this.describeModel();
  }

  describeModel() {
    const { model } = this;
    const completes = Boolean(model && model.completes);
    $("welcome-title").textContent = completes ? "你起个头，我接着写" : "你好，我是小寻";
    $("welcome-text").textContent = !model
      ? "还没有模型。训练完成后这里就能对话，现在可以看上面的“训练”。"
      : completes
        ? "这个模型只读过文章，还没学过对话：它不会回答，只会接着往下写，也不记得前面的话。"
        : "一个很小的语言模型，就在这台机器上运行。想聊点什么？";
    $("input").placeholder = completes ? "写个开头…" : "说点什么…";
    $("ideas").replaceChildren(
      ...(model ? model.prompts.slice(0, 4) : []).map((idea) =>
        make("button", { type: "button", class: "idea", onclick: () => this.send(idea) }, idea),
      ),
    );
    this.bubbles.showUse();
  }

  // ---- conversations

  open(conversation) {
    this.current = conversation || blank();
    this.draft = conversation ? conversation.id : "new";
    ofTab("current", this.current.id);
    $("system").value = raw("system." + this.current.id);
    $("input").value = ofTab("draft." + this.draft);
    this.bubbles.follow = true;
    this.draw();
    grow($("input"));
    this.onSwitch();
    if (!matchMedia("(pointer: coarse)").matches) $("input").focus();
  }

  setSystem(text) {
    const { id } = this.current;
    if (raw("system." + id) !== text && (text || this.all.has(id))) raw("system." + id, text);
  }

  // false where another tab has deleted it meanwhile
  save(conversation) {
    if (!conversation.messages.length) return true;
    const before = conversation.id;
    if (!saveConversation(conversation)) {
      this.drop(conversation);
      return false;
    }
    if (before !== conversation.id) {
      // another tab has gone on with it: now there are two
      const theirs = loadConversation(before);
      if (theirs) this.all.set(before, theirs);
      else this.all.delete(before);
      if (conversation === this.current) ofTab("current", conversation.id);
    }
    this.all.set(conversation.id, conversation);
    return true;
  }

  // Something was changed in another tab.
  elsewhere({ key, newValue }) {
    const id = idOf(key);
    if (key === null) {
      location.reload();
      return;
    } // everything was cleared
    if (id === null) {
      if (key.startsWith("tinyseek.title.")) this.drawList();
      return;
    }
    const known = this.all.get(id);
    if (newValue === null) {
      if (known) this.drop(known);
      return;
    }
    if (known && this.running.has(known)) return; // settled when its reply is complete
    const found = loadConversation(id);
    if (!found) return;
    this.all.set(id, known ? Object.assign(known, found) : found);
    if (known === this.current) this.draw();
    else this.drawList();
  }

  // A conversation is gone, here or elsewhere: it does not come back with the end of a reply.
  drop(conversation) {
    this.stop(conversation);
    this.running.delete(conversation);
    conversation.gone = true;
    removeConversation(conversation.id);
    const { listed } = this;
    const at = listed.indexOf(conversation);
    this.all.delete(conversation.id);
    if (conversation === this.current) this.open(listed[at + 1] || listed[at - 1] || null);
    else this.drawList();
  }

  remove(conversation) {
    announce("已删除 " + titleOf(conversation));
    this.drop(conversation);
  }

  leave() {
    for (const conversation of this.running.keys()) {
      conversation.messages.at(-1).note = ENDINGS.left;
      this.save(conversation);
    }
  }

  draw() {
    this.bubbles.draw();
    this.drawList();
  }

  drawList() {
    drawList(this);
  }

  // ---- asking

  submit() {
    const text = $("input").value;
    if (!text.trim() || this.busy || !this.model) return;
    $("input").value = "";
    ofTab("draft." + this.draft, "");
    grow($("input"));
    this.send(text);
  }

  send(text) {
    if (this.busy || !this.model) return;
    this.current.messages.push({ role: "user", content: text });
    this.ask();
  }

  retry() {
    const { messages } = this.current;
    if (this.busy || !this.model || !messages.length) return;
    const before = messages.at(-1).role === "assistant" ? messages.pop() : null;
    this.ask(true, before && before.content ? earlier(before) : {});
  }

  editLast() {
    const at = this.current.messages.findLastIndex((m) => m.role === "user");
    if (at >= 0) this.bubbles.edit(at);
  }

  stop(conversation = this.current) {
    const control = this.running.get(conversation);
    if (control) control.abort();
  }

  // again: the same question once more; more: what the reply knows of earlier answers to it
  async ask(again, more = {}) {
    const conversation = this.current;
    const sent = heard(conversation.messages);
    const { model } = this;
    const how = sampling(again);
    const reply = { role: "assistant", content: "", model: model.id, how, ...more };
    const control = new AbortController();
    this.setSystem($("system").value);
    const request = { model: model.id, messages: this.spoken(sent), tools: model.tools, ...how };
    conversation.messages.push(reply);
    conversation.time = Date.now();
    this.running.set(conversation, control);
    if (!this.save(conversation)) return;
    this.draft = conversation.id;
    this.bubbles.follow = true;
    this.draw();
    const started = performance.now();
    try {
      const heard = {
        text: (text) => {
          reply.content += text;
          this.bubbles.grew(reply);
        },
        about: (about) => this.note(conversation, reply, sent, about),
      };
      const { finish, usage, ids } = await act(request, control.signal, reply, heard, () => this.bubbles.grew(reply));
      const count = usage ? usage.completion_tokens : 0;
      reply.used = usage ? usage.total_tokens : reply.used;
      reply.empty = !reply.content;
      reply.ids = ids;
      const speed = Math.round(count / ((performance.now() - started) / 1000));
      reply.note = [model.label, count + " 词元", speed + " 词元/秒", ENDINGS[finish]].filter(Boolean).join(" · ");
      this.say(conversation, "小寻：" + (reply.content || "（空的回答）"));
    } catch (error) {
      this.failed(conversation, reply, error);
    }
    this.running.delete(conversation);
    if (conversation.gone) return;
    if (reply.versions) settle(reply);
    const kept = this.save(conversation);
    if (kept && conversation === this.current) this.draw();
    else this.drawList();
    if (conversation === this.current && document.activeElement === document.body) $("input").focus();
  }

  // What is sent of these messages of the open conversation, its system prompt before them.
  spoken(sent) {
    const system = raw("system." + this.current.id).trim();
    const all = system ? [{ role: "system", content: system }, ...sent] : sent;
    return all.flatMap(told);
  }

  // Show how reply number i came about: the same request once more, and the ids that were written.
  lookInto(i) {
    const { messages } = this.current;
    const reply = messages[i];
    if (!this.model) return;
    const known = this.models.some((m) => m.id === reply.model) ? reply.model : this.model.id;
    const before = [...this.spoken(heard(messages.slice(0, i))), ...told(reply).slice(0, -1)];
    const request = { model: known, messages: before, tools: this.model.tools, ...reply.how };
    const written = reply.ids && reply.ids.length ? { token_ids: reply.ids } : { reply: reply.content };
    this.onGlass({ request, ...written }, messages[i - 1]?.content || "");
  }

  // What the server says of the prompt: how much of the model's memory it takes, and how many turns did not fit.
  note(conversation, reply, sent, about) {
    Object.assign(reply, { used: about.prompt_tokens, context: about.context });
    const turn = sent.filter((m) => m.role === "user")[about.dropped_turns];
    if (about.dropped_turns && turn) reply.forgot = conversation.messages.indexOf(turn);
    if (about.prompt_tokens > about.context) reply.warning = about.notices.at(-1);
    if (conversation === this.current) this.bubbles.draw();
  }

  failed(conversation, reply, error) {
    if (error.name === "AbortError") reply.note = ENDINGS.stopped;
    else if (error instanceof ApiError) reply.error = error.message;
    else throw error;
    if (error.status === 401) this.onLocked();
    this.say(conversation, reply.error || reply.note);
  }

  say(conversation, text) {
    if (conversation === this.current) announce(text);
  }
}

const blank = () => ({ id: newId(), time: Date.now(), messages: [], stored: "" });

// What is sent of a conversation: a question that never got a reply is not asked again with the next one.
function heard(messages) {
  return messages.filter((m, i) => {
    const next = messages[i + 1];
    return m.role === "user" ? !next || (next.role === "assistant" && next.content) : m.content;
  });
}
