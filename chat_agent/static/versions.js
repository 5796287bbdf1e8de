// A question answered again keeps the earlier answers: message.versions holds all of them, message.at is the one shown.

import { iconButton, make } from "./view.js";

const PARTS = ["content", "note", "error", "warning", "empty", "ids", "how", "model", "used", "context", "rounds"];

const known = (message) => (Array.isArray(message.versions) ? message.versions : [])
  .filter((one) => one && typeof one.content === "string");

const taken = (message) =>
  Object.fromEntries(PARTS.filter((name) => name in message).map((name) => [name, message[name]]));

// What the next answer to the same question carries on from `message`.
export function earlier(message) {
  settle(message);
  return { versions: message.versions };
}

// The answer as it is now becomes the last of its versions, unless it is one already.
export function settle(message) {
  message.versions = known(message);
  if (!(message.at in message.versions)) {
    message.versions.push(taken(message));
    message.at = message.versions.length - 1;
  }
}

// ‹ 1/2 ›, or null where there is one version only. onSwitch: it was changed.
export function versionBar(message, onSwitch) {
  const count = known(message).length + (message.at in known(message) ? 0 : 1);
  if (count < 2) return null;
  const at = message.at in known(message) ? message.at : count - 1;
  const go = (to) => {
    settle(message);
    for (const name of PARTS) delete message[name];
    Object.assign(message, message.versions[to], { at: to });
    onSwitch();
  };
  const arrow = (icon, label, to) => {
    const button = iconButton(icon, label, () => go(to));
    button.disabled = to < 0 || to >= count;
    return button;
  };
  return make("span", { class: "versions" }, arrow("left", "上一个回答", at - 1),
    make("span", {}, at + 1 + "/" + count), arrow("right", "下一个回答", at + 1));
}
