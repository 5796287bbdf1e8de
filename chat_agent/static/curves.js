// The second tab: the curves of a training run, drawn as SVG and refreshed while the run goes on.

import { $, make, shape } from "./view.js";
import { getJson } from "./api.js";
import { axis, short } from "./axis.js";
import { Growth, drawPlan } from "./growth.js";

const EVERY = 3000;
const CHARTS = [
  {
    names: ["loss"],
    title: "损失",
    evaluations: true,
    help: "两个输出头的交叉熵与路由损失之和，越低越好。空心点是留出数据。",
  },
  {
    names: ["ppx_1", "ppx_2"],
    labels: ["下一个词元", "再下一个词元"],
    title: "困惑度",
    unit: "个词",
    log: true,
    help: "模型在几个词之间犹豫，越低越好。",
  },
  { names: ["accuracy"], title: "选对的比例", help: "有多少对回答，模型更倾向于人选中的那个。" },
  { names: ["margin"], title: "间隔", help: "选中的回答比没选中的高出多少；大于 0 表示分得清。" },
  { names: ["reward", "success"], labels: ["奖励", "答对"], title: "奖励", help: "取样的回答平均得多少分，多少答对。" },
  { names: ["solved", "hopeless"], labels: ["全对", "全错"], title: "学不到的题", help: "整组都对或都错的提问，没有可学的。" },
  { names: ["length"], title: "回答的长短", unit: "词元", help: "奖励在涨、回答却越来越长或越来越短，多半是在钻空子。" },
  { names: ["called", "failed"], labels: ["叫过", "出错"], title: "用工具", help: "多少回答叫过工具；平均一个回答里出错的调用。" },
  { names: ["policy_entropy"], title: "说法的多样", help: "越低，每次说得越一样；接近 0 就学不到新东西了。" },
  { names: ["clip_share", "kl"], labels: ["被裁剪", "KL"], title: "离得多远", help: "比率被裁剪的词元比例；离起点模型多远。" },
  { names: ["lr"], title: "学习率", zero: true, help: "每一步走多大。" },
  { names: ["grad_norm"], title: "梯度范数", help: "裁剪之前的大小；偶尔的尖峰正常，一直变大不正常。" },
  { names: ["lexp"], title: "专家均衡", help: "0 表示各专家一样忙，越大越偏。" },
  { names: ["tok_s"], title: "速度", unit: "词元/秒", zero: true, help: "每秒多少个词元。" },
];
const OWN_HELP = {
  sft: { loss: "只有回答计入损失。开头比预训练结束时高一截是正常的，很快就降下来。空心点是留出数据。" },
  dpo: { loss: "偏好损失：0.693（ln 2）表示分不清哪个回答更好，越低越好。空心点是留出数据。" },
  rl: { loss: "实线是优势乘比率，总在 0 附近，看不出好坏；空心点是留出的题答错的比例，越低越好。" } };
const NOT_YET = "训练写下第一行记录后，这里就画出曲线，并一遍遍地问它同样的几句话。";
const STATES = { running: "进行中", done: "已完成", stopped: "已停下" };
const MOST_DOTS = 40; // more of them would hide the line
const BOX = { width: 480, height: 252, left: 56, right: 12, top: 22, bottom: 30 };

