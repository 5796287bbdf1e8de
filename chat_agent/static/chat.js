// One conversation on the screen: sending, streaming, stopping, retrying, editing, copying; and the list of all conversations.

import { $, announce, copyText, iconButton, make, setIcon, toast } from "./view.js";
import { streamChat } from "./api.js";
import { loadConversations, saveConversations, titleOf } from "./store.js";
import { sampling } from "./settings.js";

const IDEAS = ["你好，你是谁？", "讲一个很短的故事", "今天天气真好，适合做什么？", "三加五等于多少？"];
const ENDINGS = { length: "到了长度上限", stopped: "已停止" };

const blank = () => ({ id: crypto.getRandomValues(new Uint32Array(3)).join("-"), time: Date.now(), system: "", messages: [] });

export class Chat {
  constructor() {
    this.all = loadConversations().sort((a, b) => b.time - a.time);
    this.current = blank();
    this.models = [];
    this.control = null;                // aborts the reply under way
    this.follow = true;                 // keep the newest text in sight
    this.onSwitch = () => {};
  }

  get busy() { return this.control !== null; }

  start() {
    $("ideas").append(...IDEAS.map((idea) => make("button", { type: "button", class: "idea", onclick: () => this.send(idea) }, idea)));
    $("composer").addEventListener("submit", (event) => { event.preventDefault(); this.submit(); });
    $("stop").addEventListener("click", () => this.stop());
    $("new-chat").addEventListener("click", () => this.open(null));
    const input = $("input");
    input.addEventListener("input", () => grow(input));
    input.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;          // Enter that confirms Chinese input is not "send"
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); this.submit(); }
      if (event.key === "ArrowUp" && !input.value && !this.busy) { event.preventDefault(); this.editLast(); }
    });
    const scroller = $("scroller");
    scroller.addEventListener("scroll", () => {
      this.follow = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
      $("to-bottom").hidden = this.follow;
    }, { passive: true });
    $("to-bottom").addEventListener("click", () => { this.follow = true; this.scroll(); });
    addEventListener("storage", (event) => { if (event.key === "tinyseek.conversations" && !this.busy) this.reload(); });
    addEventListener("pagehide", () => this.save());
    this.open(this.all[0] || null);
  }

  // ---- models

  setModels(models) {
    this.models = models;
    this.describeModel();
  }

  describeModel() {
    const model = this.models.find((m) => m.id === $("model").value);
    $("welcome-text").textContent = model && model.completes
      ? "这个模型只读过文章，还没学过对话：你起个头，它接着写。"
      : "一个很小的语言模型，就在这台机器上运行。想聊点什么？";
  }

  // ---- conversations

  open(conversation) {
    this.stop();
    this.current = conversation || blank();
    $("system").value = this.current.system;
    this.follow = true;
    this.draw();
    this.drawList();
    this.onSwitch();
    if (!matchMedia("(pointer: coarse)").matches) $("input").focus();
  }

  setSystem(text) {
    this.current.system = text;
    this.save();
  }

  save() {
    if (!this.current.messages.length) return;
    if (!this.all.includes(this.current)) this.all.unshift(this.current);
    saveConversations(this.all);
  }

  reload() {
    this.all = loadConversations().sort((a, b) => b.time - a.time);
    const same = this.all.find((c) => c.id === this.current.id);
    if (same) this.current = same;
    this.draw();
    this.drawList();
  }

  remove(conversation) {
    if (conversation === this.current) this.stop();
    const at = this.all.indexOf(conversation);
    this.all.splice(at, 1);
    saveConversations(this.all);
    announce("已删除 " + titleOf(conversation));
    if (conversation === this.current) this.open(this.all[at] || this.all[at - 1] || null);
    else this.drawList();
  }

  drawList() {
    $("conversations").replaceChildren(...this.all.map((c) => make("li", {},
      make("button", { type: "button", class: "entry", "aria-current": c === this.current ? "true" : null, onclick: () => this.open(c) }, titleOf(c)),
      this.removeButton(c))));
  }

  // Deleting asks once more, in place.
  removeButton(conversation) {
    const button = iconButton("trash", "删除 " + titleOf(conversation), () => {
      if (button.dataset.sure) { this.remove(conversation); return; }
      button.dataset.sure = "1";
      button.setAttribute("aria-label", "再按一次，删除 " + titleOf(conversation));
      announce("再按一次确认删除");
      button.replaceChildren("删除？");
      setTimeout(() => { if (button.isConnected) this.drawList(); }, 4000);
    });
    return button;
  }

  // ---- messages

  draw() {
    const { messages } = this.current;
    $("welcome").hidden = messages.length > 0;
    $("messages").replaceChildren(...messages.map((message, i) => this.bubble(message, i)));
    this.scroll();
  }

  bubble(message, i) {
    const mine = message.role === "user";
    const last = i === this.current.messages.length - 1;
    const text = make("div", { class: "text" });
    text.textContent = message.content;
    const copy = iconButton("copy", "复制", async () => {
      if (!(await copyText(message.content))) { toast("浏览器不让复制，请手动选择文字。"); return; }
      setIcon(copy, "done");
      announce("已复制");
      setTimeout(() => setIcon(copy, "copy"), 1500);
    });
    const tools = make("div", { class: "tools" }, copy);
    if (mine) tools.append(iconButton("edit", "编辑后重新提问", () => this.edit(i)));
    if (!mine && last) tools.append(iconButton("retry", "重新回答", () => this.retry()));
    if (!mine && message.note) tools.append(make("span", { class: "note" }, message.note));
    return make("li", { class: "message " + message.role },
      make("span", { class: "hidden" }, mine ? "你：" : "小寻："), text,
      message.error ? make("p", { class: "error" }, message.error) : null, tools);
  }

  scroll() {
    if (this.follow) $("scroller").scrollTop = $("scroller").scrollHeight;
  }

  // ---- asking

  submit() {
    const text = $("input").value;
    if (!text.trim() || this.busy) return;
    $("input").value = "";
    grow($("input"));
    this.send(text);
  }

  send(text) {
    if (this.busy) return;
    this.current.messages.push({ role: "user", content: text });
    this.ask();
  }

  retry() {
    const { messages } = this.current;
    if (this.busy || !messages.length) return;
    if (messages.at(-1).role === "assistant") messages.pop();
    this.ask(true);
  }

  editLast() {
    const at = this.current.messages.findLastIndex((m) => m.role === "user");
    if (at >= 0) this.edit(at);
  }

  // The bubble becomes a text field; what came after it is asked anew.
  edit(i) {
    if (this.busy) return;
    const item = $("messages").children[i];
    const area = make("textarea", { "aria-label": "编辑消息", maxlength: 20000 });
    area.value = this.current.messages[i].content;
    const done = () => {
      if (!area.value.trim()) return;
      this.current.messages.length = i;
      this.send(area.value);
      $("input").focus();
    };
    const leave = () => { this.draw(); $("input").focus(); };
    area.addEventListener("input", () => grow(area));
    area.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); done(); }
      if (event.key === "Escape") { event.stopPropagation(); leave(); }
    });
    item.classList.add("editing");
    item.replaceChildren(area, make("div", { class: "row" },
      make("button", { type: "button", class: "plain", onclick: leave }, "取消"),
      make("button", { type: "button", class: "main", onclick: done }, "重新提问")));
    grow(area);
    area.focus();
  }

  stop() {
    if (this.control) this.control.abort();
  }

  async ask(again) {
    const conversation = this.current;
    const reply = { role: "assistant", content: "" };
    const history = conversation.messages.filter((m) => m.content).map(({ role, content }) => ({ role, content }));
    const system = conversation.system.trim();
    conversation.messages.push(reply);
    conversation.time = Date.now();
    this.all.sort((a, b) => b.time - a.time);
    this.follow = true;
    this.save();
    this.drawList();
    this.draw();
    const control = this.control = new AbortController();
    const item = $("messages").lastElementChild;
    this.setBusy(true, item);
    const typed = new Typing(item.querySelector(".text"), () => this.scroll());
    const started = performance.now();
    const model = $("model").value;
    try {
      const messages = system ? [{ role: "system", content: system }, ...history] : history;
      const { finish, usage } = await streamChat({ model, messages, ...sampling(again) }, control.signal, (text) => {
        reply.content += text;
        typed.show(reply.content);
      });
      const count = usage ? usage.completion_tokens : 0;
      reply.note = [model, count + " 词元", Math.round(count / ((performance.now() - started) / 1000)) + " 词元/秒", ENDINGS[finish]]
        .filter(Boolean).join(" · ");
      announce("小寻：" + (reply.content || "（空的回答）"));
    } catch (error) {
      if (error.name === "AbortError") { reply.note = ENDINGS.stopped; announce("已停止"); }
      else { reply.error = error.message; announce(error.message); }
    }
    typed.end();
    if (this.control === control) { this.control = null; this.setBusy(false, item); }
    if (!reply.content && !reply.error && !reply.note) reply.note = "（空的回答）";
    this.save();
    if (this.current === conversation) this.draw();
  }

  setBusy(busy, item) {
    $("send").hidden = busy;
    $("stop").hidden = !busy;
    item.classList.toggle("typing", busy);
    $("messages").setAttribute("aria-busy", String(busy));
    if (!busy && document.activeElement === document.body) $("input").focus();
  }
}

// Text that grows: redrawn at most once per frame.
class Typing {
  constructor(element, then) {
    this.element = element;
    this.then = then;
    this.text = element.appendChild(document.createTextNode(""));
    this.frame = 0;
  }

  show(text) {
    this.latest = text;
    this.frame ||= requestAnimationFrame(() => { this.frame = 0; this.text.data = this.latest; this.then(); });
  }

  end() {
    cancelAnimationFrame(this.frame);
  }
}

function grow(area) {
  area.style.height = "auto";
  area.style.height = Math.min(area.scrollHeight, innerHeight * 0.4) + "px";
}
