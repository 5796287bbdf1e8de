// The settings panel: sliders that say what they do, the system prompt, the key.

import { $, make } from "./view.js";
import { raw, read, write } from "./store.js";

const SLIDERS = [
  { name: "temperature", title: "温度", min: 0, max: 2, step: 0.05, value: 0.3, ends: ["稳妥", "奔放"],
    help: "越高越敢选不常见的词；0 表示总选最可能的，每次回答都一样。" },
  { name: "top_p", title: "top-p", min: 0.05, max: 1, step: 0.05, value: 0.9, ends: ["只挑最好的", "都可以选"],
    help: "只在加起来占到这么多概率的那些词里挑，去掉离谱的尾巴。" },
  { name: "repetition_penalty", title: "重复惩罚", min: 1, max: 1.5, step: 0.01, value: 1, ends: ["不管", "尽量不重复"],
    help: "大于 1 时少用已经说过的词；太大会语无伦次。" },
  { name: "max_tokens", title: "最长回答", min: 16, max: 1024, step: 16, value: 256, ends: ["短", "长"],
    help: "一个回答最多多少个词元，一个词元大约是一个词或一个字。" },
];

const defaults = Object.fromEntries(SLIDERS.map((s) => [s.name, s.value]));
const values = { ...defaults, seed: null };
const inputs = {};

// again: the same question once more, which at temperature 0 would get the same reply.
export function sampling(again) {
  const { seed, ...rest } = values;
  if (again && !rest.temperature) rest.temperature = 0.8;
  return seed === null ? rest : { ...rest, seed };
}

function keep() {
  write("settings", values);
}

function slider({ name, title, min, max, step, ends, help }) {
  const output = make("output", { for: "s-" + name });
  const input = make("input", { type: "range", id: "s-" + name, min, max, step, "aria-describedby": "h-" + name });
  const show = () => {
    input.value = values[name];
    output.textContent = values[name];
    input.style.setProperty("--at", ((values[name] - min) / (max - min)) * 100 + "%");
  };
  input.addEventListener("input", () => { values[name] = Number(input.value); show(); keep(); });
  inputs[name] = show;
  show();
  return make("div", { class: "slider" },
    make("div", { class: "row" }, make("label", { for: "s-" + name }, title), output),
    input,
    make("div", { class: "ends", "aria-hidden": "true" }, make("span", {}, ends[0]), make("span", {}, ends[1])),
    make("small", { id: "h-" + name }, help));
}

function seedField() {
  const input = make("input", { type: "number", id: "s-seed", min: 0, max: 4294967295, step: 1, placeholder: "随机", "aria-describedby": "h-seed" });
  const show = () => { input.value = values.seed === null ? "" : values.seed; };
  input.addEventListener("change", () => {
    const seed = Math.floor(Number(input.value));
    values.seed = input.value === "" || !(seed >= 0 && seed <= 4294967295) ? null : seed;
    show();
    keep();
  });
  inputs.seed = show;
  show();
  return make("div", { class: "slider" },
    make("div", { class: "row" }, make("label", { for: "s-seed" }, "随机种子"), input),
    make("small", { id: "h-seed" }, "填一个数，同样的问题就得到同样的回答；不填则每次不同。"));
}

// onSystem(text): the system prompt was changed; onKey(): the key was.
export function startSettings(onSystem, onKey) {
  const stored = read("settings", {}) || {};
  for (const { name, min, max } of SLIDERS) {
    if (typeof stored[name] === "number" && stored[name] >= min && stored[name] <= max) values[name] = stored[name];
  }
  if (Number.isInteger(stored.seed) && stored.seed >= 0) values.seed = stored.seed;
  $("sliders").append(...SLIDERS.map(slider), seedField());
  $("reset").addEventListener("click", () => {
    Object.assign(values, defaults, { seed: null });
    Object.values(inputs).forEach((show) => show());
    keep();
  });
  $("system").addEventListener("input", () => onSystem($("system").value));
  $("key").value = raw("key");
  $("key").addEventListener("change", () => { raw("key", $("key").value.trim()); onKey(); });
}