export class Curves {
  constructor() {
    this.timer = 0;
    this.visible = false;
    this.growth = new Growth($("growth"));
    this.seen = null; // runs that were listed before: one that is not among them has just begun
    const anew = () => {
      $("charts").replaceChildren();
      this.tick();
    };
    for (const id of ["run", "other"]) $(id).addEventListener("change", anew);
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden && this.visible) this.tick();
    });
  }

  show() {
    this.visible = true;
    this.tick();
  }
  hide() {
    this.visible = false;
    clearTimeout(this.timer);
  }
  again() {
    if (this.visible) this.tick();
  }

  async tick() {
    clearTimeout(this.timer);
    const turn = (this.turn = Symbol()); // an answer that was overtaken by a newer question is dropped
    try {
      const { runs, plan } = await getJson("/curves");
      const read = (name) => (name ? getJson("/curves/" + encodeURIComponent(name)) : null);
      const [data, other] = await Promise.all(this.fill(runs).map(read));
      if (turn !== this.turn) return;
      drawPlan(plan);
      this.draw(data, other, plan);
    } catch (error) {
      if (turn !== this.turn) return;
      if (error.status === 0 && $("charts").firstChild) this.lost();
      else this.say(error.message);
    }
    if (this.visible && !document.hidden) this.timer = setTimeout(() => this.tick(), EVERY);
  }

  // The lists of runs; -> [the chosen one, the one to compare it with]. A run that has just begun is chosen.
  fill(runs) {
    const begun = this.seen && runs.find((r) => !this.seen.has(r.name) && r.live);
    this.seen = new Set(runs.map((r) => r.name));
    const known = (name) => runs.some((r) => r.name === name);
    const chosen = begun ? begun.name : known($("run").value) ? $("run").value : runs.length ? runs[0].name : "";
    const other = known($("other").value) && $("other").value !== chosen ? $("other").value : "";
    const labels = named(runs);
    const others = runs.filter((r) => r.name !== chosen).map((r) => [r.name, labels.get(r.name)]);
    offer(
      $("run"),
      runs.map((r) => [r.name, labels.get(r.name) + (r.live ? "　● 进行中" : "")]),
      chosen,
    );
    offer($("other"), [["", "不对比"], ...others], other);
    $("other").disabled = runs.length < 2;
    this.labels = [labels.get(chosen), labels.get(other)];
    return [chosen, other];
  }

  // The server has gone, with the training that had opened it or otherwise: what was seen last stays.
  lost() {
    const state = $("run-state");
    const last = (this.data && STATES[this.data.state]) || "";
    const so = this.data && !this.data.live ? last + "。网页的服务停了" : "网页的服务停了，训练多半也结束了";
    state.textContent = so + "；这是最后看到的样子。再看请运行 python chat_agent/serve.py";
    state.classList.remove("live");
  }

  say(text) {
    $("curves-empty").hidden = !text;
    $("curves-empty").textContent = text;
    if (text) this.clear();
  }

  clear() {
    $("charts").replaceChildren();
    this.growth.clear();
    $("run-state").textContent = "";
  }

  draw(data, other, plan) {
    if (!data) {
      const at = (wanted) => plan.some(({ state }) => state === wanted);
      this.say(at("now") ? NOT_YET : at("failed") ? "" : "还没有训练记录。开始训练后，这里会实时画出曲线：python run.py");
      this.clear();
      return;
    }
    if (!Object.keys(data.fields).length) {
      this.say(
        data.live
          ? "这次训练刚开始，还没有写下第一行记录。"
          : data.why || "这次训练在写下第一行记录之前就停了。再运行同一条命令就接着训。",
      );
      return;
    }
    this.say("");
    this.data = data;
    this.growth.draw(data);
    const state = $("run-state");
    const text = stateOf(data);
    if (state.textContent !== text) state.textContent = text;
    state.classList.toggle("live", data.live);
    const cards = CHARTS.filter((chart) => chart.names.some((name) => data.fields[name]));
    const old = $("charts").children;
    if (old.length !== cards.length) $("charts").replaceChildren(...cards.map(() => make("figure", { class: "card" })));
    cards.forEach((chart, i) => card($("charts").children[i], chart, data, other, i === 0 && this.labels));
  }
}

// name -> what people call it, different for each run
function named(runs) {
  const often = (label) => runs.filter((r) => r.label === label).length > 1;
  return new Map(runs.map((r) => [r.name, often(r.label) ? r.label + "（" + r.name + "）" : r.label]));
}

function offer(select, entries, chosen) {
  const before = [...select.options].map((o) => o.value + o.textContent).join();
  if (before !== entries.map(([value, text]) => value + text).join()) {
    select.replaceChildren(...entries.map(([value, text]) => make("option", { value }, text)));
  }
  select.value = chosen;
  select.disabled = !entries.length;
}

function stateOf({ live, state, place, total, why }) {
  const parts = [STATES[state]];
  if (place.step) parts.push("第 " + place.step + (total ? "/" + total : "") + " 步");
  if (place.epochs > 1 && place.epochs <= 100) parts.push("第 " + place.epoch + "/" + place.epochs + " 轮");
  // a run that time ends is planned for more than it will do
  else if (place.epoch > 1) parts.push("数据的第 " + place.epoch + " 遍");
  if (live && place.remaining > 0) parts.push("还要约 " + clock(place.remaining));
  if (state === "stopped" && why) parts.push(why);
  return parts.join(" · ");
}

function clock(seconds) {
  if (seconds < 90) return Math.round(seconds) + " 秒";
  if (seconds < 5400) return Math.round(seconds / 60) + " 分钟";
  return (seconds / 3600).toFixed(1) + " 小时";
}

