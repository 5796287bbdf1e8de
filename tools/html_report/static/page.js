"use strict";
// The page from its data: sections per stage, two runs over each other in a comparison. Only textContent is ever written.

const data = JSON.parse(document.getElementById("data").textContent);
const [first, second] = data.subjects;
const app = document.getElementById("app");
const COLORS = ["--a", "--b"];

function clock(seconds) {
  if (seconds === null || seconds === undefined) return "—";
  const s = Math.round(seconds), h = Math.floor(s / 3600), m = Math.floor(s % 3600 / 60);
  return h ? `${h} 小时 ${m} 分` : m ? `${m} 分 ${s % 60} 秒` : `${s} 秒`;
}

function show(value) {
  if (value === null || value === undefined) return "无";
  if (typeof value === "number") return Number.isInteger(value) ? String(value) : short(value);
  if (typeof value === "boolean") return value ? "是" : "否";
  return typeof value === "string" ? value : JSON.stringify(value);
}

function table(head, rows, numeric = []) {
  const row = (cells, tag, cls) => element("tr", cls ? {class: cls} : {}, cells.map((c, i) => {
    const cell = element(tag, numeric.includes(i) ? {class: "n"} : {});
    cell.append(c instanceof Node ? c : String(c));
    return cell;
  }));
  return element("div", {class: "scroll"}, element("table", {}, head ? row(head, "th") : null, rows.map(r => row(r.cells || r, "td", r.cls))));
}

// ---- pairs of runs: the same stage in A and B; two single runs are a pair whatever their stages ----

function pairs() {
  if (!second) return first.runs.map(run => [run]);
  const out = [], rest = [...second.runs];
  for (const run of first.runs) {
    const at = rest.findIndex(other => other.stage === run.stage);
    out.push(at < 0 ? [run, null] : [run, rest.splice(at, 1)[0]]);
  }
  if (out.length === 1 && !out[0][1] && rest.length) out[0][1] = rest.shift();
  return [...out, ...rest.map(run => [null, run])];
}

function label(k) { return second ? "AB"[k] + " " : ""; }

function tiles(pair) {
  const facts = [["最后的损失", r => short(r.last.loss)], ["留出损失（最低）", r => {
    const best = Object.keys(r.last).filter(k => k.startsWith("留出损失")).map(k => r.last[k]);
    return best.length ? short(Math.min(...best)) : "—";
  }], ["步数", r => r.steps.toLocaleString("en")], ["用时", r => clock(r.seconds)], ["每秒词元", r => short(r.last.tok_s)],
    ["参数", r => short(+r.header.params)], ["设备", r => [r.header.device, r.header.precision].filter(Boolean).join(" · ") || "—"]];
  return element("div", {class: "tiles"}, facts.map(([name, of]) => {
    const [a, b] = pair.map(r => r ? of(r) : "—");
    return a === "—" && (b === undefined || b === "—") ? null :
      element("div", {class: "tile"}, element("span", {text: name}), element("b", {text: a}), b === undefined ? null : element("span", {class: "vs", text: "B " + b}));
  }));
}

const CURVES = [
  ["总损失", ["loss"], {note: "实线：训练；圆点：留出数据（没有训练过的）", evals: true, wide: true}],
  ["两个头的交叉熵", ["ce_1", "ce_2"], {note: "头一预测下一个词元，头二预测再下一个"}],
  ["困惑度", ["ppx_1", "ppx_2"], {note: "平均在多少个词元里犹豫，对数刻度", log: true}],
  ["学习率", ["lr"], {exact: true}],
  ["梯度范数（裁剪前）", ["grad_norm"], {note: "突然变大，多半是坏数据或学习率太高"}],
  ["专家负载均衡 Lexp", ["lexp"], {note: "0 表示各专家用得一样多"}],
  ["路由的熵", ["entropy"], {note: "越低，路由选专家越果断"}],
  ["每秒词元", ["tok_s"], {}],
];
const NAMES = {loss: "训练", ce_1: "头一", ce_2: "头二", ppx_1: "头一", ppx_2: "头二", lr: "学习率", grad_norm: "梯度范数", lexp: "Lexp", entropy: "熵", tok_s: "词元/秒"};

