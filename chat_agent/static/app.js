// The page as a whole: tabs, theme, panels, models, keyboard. The conversation itself is in chat.js, the curves in
// curves.js.

import { $, make, setIcon, toast } from "./view.js";
import { ApiError, getJson } from "./api.js";
import { raw } from "./store.js";
import { startSettings, useModel } from "./settings.js";
import { Chat } from "./chat.js";
import { Curves } from "./curves.js";
import { Glass } from "./glass.js";
import { Cut } from "./cut.js";
import { Arena } from "./arena.js";

const narrow = matchMedia("(max-width: 820px)");
const chat = new Chat();
const curves = new Curves();
const glass = new Glass();
const arena = new Arena();
const cut = new Cut(() => chat.model);

// ---- tabs

const TITLES = { chat: "小寻", glass: "透视 · 小寻", arena: "并排 · 小寻", curves: "训练 · 小寻" };
const TABS = Object.keys(TITLES);

function showTab(name, focus) {
  for (const tab of TABS) {
    const button = $("tab-" + tab);
    const here = tab === name;
    button.setAttribute("aria-selected", String(here));
    button.tabIndex = here ? 0 : -1;
    $("view-" + tab).hidden = !here;
    if (here && focus) button.focus();
  }
  document.body.dataset.tab = name;
  document.title = TITLES[name];
  if (name === "curves") curves.show(); else curves.hide();
  if (name === "glass") cut.show();
  history.replaceState(null, "", name === "chat" ? location.pathname : "#" + name);
}

for (const [i, name] of TABS.entries()) {
  $("tab-" + name).addEventListener("click", () => showTab(name));
  $("tab-" + name).addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step) { event.preventDefault(); showTab(TABS[(i + step + TABS.length) % TABS.length], true); }
  });
}

// ---- theme: system, light, dark

const THEMES = { "": ["auto", "跟随系统"], light: ["sun", "浅色"], dark: ["moon", "深色"] };

function showTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
  setIcon($("theme"), THEMES[theme][0]);
  $("theme").setAttribute("aria-label", "主题：" + THEMES[theme][1]);
  $("theme").title = "主题：" + THEMES[theme][1];
}

let theme = raw("theme") in THEMES ? raw("theme") : "";
showTheme(theme);
$("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  theme = names[(names.indexOf(theme) + 1) % names.length];
  raw("theme", theme);
  showTheme(theme);
});

// ---- side panels: beside the conversation where there is room, over it on a phone

function showPanel(id, button, open) {
  $(id).hidden = !open;
  button.setAttribute("aria-expanded", String(open));
  if (narrow.matches && open) {
    if (id === "settings") closeList(); else closeSettings();
    $(id).querySelector("button, textarea").focus();
  }
}

const closeList = () => showPanel("list-panel", $("toggle-list"), false);
const closeSettings = () => showPanel("settings", $("toggle-settings"), false);

$("toggle-list").addEventListener("click", () => showPanel("list-panel", $("toggle-list"), $("list-panel").hidden));
$("toggle-settings").addEventListener("click", () => showPanel("settings", $("toggle-settings"), $("settings").hidden));
$("close-settings").addEventListener("click", () => { closeSettings(); $("toggle-settings").focus(); });
document.querySelector(".talk").addEventListener("pointerdown", () => {
  if (narrow.matches) { closeList(); closeSettings(); }
});
narrow.addEventListener("change", () => {
  closeSettings();
  showPanel("list-panel", $("toggle-list"), !narrow.matches);
});
if (narrow.matches) closeList();
chat.onSwitch = () => { if (narrow.matches) closeList(); };

// ---- models

const AGAIN = 5000;                     // while there is no model yet: a first training may be under way

async function loadModels() {
  try {
    const models = (await getJson("/v1/models")).data;
    const chosen = raw("model");
    $("model").replaceChildren(...models.map((m) =>
      make("option", { value: m.id, title: m.id + "，" + m.title }, m.label)));
    if (models.some((m) => m.id === chosen)) $("model").value = chosen;
    $("model").hidden = !models.length;
    chat.setModels(models);
    arena.setModels(models);
    if (chat.model) {
      useModel(chat.model);
      cut.show();
    } else setTimeout(loadModels, AGAIN);
  } catch (error) {
    toast(error.message);
    if (error instanceof ApiError && error.status === 401) askForKey();
  }
}

function askForKey() {
  showTab("chat");
  showPanel("settings", $("toggle-settings"), true);
  $("key").focus();
}

chat.onLocked = askForKey;
chat.onGlass = (asked, title) => {
  showTab("glass", true);
  glass.open(asked, title);
};
$("model").addEventListener("change", () => {
  raw("model", $("model").value);
  chat.describeModel();
  useModel(chat.model);
  cut.show();
});

// ---- keyboard

document.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Escape") {
    if (chat.busy) chat.stop();
    else if (narrow.matches && !$("list-panel").hidden) { closeList(); $("toggle-list").focus(); }
    else if (!$("settings").hidden) { closeSettings(); $("toggle-settings").focus(); }
  } else if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    showTab("chat");
    chat.open(null);
  }
});

startSettings((text) => chat.setSystem(text), () => { loadModels(); curves.again(); });
chat.start();
showTab(TABS.find((name) => "#" + name === location.hash) || "chat");
loadModels();
