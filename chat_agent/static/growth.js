// How a model grows: the plan of the whole way, answers to the same questions, an exam in bars, the experts' load.

import { $, make } from "./view.js";

const MARKS = { done: "✓", now: "●", next: "", failed: "✗" };
const SAID = { done: "已完成", now: "正在做", next: "还没开始", failed: "没有做完" };

// plan: [{title, state, seconds, left, note}]; the note of the last step that has one stands below.
export function drawPlan(plan) {
  $("plan").hidden = !plan.length;
  $("plan").replaceChildren(...plan.map(({ title, state, seconds }, i) =>
    make("li", { class: state }, make("span", { "aria-hidden": "true" }, MARKS[state] || i + 1), title,
      make("small", {}, state === "done" && seconds ? minutes(seconds) : SAID[state]))));
  const at = plan.findIndex(({ state }) => state === "now");
  const said = plan.findLast(({ note }) => note);
  const left = at < 0 ? "" : `第 ${at + 1}/${plan.length} 步` +
    (plan[at].left ? "，到全部做完约还要 " + minutes(plan[at].left, 0) : "");
  $("plan-note").textContent = left || (said ? said.note : "");
  $("plan-note").classList.toggle("failed", !left && Boolean(said) && said.state === "failed");
  $("plan-note").hidden = !$("plan-note").textContent;
}

const minutes = (seconds, digits = 1) =>
  (seconds < 90 ? Math.round(seconds) + " 秒" : (seconds / 60).toFixed(digits) + " 分钟");

// A step's answers and its exam, chosen with one slider; the newest unless somebody has moved it.
export class Growth {
  constructor(box) {
    this.box = box;
    this.place = null;              // what the slider stands at, null = follow
    this.shown = "";
    const again = () => setTimeout(() => this.data && this.shown && this.draw(this.data));   // in the other colours
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
    $("theme").addEventListener("click", again);
  }

  clear() {
    this.box.replaceChildren();
    this.shown = "";
    this.place = null;
  }

  draw(data) {
    const theme = getComputedStyle(document.documentElement).getPropertyValue("--accent");
    const shown = [data.name, data.samples.length, data.heat ? data.heat.steps.at(-1) : 0, theme].join();
    if (shown === this.shown || this.box.querySelector("canvas:hover")) return;
    if (this.name !== data.name) this.place = null;
    Object.assign(this, { shown, data, name: data.name });
    if (!this.box.querySelector(".talks") || !data.samples.length || this.stage !== data.stage) this.build(data);
    this.fill();
    const old = this.box.querySelector(".heat");
    const heat = data.heat ? heatCard(data.heat) : null;
    if (old) old.remove();
    if (heat) this.box.append(heat);
  }

  build(data) {
    this.box.replaceChildren();
    this.stage = data.stage;
    if (!data.samples.length) return;
    this.slider = make("input", { type: "range", min: 0, "aria-label": "看哪一步的回答",
      oninput: () => {
        this.place = Number(this.slider.value) === this.data.samples.length - 1 ? null : Number(this.slider.value);
        this.fill();
      } });
    this.when = make("span", { class: "value" });
    this.said = make("dl", { class: "said" });
    this.marks = make("div", { class: "marks" });
    this.exam = make("figure", { class: "card exam" }, make("figcaption", {}, make("b", {}, "没见过的题，各类答对多少")),
      this.marks, make("small", {}, "每类几道留出的题，随训练一遍遍地考；题少，只看大势。"));
    const asked = data.stage === "pre" ? "同样的几个开头，每隔一会儿让它接着写" : "同样的几句话，每隔一会儿问一遍";
    this.box.append(make("figure", { class: "card talks" },
      make("figcaption", {}, make("b", {}, "看它怎么学会说话"), this.when), this.said, this.slider,
      make("small", {}, asked + "。拖动看从前的回答。")), this.exam);
  }

  fill() {
    const { samples, exams } = this.data;
    if (!samples.length) return;
    const at = Math.min(this.place ?? samples.length - 1, samples.length - 1);
    const { step, said } = samples[at];
    Object.assign(this.slider, { max: samples.length - 1, value: at });
    this.slider.style.setProperty("--at", (samples.length > 1 ? (at / (samples.length - 1)) * 100 : 100) + "%");
    this.slider.hidden = samples.length < 2;
    this.when.textContent = "第 " + step + " 步";
    this.said.replaceChildren(...said.flatMap(([question, reply]) =>
      [make("dt", {}, question), make("dd", {}, reply.trim() || "（空的回答）")]));
    const exam = exams.findLast((one) => one.step <= step);
    this.exam.hidden = !exam;
    if (exam) bars(this.marks, exam.tasks);
  }
}

// Bars stay the same elements, so that they are seen to grow.
function bars(box, tasks) {
  if (box.children.length !== tasks.length) {
    box.replaceChildren(...tasks.map(([title]) =>
      make("div", { class: "task" }, make("span", {}, title), make("span", { class: "grows" }), make("span", {}))));
  }
  tasks.forEach(([title, right, asked], i) => {
    const [name, bar, count] = box.children[i].children;
    name.textContent = title;
    bar.style.setProperty("--p", asked ? right / asked : 0);
    count.textContent = right + "/" + asked;
  });
}

// ---- the experts' load, a map for each layer: experts down, steps across

function heatCard({ steps, values }) {
  const told = make("span", { class: "value" }, "第 " + Math.round(steps.at(-1)) + " 步");
  const layers = values.map((experts, layer) => {
    const map = make("canvas", { width: steps.length, height: experts.length, role: "img",
      "aria-label": "第 " + (layer + 1) + " 层各专家的负载" });
    paint(map, experts);
    map.addEventListener("pointermove", (event) => { told.textContent = under(event, map, experts, steps, layer); });
    return make("div", { class: "map" }, make("span", {}, "第 " + (layer + 1) + " 层"), map);
  });
  return make("figure", { class: "card heat" }, make("figcaption", {}, make("b", {}, "专家的负载"), told),
    make("div", { class: "maps" }, ...layers),
    make("small", {}, "每层一张：一行一个专家，从左到右是训练的步。平均分的一份是中间的颜色，颜色越浓越忙，越淡越闲。"));
}

// Twice an even share and more is the accent colour, nothing is the panel's.
function paint(map, experts) {
  const pen = map.getContext("2d");
  const style = getComputedStyle(document.documentElement);
  const [busy, idle] = ["--accent", "--panel"].map((name) => rgb(pen, style.getPropertyValue(name)));
  const picture = pen.createImageData(map.width, map.height);
  experts.forEach((row, e) => row.forEach((share, x) => {
    const p = Math.min(1, (share || 0) / 2);
    const at = (e * map.width + x) * 4;
    for (let c = 0; c < 3; c++) picture.data[at + c] = idle[c] + (busy[c] - idle[c]) * p;
    picture.data[at + 3] = 255;
  }));
  pen.putImageData(picture, 0, 0);
}

function rgb(pen, colour) {
  pen.fillStyle = colour.trim();
  pen.fillRect(0, 0, 1, 1);
  return [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3);
}

function under(event, map, experts, steps, layer) {
  const box = map.getBoundingClientRect();
  const place = (at, size, count) => Math.max(0, Math.min(count - 1, Math.floor((at / size) * count)));
  const x = place(event.clientX - box.left, box.width, steps.length);
  const e = place(event.clientY - box.top, box.height, experts.length);
  return `第 ${layer + 1} 层 专家 ${e + 1} · 第 ${Math.round(steps[x])} 步：平均的 ${(experts[e][x] || 0).toFixed(2)} 倍`;
}