function curveCards(pair) {
  const cards = [];
  for (const [title, fields, options] of CURVES) {
    const series = [];
    pair.forEach((run, k) => {
      if (!run) return;
      fields.forEach((field, f) => {
        const curve = run.curves[field];
        if (curve && !(fields[0] === "ce_1" && !run.curves.ce_2))
          series.push({...curve, name: label(k) + NAMES[field], color: second ? (f ? ["--c", "--d"][k] : COLORS[k]) : ["--a", "--c"][f], exact: options.exact});
      });
      if (options.evals) Object.entries(run.evals).forEach(([name, points], n) =>
        series.push({...points, name: `${label(k)}留出 ${name === "held" || name === "eval" ? "" : name}`.trim(), color: second ? COLORS[k] : ["--b", "--d", "--c"][n % 3], dots: true}));
    });
    const bad = pair.flatMap(run => run ? run.events.filter(e => ["spike", "skipped"].includes(e.kind)) : []);
    if (series.length) cards.push(lineChart({title, series, ...options, marks: options.evals ? bad.map(e => ({x: +e.step, color: e.kind === "skipped" ? "--bad" : "--warn"})) : []}));
  }
  pair.forEach((run, k) => { if (run && run.heat) cards.push(heatChart(run.heat, label(k) + "专家负载：每层每个专家分到的份额", "每格是一段时间的平均；灰白为均分，红为多用，蓝为少用。整行深蓝的专家几乎没有被用到。")); });
  return element("div", {class: "grid"}, cards);
}

// ---- the other parts ----

function checkCard(run, name) {
  const check = run.data_check;
  if (!check) return null;
  const level = /不能训练|先别/.test(check.verdict) ? "stop" : /放心/.test(check.verdict) ? "ok" : "warn";
  const part = check.share < 1 ? `（抽查 ${(100 * check.share).toFixed(check.share < 0.1 ? 1 : 0)} %）` : "";
  return element("div", {class: "card"}, element("h3", {text: name + "数据体检" + part}), element("div", {class: level, text: check.verdict || ""}),
    element("div", {class: "note", text: `可用 ${show(check.rows)} 行，坏行 ${show(check.bad_lines)} 行${check.late ? "（写报告时查的）" : ""}`}));
}

function preflightCard(run, name) {
  const p = run.preflight;
  if (!p) return null;
  const rows = [["第一个损失", p.first_loss], ["每步", p.seconds_per_step && short(p.seconds_per_step) + " 秒"], ["预计用时", p.seconds_left && clock(p.seconds_left)], ["实际用时", clock(run.seconds)],
    ["参数", p.parameters && `${short(p.parameters)}，每个词元用到 ${short(p.active)}`], ["约需内存", p.memory_needed && `${short(p.memory_needed / 1e6)} MB，可用 ${short(p.memory_there / 1e6)} MB`]];
  return element("div", {class: "card"}, element("h3", {text: name + "训练前检查"}), table(null, rows.filter(r => r[1])));
}

function samplesCard(run, name) {
  if (!run.samples.length) return null;
  const box = element("div", {class: "chat"});
  let step = null;
  for (const s of run.samples) {
    if (s.step !== step) box.append(element("div", {class: "step", text: `第 ${show(step = s.step)} 步`}));
    box.append(element("p", {class: "q", text: s.prompt}), element("p", {text: s.reply}));
  }
  return element("div", {class: "card"}, element("h3", {text: name + "训练途中的样例"}), box);
}

