// All conversations to a file and back. What is read is checked like what the browser keeps.

import { $, make, toast } from "./view.js";
import { checked, loadConversation, loadConversations, newId, raw, saveConversation, titleOf } from "./store.js";

const FORMAT = "tinyseek-conversations";
const LARGEST = 50e6;                   // bytes

export function startFiles(chat) {
  $("export").addEventListener("click", () => save(chat));
  $("import").addEventListener("click", () => $("import-file").click());
  $("import-file").addEventListener("change", async () => {
    const [file] = $("import-file").files;
    if (file) toast(await take(file, chat));
    $("import-file").value = "";
  });
}

export function exported() {
  const conversations = loadConversations().map((one) => ({ id: one.id, time: one.time, title: titleOf(one),
    system: raw("system." + one.id), messages: one.messages }));
  return JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);
}

function save(chat) {
  if (!chat.listed.length) {
    toast("还没有对话可以导出。");
    return;
  }
  const address = URL.createObjectURL(new Blob([exported()], { type: "application/json" }));
  const link = make("a", { href: address, download: "小寻对话 " + new Date().toISOString().slice(0, 10) + ".json" });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 60000);
}

// -> what to say
async function take(file, chat) {
  if (file.size > LARGEST) return "这个文件太大了，不像是导出的对话。";
  let found;
  try {
    found = JSON.parse(await file.text());
  } catch {
    return "读不懂这个文件：应是这里导出的 JSON。";
  }
  if (!found || found.format !== FORMAT || !Array.isArray(found.conversations)) {
    return "读不懂这个文件：应是这里导出的 JSON。";
  }
  const before = chat.all.size;
  for (const one of found.conversations) add(one, chat);
  chat.drawList();
  const count = chat.all.size - before;
  const rest = found.conversations.length - count;
  return "导入了 " + count + " 段对话" + (rest ? "，" + rest + " 段已经有了或读不懂" : "") + "。";
}

function add(one, chat) {
  const messages = one && Array.isArray(one.messages) ? checked(one.messages) : [];
  if (!messages.length) return;
  const known = typeof one.id === "string" && loadConversation(one.id);
  if (known && JSON.stringify(known.messages) === JSON.stringify(messages)) return;
  const id = known || typeof one.id !== "string" || !/^[\w-]{1,64}$/.test(one.id) ? newId() : one.id;
  const conversation = { id, time: Number(one.time) || Date.now(), messages, stored: "" };
  if (typeof one.title === "string" && one.title) raw("title." + id, one.title.slice(0, 60));
  if (typeof one.system === "string") raw("system." + id, one.system.slice(0, 8000));
  saveConversation(conversation);
  chat.all.set(conversation.id, conversation);
}
