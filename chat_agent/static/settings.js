// The settings panel: sliders that say what they do, the system prompt, the key. What nobody has moved is left to the
// model's own table.

import { $, make } from "./view.js";
import { raw, read, write } from "./store.js";

const SLIDERS = [
  {
    name: "temperature",
    title: "温度",
    min: 0,
    max: 2,
    step: 0.05,
    ends: ["稳妥", "奔放"],
    help: "越高越敢选不常见的词；0 表示总选最可能的，每次回答都一样。",
  },
  {
    name: "top_p",
    title: "top-p",
    min: 0.05,
    max: 1,
    step: 0.05,
    ends: ["只挑最好的", "都可以选"],
    help: "只在加起来占到这么多概率的那些词里挑，去掉离谱的尾巴。温度为 0 时不起作用。",
  },
  {
    name: "repetition_penalty",
    title: "重复惩罚",
    min: 1,
    max: 1.5,
    step: 0.01,
    ends: ["不管", "尽量不重复"],
    help: "大于 1 时少用已经说过的词；太大会语无伦次。",
  },
  {
    name: "max_tokens",
    title: "最长回答",
    min: 16,
    max: 1024,
    step: 16,
    ends: ["短", "长"],
    help: "一个回答最多多少个词元，一个词元大约是一个词或一个字；不会超过模型的记忆。",
  },
];
// an earlier version stored all of them under "settings", moved or not
const EARLIER = { temperature: 0.3, top_p: 0.9, repetition_penalty: 1, max_tokens: 256 };

let table = { temperature: 0, top_p: 1, repetition_penalty: 1, max_tokens: 256 }; // the model's own, see useModel
let own = {}; // what was moved
const inputs = {};

// What a request says about sampling. again: the same question once more, which at temperature 0 would get the same
// reply.
export function sampling(again) {
  const said = { ...own };
  if (again && !(said.temperature ?? table.temperature)) said.temperature = 0.8;
  if (said.max_tokens) said.max_tokens = Math.min(said.max_tokens, limit("max_tokens"));
  return said;
}

// model: an entry of /v1/models
export function useModel(model) {
  const { max_new_tokens: longest, ...rest } = model.sampling;
  table = { ...table, ...rest, max_tokens: longest, context: model.context };
  Object.values(inputs).forEach((show) => show());
}

function limit(name) {
  const { max, step } = SLIDERS.find((s) => s.name === name);
  return name === "max_tokens" && table.context ? Math.max(step, Math.min(max, table.context)) : max;
}

function slider({ name, title, min, step, ends, help }) {
  const output = make("output", { for: "s-" + name });
  const input = make("input", { type: "range", id: "s-" + name, min, step, "aria-describedby": "h-" + name });
  const show = () => {
    const max = limit(name);
    const value = Math.min(own[name] ?? table[name], max);
    input.max = max;
    input.value = value;
    output.textContent = value;
    input.style.setProperty("--at", ((value - min) / (max - min)) * 100 + "%");
  };
  input.addEventListener("input", () => {
    own[name] = Number(input.value);
    show();
  });
  input.addEventListener("change", () => write("sampling", own));
  inputs[name] = show;
  show();
  return make(
    "div",
    { class: "slider" },
    make("div", { class: "row" }, make("label", { for: "s-" + name }, title), output),
    input,
    make("div", { class: "ends", "aria-hidden": "true" }, make("span", {}, ends[0]), make("span", {}, ends[1])),
    make("small", { id: "h-" + name }, help),
  );
}

function seedField() {
  const input = make("input", {
    type: "number",
    id: "s-seed",
    min: 0,
    max: 4294967295,
    step: 1,
    placeholder: "随机",
    "aria-describedby": "h-seed",
  });
  const show = () => {
    input.value = own.seed ?? "";
  };
  input.addEventListener("change", () => {
    const seed = Math.floor(Number(input.value));
    if (input.value === "" || !(seed >= 0 && seed <= 4294967295)) delete own.seed;
    else own.seed = seed;
    show();
    write("sampling", own);
  });
  inputs.seed = show;
  show();
  return make(
    "div",
    { class: "slider" },
    make("div", { class: "row" }, make("label", { for: "s-seed" }, "随机种子"), input),
    make("small", { id: "h-seed" }, "填一个数，同样的问题就得到同样的回答；不填则每次不同（温度为 0 时本来就一样）。"),
  );
}

function stored() {
  const earlier = read("settings", {}) || {};
  const moved = ([name, value]) => value !== EARLIER[name];
  const found = read("sampling", null) || Object.fromEntries(Object.entries(earlier).filter(moved));
  const kept = {};
  for (const { name, min, max } of SLIDERS) {
    if (typeof found[name] === "number" && found[name] >= min && found[name] <= max) kept[name] = found[name];
  }
  if (Number.isInteger(found.seed) && found.seed >= 0) kept.seed = found.seed;
  return kept;
}

// onSystem(text): the system prompt was changed; onKey(): the key was.
export function startSettings(onSystem, onKey) {
  own = stored();
  $("sliders").append(...SLIDERS.map(slider), seedField());
  $("reset").addEventListener("click", () => {
    own = {};
    Object.values(inputs).forEach((show) => show());
    write("sampling", own);
  });
  $("system").addEventListener("change", () => onSystem($("system").value));
  addEventListener("pagehide", () => onSystem($("system").value));
  $("key").value = raw("key");
  $("key").addEventListener("change", () => {
    raw("key", $("key").value.trim());
    onKey();
  });
}