function diaryCard(run, name) {
  const words = {save: "保存", eval: "评估", spike: "损失突升", skipped: "跳过的步", warning: "警告", early_stop: "提前停止", bad_rows: "坏行"};
  const rest = run.events.filter(e => !["eval", "save"].includes(e.kind));
  const box = element("div", {class: "card"}, element("h3", {text: name + "训练日记"}),
    element("div", {}, Object.entries(run.event_counts).map(([kind, n]) => element("span", {class: "tag", text: `${words[kind] || kind} ${n}`}))));
  if (!Object.keys(run.event_counts).length) return null;
  if (rest.length) box.append(table(["步", "事件", "详情"], rest.slice(-40).map(e => [show(e.step), words[e.kind] || e.kind,
    e.text || Object.entries(e).filter(([k]) => !["kind", "step"].includes(k)).map(([k, v]) => `${k} ${show(v)}`).join("　")])));
  return box;
}

function machineCard(run, name) {
  const words = {device: "设备", precision: "精度", steps: "总步数", params: "参数", trainable: "可训练参数", ranks: "进程数", code: "代码版本", stage: "阶段", start: "开始"};
  const rows = Object.entries({...run.header, ...run.machine}).filter(([k, v]) => k !== "run" && v !== null).map(([k, v]) => [words[k] || k, show(v)]);
  rows.push(...Object.entries(run.identity).map(([k, v]) => [k, v]));
  return element("div", {class: "card"}, element("h3", {text: name + "机器与版本"}), table(null, rows));
}

function configBlock(run, name, other) {
  const groups = {};
  for (const key of [...Object.keys(data.groups).filter(k => k in run.config), ...Object.keys(run.config).filter(k => !(k in data.groups))])
    (groups[data.groups[key] || "其他"] ||= []).push(key);
  if (!Object.keys(run.config).length) return null;
  const box = element("details", {}, element("summary", {text: name + "配置"}),
    element("div", {class: "note", text: other ? "着色的行在两次训练中不同" : "着色的行改过默认值"}));
  for (const [group, keys] of Object.entries(groups)) {
    box.append(element("div", {class: "group", text: group}), table(null, keys.map(key => {
      const value = run.config[key], against = other ? other.config[key] : data.defaults[key];
      const cell = element("span", {text: key, style: "font-family: ui-monospace, Consolas, monospace; font-size: 12.5px"});
      const path = typeof against === "string" && against.includes("{") || /path|dir|file/.test(key) && !other;
      return {cls: !path && JSON.stringify(value ?? null) !== JSON.stringify(against ?? null) ? "changed" : "", cells: [cell, show(value), data.help[key] || ""]};
    })));
  }
  return box;
}

function differencesCard() {
  const rows = [];
  let last = null;
  for (const [group, what, a, b] of data.differences) {
    const count = data.differences.filter(d => d[0] === group).length;
    if (group !== last) rows.push({cls: "head", cells: [`${last = group}（${count} 项）`, "", ""]});
    const more = typeof a === "number" && typeof b === "number" && ["结果", "分数"].includes(group) ? `（${b > a ? "+" : "−"}${short(Math.abs(b - a))}）` : "";
    rows.push([what, show(a), show(b) + more]);
  }
  return element("section", {id: "diff"}, element("h2", {text: "两次训练的不同"}), element("div", {class: "card"},
    element("div", {class: "legend"}, element("span", {class: "dot-a", text: "A " + first.name}), element("span", {class: "dot-b", text: "B " + second.name})),
    rows.length ? table(["项目", "A", "B"], rows) : element("div", {text: "配置、数据、代码和结果都相同。"})));
}

