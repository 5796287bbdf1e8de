// Building blocks of the page. Text always goes in as text, never as markup.

export const $ = (id) => document.getElementById(id);

// make("button", {class: "x", "aria-label": "…", onclick: f}, child, "text", …)
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

export function shape(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

export function icon(name) {
  return shape("svg", { "aria-hidden": "true" }, shape("use", { href: "#i-" + name }));
}

export function setIcon(button, name) {
  button.querySelector("use").setAttribute("href", "#i-" + name);
}

export function iconButton(name, label, onclick) {
  const about = { type: "button", class: "icon small", "aria-label": label, title: label };
  return make("button", { ...about, onclick }, icon(name));
}

let toastTimer = 0;

export function toast(text) {
  const element = $("toast");
  element.textContent = text;
  element.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { element.hidden = true; }, 5000);
}

// For screen readers: one sentence when something is over, not a word per token.
export function announce(text) {
  $("announce").textContent = text;
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {                             // no clipboard without https or permission: the old way
    const area = make("textarea", { class: "hidden", readonly: true, "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
