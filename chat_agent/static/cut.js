// How a text is cut into tokens, words beside characters.

import { $, make } from "./view.js";
import { postJson } from "./api.js";
import { visible } from "./glass.js";

const PAUSE = 250;                      // after the last key
const SAMPLE = "小寻在学说话：今天天气很好，我们去公园吧！";

export class Cut {
  // model(): the chosen model's entry, or undefined
  constructor(model) {
    this.model = model;
    this.timer = 0;
    $("cut-text").value = SAMPLE;
    $("cut-text").addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.show(), PAUSE);
    });
  }

  async show() {
    const turn = (this.turn = Symbol());
    const content = $("cut-text").value;
    if (!this.model()) {
      $("cut-note").textContent = "还没有模型，也就没有词表；训练完成后这里能切。";
      return;
    }
    try {
      const { tokens } = await postJson("/tokenize", { model: this.model().id, content });
      if (turn === this.turn) this.draw(content, tokens);
    } catch (error) {
      if (turn === this.turn) $("cut-note").textContent = error.message;
    }
  }

  draw(content, tokens) {
    const characters = [...content];
    const tile = (text, id) => make("li", { class: "tok plain-tok" + (text.startsWith("<0x") ? " byte" : "") },
      visible(text), id === undefined ? null : make("small", {}, String(id)));
    $("cut-words").replaceChildren(...tokens.map(({ piece, id }) => tile(piece, id)));
    $("cut-characters").replaceChildren(...characters.map((one) => tile(one)));
    const mean = tokens.length ? (characters.length / tokens.length).toFixed(2) : "0";
    $("cut-note").textContent = characters.length + " 个字切成 " + tokens.length + " 个词元，平均一个词元 " + mean
      + " 个字。词表里没有的字拆成字节，如 <0xE4>。";
  }
}
