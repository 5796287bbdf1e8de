// What the browser keeps: conversations, settings, the key. Everything read back is checked; a full or forbidden storage is survived.

const PREFIX = "tinyseek.";
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

export function raw(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(PREFIX + name) || "";
    if (value) localStorage.setItem(PREFIX + name, value);
    else localStorage.removeItem(PREFIX + name);
  } catch { /* then it lasts as long as the page */ }
  return value || "";
}

const isMessage = (m) => m && (m.role === "user" || m.role === "assistant") && typeof m.content === "string";

export function loadConversations() {
  const found = read("conversations", []);
  if (!Array.isArray(found)) return [];
  return found.filter((c) => c && typeof c.id === "string" && Array.isArray(c.messages)).map((c) => ({
    id: c.id,
    time: Number(c.time) || 0,
    system: typeof c.system === "string" ? c.system : "",
    messages: c.messages.filter(isMessage),
  }));
}

// Oldest conversations go when there are too many or the storage is full.
export function saveConversations(all) {
  let kept = all.filter((c) => c.messages.length).sort((a, b) => b.time - a.time).slice(0, MOST);
  while (!write("conversations", kept) && kept.length > 1) kept = kept.slice(0, Math.ceil(kept.length * 0.8) - 1 || 1);
}

export function titleOf(conversation) {
  const first = conversation.messages.find((m) => m.role === "user");
  const text = first ? first.content.trim().replace(/\s+/g, " ") : "";
  return text ? [...text].slice(0, 24).join("") : "新对话";
}
