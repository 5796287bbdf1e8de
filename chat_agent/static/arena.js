// Two to four models side by side: one question for all of them, or an exam of held-out questions.

import { $, announce, make } from "./view.js";
import { act, fill, steps } from "./acting.js";
import { ApiError, getJson, streamChat } from "./api.js";
import { read, write } from "./store.js";
import { sampling } from "./settings.js";

const LEAST = 2;
const MOST = 4;
const AT_ONCE = 3;                      // exam questions that a model has before it at a time
const LONGEST = 64;                     // tokens of an answer in an exam

export class Arena {
  constructor() {
    this.models = [];
    this.chosen = new Set(read("arena", []));
    this.control = null;                // what stops the question or the exam under way
    $("arena-form").addEventListener("submit", (event) => { event.preventDefault(); this.ask(); });
    $("arena-text").addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229 || event.key !== "Enter" || event.shiftKey) return;
      event.preventDefault();
      this.ask();
    });
    $("arena-exam").addEventListener("click", () => this.sit());
    $("arena-stop").addEventListener("click", () => this.control.abort());
  }

  setModels(models) {
    this.models = models;
    const known = models.filter((m) => this.chosen.has(m.id));
    if (known.length < LEAST) this.chosen = new Set(models.slice(0, LEAST).map((m) => m.id));
    const few = models.length < LEAST;
    $("arena-form").hidden = few;
    $("arena-empty").textContent = few
      ? "要有两个以上的模型才能并排：启动时多写几个 --model，或等训练出更多的模型。" : "";
    $("arena-models").replaceChildren(...models.map((m) => this.chip(m)));
    this.settle();
  }

  get picked() {
    return this.models.filter((m) => this.chosen.has(m.id)).slice(0, MOST);
  }

  chip(model) {
    const box = make("input", { type: "checkbox", value: model.id, onchange: () => {
      if (box.checked) this.chosen.add(model.id); else this.chosen.delete(model.id);
      write("arena", [...this.chosen]);
      this.settle();
    } });
    box.checked = this.chosen.has(model.id);
    return make("label", { class: "chip", title: model.title }, box, model.label);
  }

  // No more than four, no fewer than two; an exam where one of them brings questions.
  settle() {
    const full = this.picked.length >= MOST;
    for (const box of $("arena-models").querySelectorAll("input")) box.disabled = !box.checked && full;
    const busy = Boolean(this.control);
    $("arena-go").disabled = busy || this.picked.length < LEAST;
    $("arena-exam").hidden = busy || !this.picked.some((m) => m.exam);
    $("arena-stop").hidden = !busy;
  }

  columns() {
    const parts = this.picked.map((model) => new Column(model));
    $("arena-columns").replaceChildren(...parts.map((part) => part.element));
    $("arena-columns").style.setProperty("--n", parts.length);
    return parts;
  }

  async run(work, over) {
    if (this.control || this.picked.length < LEAST) return;
    this.control = new AbortController();
    const parts = this.columns();
    this.settle();
    await Promise.all(parts.map((part) => work(part, this.control.signal).catch((error) => part.failed(error))));
    this.control = null;
    this.settle();
    announce(over);
  }

  ask() {
    const text = $("arena-text").value.trim();
    if (!text) return;
    this.run((part, signal) => part.answer(text, signal), "都答完了");
  }

  async sit() {
    const from = this.picked.find((m) => m.exam);
    try {
      const { questions } = await getJson("/exam/" + encodeURIComponent(from.id));
      await this.run((part, signal) => part.examine(questions, signal), "考完了");
    } catch (error) {
      $("arena-columns").replaceChildren(make("p", { class: "error" }, error.message));
    }
  }
}

class Column {
  constructor(model) {
    this.model = model;
    this.note = make("span", { class: "value" });
    this.body = make("div", { class: "body" });
    this.element = make("section", { class: "card column", "aria-label": model.label },
      make("div", { class: "head" }, make("b", {}, model.label), this.note), this.body);
  }

  async answer(text, signal) {
    const reply = make("div", { class: "text typing-dot" });
    const said = { content: "" };
    const box = steps(said);
    this.body.replaceChildren(make("p", { class: "soft" }, text), box, reply);
    const started = performance.now();
    const messages = [{ role: "user", content: text }];
    const request = { model: this.model.id, messages, tools: this.model.tools, ...sampling() };
    const heard = { text: (piece) => { said.content += piece; reply.textContent = said.content; }, about() {} };
    const { usage } = await act(request, signal, said, heard, () => fill(box, said));
    reply.classList.remove("typing-dot");
    if (!reply.textContent) reply.textContent = "（空的回答）";
    const seconds = (performance.now() - started) / 1000;
    this.note.textContent = usage.completion_tokens + " 词元 · " + (seconds < 0.1 ? "不到 0.1" : seconds.toFixed(1)) + " 秒";
  }

  // questions: [{title, messages, answer}], a few at a time; counted as they come.
  async examine(questions, signal) {
    const bar = make("span", { class: "grows" });
    const list = make("ol", { class: "marks-list", tabindex: "0", "aria-label": "考题" });
    this.body.replaceChildren(bar, list);
    let next = 0, right = 0, done = 0;
    const count = () => {
      bar.style.setProperty("--p", questions.length ? right / questions.length : 0);
      this.note.textContent = "答对 " + right + " / " + done + (done < questions.length ? "，共 " + questions.length : "");
    };
    const one = async () => {
      while (next < questions.length && !signal.aborted) {
        const question = questions[next++];
        const said = await this.reply(question.messages, signal);
        const good = said.trim() === question.answer.trim();
        right += good;
        done += 1;
        count();
        list.prepend(mark(question, said, good));
      }
    };
    count();
    await Promise.all(Array.from({ length: AT_ONCE }, one));
  }

  async reply(messages, signal) {
    let said = "";
    const request = { model: this.model.id, messages, temperature: 0, max_tokens: LONGEST };
    await streamChat(request, signal, (piece) => { said += piece; }, () => {});
    return said;
  }

  failed(error) {
    this.body.querySelector(".typing-dot")?.classList.remove("typing-dot");
    if (error.name === "AbortError") this.note.textContent += this.note.textContent ? " · 已停止" : "已停止";
    else if (error instanceof ApiError) this.body.append(make("p", { class: "error" }, error.message));
    else throw error;
  }
}

function mark({ title, messages, answer }, said, good) {
  return make("li", { class: good ? "right" : "wrong" },
    make("span", { class: "sign", role: "img", "aria-label": good ? "对" : "错" }, good ? "✓" : "✗"),
    make("span", {}, (title ? title + "：" : "") + messages.at(-1).content),
    make("span", { class: "said" }, said.trim() || "（空的回答）"),
    good ? null : make("span", { class: "soft" }, "应是：" + answer));
}
