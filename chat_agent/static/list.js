// The list of all conversations: opening, renaming, deleting.

import { $, announce, iconButton, make } from "./view.js";
import { raw, titleOf } from "./store.js";

export function drawList(chat) {
  if ($("conversations").querySelector("input")) return;          // somebody is renaming one
  const wanted = $("search").value.trim().toLowerCase();
  const found = chat.listed.filter((c) => !wanted || holds(c, wanted));
  $("search").hidden = !chat.listed.length;
  $("conversations").replaceChildren(...found.map((c) => entry(chat, c)));
  if (wanted && !found.length) $("conversations").append(make("li", { class: "hint" }, "没有找到"));
}

// Whether the words stand in a conversation's name or in what was said.
const holds = (conversation, wanted) => titleOf(conversation).toLowerCase().includes(wanted)
  || conversation.messages.some((m) => m.content.toLowerCase().includes(wanted));

function entry(chat, conversation) {
  const title = titleOf(conversation);
  const item = make("li", {},
    make("button", { type: "button", class: "entry", "aria-current": conversation === chat.current ? "true" : null,
      onclick: () => chat.open(conversation) }, title),
    iconButton("edit", "改名 " + title, () => rename(chat, conversation, item)), removeButton(chat, conversation));
  return item;
}

function rename(chat, conversation, item) {
  const input = make("input", { class: "rename", "aria-label": "对话的名字", maxlength: 60 });
  input.value = titleOf(conversation);
  let over = false;
  const done = (keep) => {
    if (over) return;
    over = true;
    if (keep && !conversation.gone) raw("title." + conversation.id, input.value.trim());
    input.remove();
    drawList(chat);
  };
  input.addEventListener("keydown", (event) => {
    if (event.isComposing || event.keyCode === 229) return;
    if (event.key === "Enter") done(true);
    if (event.key === "Escape") { event.stopPropagation(); done(false); }
  });
  input.addEventListener("blur", () => done(true));
  item.replaceChildren(input);
  input.focus();
  input.select();
}

// Deleting asks once more, in place.
function removeButton(chat, conversation) {
  const button = iconButton("trash", "删除 " + titleOf(conversation), () => {
    if (button.dataset.sure) { chat.remove(conversation); return; }
    button.dataset.sure = "1";
    button.setAttribute("aria-label", "再按一次，删除 " + titleOf(conversation));
    announce("再按一次确认删除");
    button.replaceChildren("删除？");
    setTimeout(() => { if (button.isConnected) drawList(chat); }, 4000);
  });
  return button;
}
