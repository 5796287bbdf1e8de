// The tab that looks into a reply: each token's probability and rivals, head 2's guess, experts, attention.

import { $, make } from "./view.js";
import { postJson } from "./api.js";

const SHOWN = { "\n": "⏎", " ": "␣", "\t": "⇥", "<|im_end|>": "结束" };

// A token as people can see it, blanks included.
export const visible = (text) => SHOWN[text] || text.replaceAll("\n", "⏎") || "（空）";

export const percent = (p) => (p >= 0.9995 ? "100" : p >= 0.0995 ? (p * 100).toFixed(0) : (p * 100).toFixed(1)) + " %";

export class Glass {
  constructor() {
    this.asked = null;              // what the server was asked: {request, token_ids or reply}
    this.seen = null;
    this.chosen = 0;
    for (const id of ["glass-layer", "glass-head"]) $(id).addEventListener("change", () => this.look());
    $("glass-tokens").addEventListener("keydown", (event) => this.step(event));
  }

  // asked: as above; title: the question that was answered
  open(asked, title) {
    Object.assign(this, { asked, seen: null, chosen: 0 });
    $("glass-title").textContent = title;
    $("glass-layer").replaceChildren();
    $("glass-head").replaceChildren();
    this.look();
  }

  show() {}
  hide() {}

  async look() {
    const { asked } = this;
    const numbers = ["layer", "head"].map((name) => [name, $("glass-" + name).value]).filter(([, value]) => value);
    $("glass-empty").hidden = true;
    try {
      const chosen = Object.fromEntries(numbers.map(([name, value]) => [name, Number(value)]));
      const seen = await postJson("/glass", { ...asked, ...chosen });
      if (asked !== this.asked) return;
      this.seen = seen;
      this.draw();
    } catch (error) {
      this.seen = null;
      $("glass-reply").hidden = true;
      $("glass-empty").hidden = false;
      $("glass-empty").textContent = error.message;
    }
  }

  draw() {
    const { seen } = this;
    $("glass-reply").hidden = false;
    offer($("glass-layer"), seen.layers, seen.layer, "层");
    offer($("glass-head"), seen.heads, seen.head, "头");
    const read = seen.prompt.map((text) => make("li", { class: "tok read" }, visible(text)));
    const written = seen.tokens.map((token, i) => make("li", {}, this.button(token, i)));
    $("glass-prompt").replaceChildren(...read);
    $("glass-tokens").replaceChildren(...written);
    this.choose(Math.min(this.chosen, seen.tokens.length - 1));
  }

  button(token, i) {
    const guess = token.guess && token.guess.sure ? (token.guess.right ? " hit" : " miss") : "";
    const button = make("button", { type: "button", class: "tok" + guess, tabindex: "-1",
      "aria-label": visible(token.text) + "，概率 " + percent(token.p), onclick: () => this.choose(i),
      onpointerenter: (event) => { if (event.pointerType === "mouse") this.choose(i); },
      onfocus: () => this.choose(i) }, visible(token.text));
    button.style.setProperty("--p", token.p);
    return button;
  }

  step(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const target = step && this.buttons[this.chosen + step];
    if (target) {
      event.preventDefault();
      target.focus();
    }
  }

  get buttons() {
    return [...$("glass-tokens").querySelectorAll("button")];
  }

  choose(i) {
    const { seen, buttons } = this;
    this.chosen = i;
    buttons.forEach((button, j) => {
      button.tabIndex = j === i ? 0 : -1;
      button.setAttribute("aria-pressed", String(j === i));
    });
    const token = seen.tokens[i];
    const most = Math.max(...token.attention);
    [...$("glass-prompt").children, ...buttons].forEach((one, j) => {
      one.style.setProperty("--a", (token.attention[j] || 0) / most);
    });
    $("glass-detail").replaceChildren(...detail(token, seen));
  }
}

function offer(select, count, chosen, unit) {
  if (select.options.length !== count) {
    select.replaceChildren(...Array.from({ length: count }, (_, i) =>
      make("option", { value: i }, "第 " + (i + 1) + " " + unit)));
  }
  select.value = chosen;
}

// ---- what is said of one token

function detail(token, seen) {
  return [
    make("p", { class: "big" }, visible(token.text), make("span", {}, percent(token.p))),
    make("p", { class: "soft" }, "模型心里排第 " + token.rank + "；编号 " + token.id + changed(token)),
    ...candidates(token), ...guessed(token), ...experts(token, seen),
    make("p", { class: "soft" }, "词元下面的横条：写它的时候，选中的那个头在看前面哪些词元。"),
  ];
}

function changed({ p, chance }) {
  return Math.abs(chance - p) < 0.005 ? "" : "；温度和惩罚把它从 " + percent(p) + " 变成 " + percent(chance);
}

function candidates(token) {
  const all = [{ ...token, own: true }, ...token.rivals].sort((a, b) => b.p - a.p);
  const rows = all.map(({ text, p, chance, own }) => {
    const bar = make("span", { class: "share" });
    bar.style.setProperty("--p", p);
    return make("tr", { class: own ? "own" : null }, make("th", { scope: "row" }, visible(text)),
      make("td", {}, bar), make("td", {}, percent(p)), make("td", {}, percent(chance)));
  });
  const head = ["候选", "", "模型", "取样时"].map((name) => make(name ? "th" : "td", name ? { scope: "col" } : {}, name));
  return [make("table", { class: "rivals" }, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows))];
}

function guessed({ guess }) {
  if (!guess) return [];
  const what = "第二个输出头早一步猜它是“" + visible(guess.text) + "”（" + percent(guess.p) + "）：";
  const so = !guess.sure ? "把握不大，不会提出来" : guess.right ? "猜中，会被采用" : "没猜中，会被退回";
  return [make("p", { class: guess.sure ? (guess.right ? "hit" : "miss") : "soft" }, what + so + "。")];
}

function experts(token, seen) {
  if (!seen.experts) return [];
  const rows = token.experts.map((layer, i) => {
    const weights = new Map(layer || []);
    const most = Math.max(...weights.values());
    const cells = Array.from({ length: layer ? seen.experts : 0 }, (_, e) => {
      const weight = weights.get(e) || 0;
      const cell = make("span", { class: "cell", title: "专家 " + (e + 1) + "：" + percent(weight) });
      cell.style.setProperty("--p", weight / most);
      return cell;
    });
    const names = [...weights.keys()].map((e) => e + 1).join("、");
    return make("div", { class: "layer" }, make("span", {}, "第 " + (i + 1) + " 层"),
      make("span", { class: "cells", "aria-hidden": "true" }, ...cells),
      make("span", {}, layer ? "专家 " + names : "没有专家"));
  });
  return [make("p", { class: "soft" }, "写它时每层选了哪些专家（颜色越浓越重要）："), ...rows];
}