function card(figure, chart, data, other, runs) {
  if (figure.firstChild && figure.matches(":hover")) return; // somebody is reading it
  const lines = (from) =>
    chart.names
      .map((name, i) => ({ label: chart.labels && chart.labels[i], kind: "c" + i, ...from.fields[name] }))
      .filter((s) => s.x);
  const series = lines(data);
  const beside = (other ? lines(other) : []).map((s) => ({ ...s, kind: s.kind + " beside", raw: [], raw_x: [] }));
  const marks = chart.evaluations ? Object.entries(data.evaluations) : [];
  const latest = series.map((s) => (s.label ? s.label + " " : "") + short(s.y.findLast((v) => v !== null))).join("　");
  const { svg, point } = plot(chart, series, beside, marks);
  const value = make("span", { class: "value" }, latest);
  svg.setAttribute("aria-label", chart.title + "，现在 " + latest);
  svg.addEventListener("pointermove", (event) => {
    value.textContent = point(event) || latest;
  });
  svg.addEventListener("pointerleave", () => {
    point(null);
    value.textContent = latest;
  });
  const help = (OWN_HELP[data.stage] || {})[chart.names[0]] || chart.help;
  figure.replaceChildren(
    make("figcaption", {}, make("b", {}, chart.title), value),
    svg,
    make("small", {}, help + (beside.length && runs ? `实线：${runs[0]}；虚线：${runs[1]}。` : "")),
  );
}

function plot(chart, series, beside, marks) {
  const all = [...series, ...beside];
  const xs = all.flatMap((s) => [s.x[0], s.x.at(-1)]);
  const values = [...all.flatMap((s) => [...s.y, ...core(s.raw)]), ...marks.flatMap(([, m]) => m.y)];
  const ys = values.filter((v) => v !== null);
  const across = axis(xs, BOX.left, BOX.width - BOX.right, { whole: true });
  const up = axis(ys, BOX.height - BOX.bottom, BOX.top, chart);
  const svg = shape("svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" });
  for (const t of up.ticks) {
    svg.append(
      shape("line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: up.at(t), y2: up.at(t), class: "grid" }),
      shape("text", { x: BOX.left - 8, y: up.at(t) + 4, class: "tick end" }, up.label(t)),
    );
  }
  for (const t of across.ticks) {
    if (across.at(t) >= BOX.width - BOX.right - 34) continue; // the axis's name stands there
    svg.append(shape("text", { x: across.at(t), y: BOX.height - 8, class: "tick middle" }, across.label(t)));
  }
  svg.append(
    shape("text", { x: BOX.width - BOX.right, y: BOX.height - 8, class: "tick end" }, "步"),
    shape("text", { x: 4, y: 12, class: "tick" }, chart.unit || chart.title),
  );
  for (const s of all) {
    const dot = (x, y) => shape("circle", { cx: across.at(x), cy: up.at(y), r: 3, class: "dot " + s.kind });
    if (s.x.length === 1) svg.append(dot(s.x[0], s.y[0]));
    svg.append(
      shape("path", { d: path(s.raw_x, s.raw, across, up), class: "raw " + s.kind }),
      shape("path", { d: path(s.x, s.y, across, up), class: "line " + s.kind }),
    );
  }
  marks.forEach(([name, m], i) => {
    svg.append(shape("path", { d: path(m.x, m.y, across, up), class: "held m" + (i % 3) }));
    if (m.x.length > MOST_DOTS) return;
    m.x.forEach(
      (x, j) =>
        m.y[j] === null ||
        svg.append(
          shape(
            "circle",
            { cx: across.at(x), cy: up.at(m.y[j]), r: 3, class: "mark m" + (i % 3) },
            shape("title", {}, (name === "general" ? "通用数据 " : "留出数据 ") + short(m.y[j])),
          ),
        ),
    );
  });
  const cursor = shape("line", { y1: BOX.top, y2: BOX.height - BOX.bottom, class: "cursor" });
  svg.append(cursor);
  return { svg, point: (event) => read(event, svg, series, across, cursor) };
}

// The raw values without the few outermost, so that one spike does not flatten the curve.
function core(values) {
  const sorted = values.filter((v) => v !== null).sort((a, b) => a - b);
  const cut = Math.floor(sorted.length * 0.02);
  return sorted.slice(cut, sorted.length - cut);
}

function path(xs, ys, across, up) {
  let pen = "M";
  let d = "";
  for (let i = 0; i < xs.length; i++) {
    if (ys[i] === null) {
      pen = "M";
      continue;
    }
    d += pen + across.at(xs[i]).toFixed(1) + " " + up.at(ys[i]).toFixed(1);
    pen = "L";
  }
  return d;
}

// What lies under the pointer, as text; null moves the cursor away.
function read(event, svg, series, across, cursor) {
  cursor.setAttribute("visibility", event ? "visible" : "hidden");
  if (!event) return "";
  const box = svg.getBoundingClientRect();
  const x = across.value(((event.clientX - box.left) / box.width) * BOX.width);
  const near = series.map((s) => s.x.reduce((best, v, i) => (Math.abs(v - x) < Math.abs(s.x[best] - x) ? i : best), 0));
  const place = across.at(series[0].x[near[0]]);
  cursor.setAttribute("x1", place);
  cursor.setAttribute("x2", place);
  return "第 " + short(series[0].x[near[0]]) + " 步　" + series.map((s, i) => short(s.y[near[i]])).join(" / ");
}