function scoresSection() {
  const reports = data.subjects.map(s => s.report || {}), cards = [];
  reports.forEach((report, k) => {
    const scores = Object.entries(report.scores || {}).filter(([, s]) => s && s.by_task);
    if (scores.length) {
      const [, last] = scores[scores.length - 1], tasks = Object.keys(last.by_task).sort((a, b) => last.by_task[b] - last.by_task[a]);
      const percent = v => v === undefined || v === null ? "—" : (100 * v).toFixed(1) + " %";
      const bar = task => element("div", {class: "bar"}, element("i", {style: `width:${100 * last.by_task[task]}%`}), last.chance ? element("u", {style: `left:${100 * (last.chance[task] || 0)}%`, title: "瞎猜"}) : null);
      cards.push(element("div", {class: "card wide"}, element("h3", {text: label(k) + "留出题的正确率"}), element("div", {class: "note", text: "条：最后一个阶段；竖线：瞎猜"}),
        table(["任务", ...scores.map(([n]) => n), "瞎猜", ""], [["全部", ...scores.map(([, s]) => percent(s.overall)), "", ""],
          ...tasks.map(t => [t, ...scores.map(([, s]) => percent(s.by_task[t])), percent((last.chance || {})[t]), bar(t)])], [...scores.map((_, i) => i + 1), scores.length + 1])));
    }
    const facts = [...Object.entries(report.bits_per_char || {}).map(([n, v]) => [`每字比特 ${n}`, short(v)]), ...Object.entries(report.tokens_seen || {}).map(([n, v]) => [`见过的词元 ${n}`, short(v)]),
      ...Object.entries(report.seconds || {}).map(([n, v]) => [`用时 ${n}`, clock(v)]), ...(report.peak_rss_mb ? [["最高内存", short(report.peak_rss_mb) + " MB"]] : [])];
    if (facts.length) cards.push(element("div", {class: "card"}, element("h3", {text: label(k) + "整条流水线"}), table(null, facts, [1])));
    if ((report.samples || []).length) cards.push(element("div", {class: "card"}, element("h3", {text: label(k) + "最后的对话"}), element("div", {class: "chat"},
      report.samples.flatMap(([q, a]) => [element("p", {class: "q", text: "你：" + q}), element("p", {text: "小寻：" + a})]))));
    if (report.machine) cards.push(element("div", {class: "card"}, element("h3", {text: label(k) + "机器"}), table(null, Object.entries(report.machine).filter(([, v]) => v !== null).map(([n, v]) => [n, show(v)]))));
  });
  return cards.length ? element("section", {id: "scores"}, element("h2", {text: "分数与用时"}), element("div", {class: "grid"}, cards)) : null;
}

function runSection(pair, number) {
  const head = pair[0] || pair[1], cards = [];
  pair.forEach((run, k) => { if (run) cards.push(checkCard(run, label(k)), preflightCard(run, label(k)), samplesCard(run, label(k)), diaryCard(run, label(k)), machineCard(run, label(k))); });
  const grid = element("div", {class: "grid loose"}, cards.filter(Boolean));
  return element("section", {id: "run" + number}, element("h2", {}, head.title, element("small", {text: pair.filter(Boolean).map(r => r.id).join("　对　")})),
    tiles(pair), curveCards(pair), grid, pair.map((run, k) => run ? configBlock(run, label(k), second ? pair[1 - k] : null) : null));
}

// ---- theme and frame ----

function setTheme(name) { document.documentElement.dataset.theme = name; redraw(); }

function frame(sections) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)"), theme = element("button", {text: "深 / 浅", title: "换深色或浅色"});
  document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
  dark.addEventListener("change", e => setTheme(e.matches ? "dark" : "light"));
  theme.addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  const slider = element("input", {type: "range", min: 0, max: 0.98, step: 0.02, value: smoothing, "aria-label": "曲线平滑"});
  slider.addEventListener("input", () => { smoothing = +slider.value; redraw(); });
  const title = second ? "小寻 TinySeek 训练比较" : "小寻 TinySeek 训练报告";
  app.append(element("header", {}, element("h1", {text: title}), element("div", {class: "sub", text: second ? `A ${first.name}　B ${second.name}　${data.made}` : data.made}),
    element("div", {class: "tools"}, element("label", {}, "平滑 ", slider), theme)),
  element("nav", {}, sections.map(s => element("a", {href: "#" + s.id, text: s.querySelector("h2").firstChild.textContent}))), ...sections,
  element("footer", {text: "这个文件自成一体，打开时不联网。把鼠标（或手指）放在图上看数值。"}));
}

frame([second ? differencesCard() : null, ...pairs().map(runSection), scoresSection()].filter(Boolean));
redraw();
let waiting = null;
window.addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(redraw, 80); });
document.addEventListener("toggle", redraw, true);
