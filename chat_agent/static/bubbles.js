// The messages of the open conversation on the screen.

import { fill, steps } from "./acting.js";
import { rendered } from "./markdown.js";
import { versionBar } from "./versions.js";
import { $, announce, copyText, iconButton, make, setIcon, toast } from "./view.js";

export class Bubbles {
  constructor(chat) {
    this.chat = chat;
    this.follow = true; // keep the newest text in sight
    this.frame = 0;
    const scroller = $("scroller");
    scroller.addEventListener(
      "scroll",
      () => {
        this.follow = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
        $("to-bottom").hidden = this.follow;
      },
      { passive: true },
    );
    $("to-bottom").addEventListener("click", () => {
      this.follow = true;
      this.scroll();
    });
  }

  draw() {
    const { messages } = this.chat.current;
    const { busy } = this.chat;
    const items = messages.map((message, i) => this.bubble(message, i));
    const forgot = messages.at(-1)?.forgot;
    if (forgot) items.splice(forgot, 0, make("li", { class: "forgot" }, "以上内容已超出模型的记忆"));
    $("welcome").hidden = messages.length > 0;
    $("messages").replaceChildren(...items);
    $("messages").setAttribute("aria-busy", String(busy));
    $("send").hidden = busy;
    $("stop").hidden = !busy;
    this.showUse();
    this.scroll();
  }

  // How much of the model's memory the conversation takes.
  showUse() {
    const last = this.chat.current.messages.findLast((m) => m.context);
    $("use").textContent = last ? `记忆 ${Math.min(last.used, last.context)}/${last.context}` : "";
    $("use").title = last
      ? `模型一次能看 ${last.context} 个词元，这段对话用了 ${last.used} 个；满了就忘掉最早的几轮。`
      : "";
  }

  bubble(message, i) {
    const mine = message.role === "user";
    const last = i === this.chat.current.messages.length - 1;
    const writing = last && !mine && this.chat.busy;
    const text = make("div", { class: "text" });
    if (mine) text.textContent = message.content;
    else text.replaceChildren(...rendered(message.content));
    if (!mine && !message.content && !message.error && !writing) {
      text.classList.add("nothing");
      text.textContent = message.empty ? "（空的回答）" : "（没有回答）";
    }
    const copy = iconButton("copy", "复制", async () => {
      if (!(await copyText(message.content))) {
        toast("浏览器不让复制，请手动选择文字。");
        return;
      }
      setIcon(copy, "done");
      announce("已复制");
      setTimeout(() => setIcon(copy, "copy"), 1500);
    });
    const tools = make("div", { class: "tools" }, copy);
    if (mine) tools.append(iconButton("edit", "编辑后重新提问", () => this.edit(i)));
    const versions = mine || writing ? null : versionBar(message, () => this.switched());
    if (versions) tools.append(versions);
    if (!mine && last) tools.append(iconButton("retry", "重新回答", () => this.chat.retry()));
    if (!mine && message.content) {
      tools.append(iconButton("glass", "透视：这个回答是怎么来的", () => this.chat.lookInto(i)));
    }
    if (!mine && typeof message.note === "string") tools.append(make("span", { class: "note" }, message.note));
    const said = ["error", "warning"].filter((kind) => typeof message[kind] === "string");
    return make(
      "li",
      { class: "message " + message.role + (writing ? " typing" : "") },
      make("span", { class: "hidden" }, mine ? "你：" : "小寻："),
      mine ? null : steps(message),
      text,
      ...said.map((kind) => make("p", { class: kind }, message[kind])),
      tools,
    );
  }

  // The reply got longer: redrawn at most once per frame.
  grew(reply) {
    if (this.chat.current.messages.at(-1) !== reply) return;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      const text = $("messages").querySelector(".typing .text");
      if (!text || this.chat.current.messages.at(-1) !== reply) return;
      text.replaceChildren(...rendered(reply.content));
      fill($("messages").querySelector(".typing .steps"), reply);
      this.scroll();
    });
  }

  // Another version of a reply is shown.
  switched() {
    this.chat.save(this.chat.current);
    this.draw();
  }

  scroll() {
    if (this.follow) $("scroller").scrollTop = $("scroller").scrollHeight;
  }

  // The bubble becomes a text field; what came after it is asked anew.
  edit(i) {
    const { chat } = this;
    if (chat.busy || !chat.model) return;
    const item = $("messages").querySelectorAll(".message")[i];
    const area = make("textarea", { "aria-label": "编辑消息", maxlength: 20000 });
    area.value = chat.current.messages[i].content;
    const done = () => {
      if (!area.value.trim()) return;
      chat.current.messages.length = i;
      chat.send(area.value);
      $("input").focus();
    };
    const leave = () => {
      this.draw();
      $("input").focus();
    };
    area.addEventListener("input", () => grow(area));
    area.addEventListener("keydown", (event) => {
      if (event.isComposing || event.keyCode === 229) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        done();
      }
      if (event.key === "Escape") {
        event.stopPropagation();
        leave();
      }
    });
    item.classList.add("editing");
    item.replaceChildren(
      area,
      make(
        "div",
        { class: "row" },
        make("button", { type: "button", class: "plain", onclick: leave }, "取消"),
        make("button", { type: "button", class: "main", onclick: done }, "重新提问"),
      ),
    );
    grow(area);
    area.focus();
  }
}

export function grow(area) {
  area.style.height = "auto";
  area.style.height = Math.min(area.scrollHeight, innerHeight * 0.4) + "px";
}
