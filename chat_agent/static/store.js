// What the browser keeps: conversations, settings, the key. Everything read back is checked; a full or forbidden
// storage is survived.
//
// Each conversation has keys of its own, so that two tabs never write over each other's: chat.<id> {time, messages},
// title.<id>, system.<id>. What belongs to one tab only (its draft, which conversation is open) lies in the session's
// storage.

const PREFIX = "tinyseek.";
const CHAT = PREFIX + "chat.";
const MOST = 200;                       // conversations kept

export function read(name, fallback) {
  try {
    const text = localStorage.getItem(PREFIX + name);
    return text === null ? fallback : JSON.parse(text);
  } catch {
    return fallback;
  }
}

// Whether it could be kept.
export function write(name, value) {
  try {
    localStorage.setItem(PREFIX + name, JSON.stringify(value));
    return true;
  } catch {
    return false;
  }
}

// A plain string; "" removes it. area: localStorage or sessionStorage.
export function raw(name, value, area = "localStorage") {
  try {
    if (value === undefined) return window[area].getItem(PREFIX + name) || "";
    if (value) window[area].setItem(PREFIX + name, value);
    else window[area].removeItem(PREFIX + name);
  } catch { /* then it lasts as long as the page */ }
  return value || "";
}

export const ofTab = (name, value) => raw(name, value, "sessionStorage");

// Those of them that are messages.
export const checked = (messages) => messages.filter(isMessage);

const isMessage = (m) => m && (m.role === "user" || m.role === "assistant") && typeof m.content === "string";

// The id of a conversation whose key this is, or null.
export const idOf = (key) => (key && key.startsWith(CHAT) ? key.slice(CHAT.length) : null);

// -> {id, time, messages, stored: the text it was read from} or null
export function loadConversation(id) {
  try {
    const stored = localStorage.getItem(CHAT + id);
    const found = JSON.parse(stored);
    if (!found || !Array.isArray(found.messages)) return null;
    return { id, time: Number(found.time) || 0, messages: found.messages.filter(isMessage), stored };
  } catch {
    return null;
  }
}

export function loadConversations() {
  takeOverOldList();
  let keys = [];
  try { keys = Object.keys(localStorage); } catch { /* storage may be forbidden */ }
  return keys.map(idOf).filter((id) => id !== null).map(loadConversation).filter((c) => c && c.messages.length);
}

// Before each conversation had its own key, all were one list.
function takeOverOldList() {
  const list = read("conversations", null);
  raw("conversations", "");
  if (!Array.isArray(list)) return;
  for (const c of list) {
    if (!c || typeof c.id !== "string" || !Array.isArray(c.messages) || raw("chat." + c.id)) continue;
    const messages = c.messages.filter(isMessage);
    if (messages.length) put({ id: c.id, time: Number(c.time) || 0, messages });
    if (typeof c.system === "string") raw("system." + c.id, c.system);
  }
}

function put(conversation) {
  const text = JSON.stringify({ time: conversation.time, messages: conversation.messages });
  for (;;) {
    try {
      localStorage.setItem(CHAT + conversation.id, text);
      conversation.stored = text;
      return;
    } catch {
      if (!makeRoom(conversation.id)) return;           // then it lasts as long as the page
    }
  }
}

// The oldest conversation goes, never `except`. Whether there was one.
function makeRoom(except) {
  const oldest = loadConversations().filter((c) => c.id !== except).sort((a, b) => a.time - b.time)[0];
  if (oldest) removeConversation(oldest.id);
  return Boolean(oldest);
}

export function removeConversation(id) {
  for (const kind of ["chat.", "title.", "system."]) raw(kind + id, "");
  ofTab("draft." + id, "");
}

export const newId = () => crypto.getRandomValues(new Uint32Array(3)).join("-");

// Keep a conversation. One that another tab has deleted meanwhile stays deleted (-> false); where another tab has gone
// on with it differently, both are kept, ours under a new id.
export function saveConversation(conversation) {
  const { id, stored, messages } = conversation;
  const now = raw("chat." + id);
  if (stored && !now) return false;
  if (now && now !== stored && !begins(messages, loadConversation(id))) {
    conversation.id = newId();
    raw("title." + conversation.id, raw("title." + id));
    raw("system." + conversation.id, raw("system." + id));
  }
  put(conversation);
  const all = loadConversations();
  if (all.length > MOST) makeRoom(conversation.id);
  return true;
}

// Whether our messages go on from those of the other one.
function begins(messages, other) {
  return !other || (other.messages.length <= messages.length
    && other.messages.every((m, i) => m.role === messages[i].role && messages[i].content.startsWith(m.content)));
}

export function titleOf(conversation) {
  const first = conversation.messages.find((m) => m.role === "user");
  const text = raw("title." + conversation.id) || (first ? first.content.trim().replace(/\s+/g, " ") : "");
  return text ? [...text].slice(0, 24).join("") : "新对话";
}
