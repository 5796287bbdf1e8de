// A reply's Markdown as elements: code, tables, lists, headings, quotes. Text only ever becomes text: there is no way
// from here to markup, an image or a script; a link opens nothing but http(s). What is no Markdown stays as it is.

import { make } from "./view.js";

const FENCE = /^ {0,3}(```+|~~~+)\s*([\w+#.-]*)\s*$/;
const HEADING = /^(#{1,4}) +(.+)$/;
const ITEM = /^( *)([-*+]|\d{1,3}[.)]) +(.*)$/;
const RULE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const INLINE =
  /(`+)([^`]+)\1|\*\*([^*\n]+)\*\*|(?<![\w*])\*([^*\s][^*\n]*)\*(?![\w*])|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)/g;

// -> list of nodes
export function rendered(text) {
  const lines = text.split("\n");
  const blocks = [];
  let plain = [];
  const flush = () => {
    if (plain.length) blocks.push(plain);
    plain = [];
  };
  for (let i = 0; i < lines.length;) {
    const found = fence(lines, i) || table(lines, i) || list(lines, i) || quote(lines, i) || heading(lines, i);
    if (found) {
      flush();
      blocks.push(found.node);
      i = found.next;
    } else plain.push(lines[i++]);
  }
  flush();
  const last = blocks.length - 1;
  return blocks.flatMap((block, i) => (Array.isArray(block) ? paragraph(block, i > 0, i < last) : [block]));
}

// Beside another block empty lines at its edge only make room, which the block has already.
function paragraph(lines, after, before) {
  let text = lines.join("\n");
  if (after) text = text.replace(/^\s*\n|^\s+$/, "");
  if (before) text = text.replace(/\n\s*$|^\s+$/, "");
  return text || !(after || before) ? [make("div", { class: "para" }, ...inline(text))] : [];
}

function inline(text) {
  const nodes = [];
  let last = 0;
  for (const found of text.matchAll(INLINE)) {
    const [whole, , code, strong, soft, label, address] = found;
    nodes.push(text.slice(last, found.index));
    if (code !== undefined) nodes.push(make("code", {}, code));
    else if (strong !== undefined) nodes.push(make("strong", {}, strong));
    else if (soft !== undefined) nodes.push(make("em", {}, soft));
    else nodes.push(make("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, label));
    last = found.index + whole.length;
  }
  nodes.push(text.slice(last));
  return nodes.filter((node) => node !== "");
}

function fence(lines, i) {
  const open = FENCE.exec(lines[i]);
  if (!open) return null;
  let end = i + 1;
  while (end < lines.length && !(lines[end].trim().startsWith(open[1]) && FENCE.test(lines[end]))) end += 1;
  const code = make("code", {}, lines.slice(i + 1, end).join("\n"));
  const label = "代码" + (open[2] ? "：" + open[2] : "");
  return { node: make("pre", { tabindex: "0", role: "region", "aria-label": label }, code), next: end + 1 };
}

const cells = (line) => line.trim().replace(/^\||\|$/g, "").split("|").map((cell) => cell.trim());

function table(lines, i) {
  if (!lines[i].includes("|") || i + 1 >= lines.length || !lines[i + 1].includes("-") || !RULE.test(lines[i + 1])) {
    return null;
  }
  const head = cells(lines[i]);
  if (head.length !== cells(lines[i + 1]).length) return null;
  let end = i + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const row = (line, tag) => make("tr", {},
    ...cells(line).slice(0, head.length).map((cell) => make(tag, {}, ...inline(cell))));
  const body = lines.slice(i + 2, end).map((line) => row(line, "td"));
  const node = make("div", { class: "wide-table", tabindex: "0", role: "group", "aria-label": "表格" },
    make("table", {}, make("thead", {}, row(lines[i], "th")), make("tbody", {}, ...body)));
  return { node, next: end };
}

function list(lines, i) {
  const first = ITEM.exec(lines[i]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = i;
  for (let found; end < lines.length && (found = ITEM.exec(lines[end])); end++) {
    if (/\d/.test(found[2]) !== ordered && found[1].length <= first[1].length) break;
    const item = make("li", {}, ...inline(found[3]));
    if (found[1].length > first[1].length) item.className = "deeper";
    items.push(item);
  }
  const start = ordered ? { start: parseInt(first[2], 10) } : {};
  return { node: make(ordered ? "ol" : "ul", start, ...items), next: end };
}

function quote(lines, i) {
  if (!lines[i].startsWith("> ")) return null;
  let end = i;
  while (end < lines.length && lines[end].startsWith(">")) end += 1;
  const text = lines.slice(i, end).map((line) => line.replace(/^> ?/, "")).join("\n");
  return { node: make("blockquote", {}, ...inline(text)), next: end };
}

function heading(lines, i) {
  const found = HEADING.exec(lines[i]);
  if (!found) return null;
  const about = { class: "heading", role: "heading", "aria-level": found[1].length + 1 };
  return { node: make("p", about, ...inline(found[2])), next: i + 1 };
}
