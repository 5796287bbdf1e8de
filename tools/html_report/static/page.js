"use strict";
// The page from its data: sections per stage, several runs over each other in a comparison. Only textContent is ever
// written.

const data = JSON.parse(document.getElementById("data").textContent);
const subjects = data.subjects,
  several = subjects.length > 1;
const app = document.getElementById("app");
const COLORS = ["--a", "--b", "--c", "--d", "--e", "--f"];

function clock(seconds) {
  if (seconds === null || seconds === undefined) return "—";
  const s = Math.round(seconds),
    h = Math.floor(s / 3600),
    m = Math.floor((s % 3600) / 60);
  return h ? `${h} 小时 ${m} 分` : m ? `${m} 分 ${s % 60} 秒` : `${s} 秒`;
}

function show(value) {
  if (value === null || value === undefined) return "无";
  if (typeof value === "number")
    return String(Number.isInteger(value) ? value : +value.toPrecision(6)).replace("e-", "e−");
  if (typeof value === "boolean") return value ? "是" : "否";
  return typeof value === "string" ? value : JSON.stringify(value);
}

function table(head, rows, numeric = []) {
  const row = (cells, tag, cls) =>
    element(
      "tr",
      cls ? { class: cls } : {},
      cells.map((c, i) => {
        const cell = element(tag, numeric.includes(i) ? { class: "n" } : {});
        cell.append(c instanceof Node ? c : String(c));
        return cell;
      }),
    );
  return element(
    "div",
    { class: "scroll" },
    element(
      "table",
      {},
      head ? row(head, "th") : null,
      rows.map((r) => row(r.cells || r, "td", r.cls)),
    ),
  );
}

// ---- groups of runs: the same stage of every subject, null where it has none; single runs are a group whatever their
// stages ----

function groups() {
  if (!several) return subjects[0].runs.map((run) => [run]);
  if (subjects.every((s) => s.runs.length === 1)) return [subjects.map((s) => s.runs[0])];
  const stages = [...new Set(subjects.flatMap((s) => s.runs.map((run) => run.stage)))];
  return stages.map((stage) => subjects.map((s) => s.runs.find((run) => run.stage === stage) || null));
}

function letter(k) {
  return "ABCDEF"[k];
}
function label(k) {
  return several ? letter(k) + " " : "";
}
function stageName(stage) {
  return data.stages[stage] || stage;
}
function taskName(task) {
  return data.tasks[task] || task;
}

function tiles(group) {
  const facts = [
    ["最后的损失", (r) => short(r.last.loss)],
    [
      "留出数据的损失（最低）",
      (r) => {
        const best = Object.keys(r.last)
          .filter((k) => k.startsWith("留出数据"))
          .map((k) => r.last[k]);
        return best.length ? short(Math.min(...best)) : "—";
      },
    ],
    ["步数", (r) => r.steps.toLocaleString("en")],
    ["用时", (r) => clock(r.seconds)],
    ["每秒词元", (r) => short(r.last.tok_s)],
    ["参数", (r) => short(+r.header.params)],
    ["设备", (r) => [r.header.device, r.header.precision].filter(Boolean).join(" · ") || "—"],
  ];
  return element(
    "div",
    { class: "tiles" },
    facts.map(([name, of]) => {
      const values = group.map((r) => (r ? of(r) : "—"));
      return values.every((v) => v === "—")
        ? null
        : element(
            "div",
            { class: "tile" },
            element("span", { text: name }),
            element("b", { text: values[0] }),
            values
              .slice(1)
              .map((v, k) =>
                element("span", { class: "vs", style: `color: var(${COLORS[k + 1]})`, text: `${letter(k + 1)} ${v}` }),
              ),
          );
    }),
  );
}

const CURVES = [
  ["总损失", ["loss"], { note: "实线：训练；圆点：留出数据（没有训练过的）", evals: true, wide: true }],
  ["两个头的交叉熵", ["ce_1", "ce_2"], { note: "头一预测下一个词元，头二预测再下一个" }],
  ["困惑度", ["ppx_1", "ppx_2"], { note: "平均在多少个词元里犹豫，对数刻度", log: true }],
  ["学习率", ["lr"], { exact: true }],
  ["梯度范数（裁剪前）", ["grad_norm"], { note: "突然变大，多半是坏数据或学习率太高" }],
  ["专家负载均衡 Lexp", ["lexp"], { note: "0 表示各专家用得一样多" }],
  ["路由的熵", ["entropy"], { note: "越低，路由选专家越果断" }],
  ["每秒词元", ["tok_s"], {}],
  ["奖励", ["reward", "success"], { note: "取样的回答平均得多少分、答对多少" }],
  ["学不到的题", ["solved", "hopeless"], { note: "整组都对或都错的提问" }],
  ["回答的词元数", ["length"], { note: "奖励涨、回答越来越长或越短，多半是在钻空子" }],
  ["用工具", ["called", "failed"], { note: "叫过工具的回答的比例；平均一个回答里出错的调用" }],
  ["说法的熵", ["policy_entropy"], { note: "接近 0 就学不到新东西了" }],
  ["被裁剪的比例、KL", ["clip_share", "kl"], {}],
  ["取样与训练的概率差", ["gap"], { note: "同一个词元的对数概率，应接近 0" }],
  ["每秒回答", ["replies_s"], {}],
];
const NAMES = {
  loss: "训练",
  ce_1: "头一",
  ce_2: "头二",
  ppx_1: "头一",
  ppx_2: "头二",
  lr: "学习率",
  grad_norm: "梯度范数",
  lexp: "Lexp",
  entropy: "熵",
  tok_s: "词元/秒",
  reward: "奖励",
  success: "答对",
  solved: "全对",
  hopeless: "全错",
  length: "词元",
  called: "叫过",
  failed: "出错",
  policy_entropy: "熵",
  clip_share: "被裁剪",
  kl: "KL",
  gap: "差",
  replies_s: "回答/秒",
};

function curveCards(group) {
  const cards = [];
  for (const [title, fields, options] of CURVES) {
    const series = [];
    group.forEach((run, k) => {
      if (!run) return;
      (subjects.length > 2 ? fields.slice(0, 1) : fields).forEach((field, f) => {
        const curve = run.curves[field];
        if (curve && !(fields[0] === "ce_1" && !run.curves.ce_2))
          series.push({
            ...curve,
            name: label(k) + NAMES[field],
            color: several ? COLORS[k + 2 * f] : ["--a", "--c"][f],
            exact: options.exact,
          });
      });
      if (options.evals)
        Object.entries(run.evals).forEach(([name, points], n) =>
          series.push({
            ...points,
            name: label(k) + (data.sets[name] || "留出数据 " + name),
            color: several ? COLORS[k] : ["--b", "--d", "--c"][n % 3],
            dots: true,
          }),
        );
    });
    const bad = group.flatMap((run) => (run ? run.events.filter((e) => ["spike", "skipped"].includes(e.kind)) : []));
    if (series.length)
      cards.push(
        lineChart({
          title,
          series,
          ...options,
          marks: options.evals
            ? bad.map((e) => ({ x: +e.step, color: e.kind === "skipped" ? "--bad" : "--warn" }))
            : [],
        }),
      );
  }
  group.forEach((run, k) => {
    if (run && run.heat)
      cards.push(
        heatChart(
          run.heat,
          label(k) + "专家负载：每层每个专家分到的份额",
          "每格是一段时间的平均；灰白为均分，红为多用，蓝为少用。整行深蓝的专家几乎没有被用到。",
        ),
      );
  });
  return element("div", { class: "grid" }, cards);
}

// ---- the other parts ----

function checkCard(run, name) {
  const check = run.data_check;
  if (!check) return null;
  const level = /不能训练|先别/.test(check.verdict) ? "stop" : /放心/.test(check.verdict) ? "ok" : "warn";
  const part = check.share < 1 ? `（抽查 ${(100 * check.share).toFixed(check.share < 0.1 ? 1 : 0)} %）` : "";
  return element(
    "div",
    { class: "card" },
    element("h3", { text: name + "数据体检" + part }),
    element("div", { class: level, text: check.verdict || "" }),
    element("div", {
      class: "note",
      text: `可用 ${show(check.rows)} 行，坏行 ${show(check.bad_lines)} 行${check.late ? "（写报告时查的）" : ""}`,
    }),
  );
}

function preflightCard(run, name) {
  const p = run.preflight;
  if (!p) return null;
  const rows = [
    ["第一个损失", p.first_loss],
    ["每步", p.seconds_per_step && short(p.seconds_per_step) + " 秒"],
    ["预计用时", p.seconds_left && clock(p.seconds_left)],
    ["实际用时", clock(run.seconds)],
    ["参数", p.parameters && `${short(p.parameters)}，每个词元用到 ${short(p.active)}`],
    ["约需内存", p.memory_needed && `${short(p.memory_needed / 1e6)} MB，可用 ${short(p.memory_there / 1e6)} MB`],
  ];
  return element(
    "div",
    { class: "card" },
    element("h3", { text: name + "训练前检查" }),
    table(
      null,
      rows.filter((r) => r[1]),
    ),
  );
}

function samplesCard(run, name) {
  if (!run.samples.length) return null;
  const box = element("div", { class: "chat" });
  let step = null;
  for (const s of run.samples) {
    if (s.step !== step) box.append(element("div", { class: "step", text: `第 ${show((step = s.step))} 步` }));
    box.append(element("p", { class: "q", text: s.prompt }), element("p", { text: s.reply }));
  }
  return element("div", { class: "card" }, element("h3", { text: name + "训练途中的样例" }), box);
}

function diaryCard(run, name) {
  const words = {
    save: "保存",
    eval: "评估",
    spike: "损失突升",
    skipped: "跳过的步",
    warning: "警告",
    early_stop: "提前停止",
    bad_rows: "坏行",
  };
  const rest = run.events.filter((e) => !["eval", "save"].includes(e.kind));
  const box = element(
    "div",
    { class: "card" },
    element("h3", { text: name + "事件记录" }),
    element(
      "div",
      {},
      Object.entries(run.event_counts).map(([kind, n]) =>
        element("span", { class: "tag", text: `${words[kind] || kind} ${n}` }),
      ),
    ),
  );
  if (!Object.keys(run.event_counts).length) return null;
  if (rest.length)
    box.append(
      table(
        ["步", "事件", "详情"],
        rest.slice(-40).map((e) => [
          show(e.step),
          words[e.kind] || e.kind,
          e.text ||
            Object.entries(e)
              .filter(([k]) => !["kind", "step"].includes(k))
              .map(([k, v]) => `${k} ${show(v)}`)
              .join("　"),
        ]),
      ),
    );
  return box;
}

const MACHINE = {
  platform: "系统",
  python: "Python",
  torch: "PyTorch",
  device: "设备",
  gpu: "显卡",
  threads: "线程数",
  cores: "核数",
};

function machineCard(run, name) {
  const words = {
    ...MACHINE,
    device: "设备",
    precision: "精度",
    steps: "总步数",
    params: "参数",
    trainable: "可训练参数",
    ranks: "进程数",
    code: "代码版本",
    stage: "阶段",
    start: "开始",
    "rows.train": "训练的行",
    "rows.held": "留出的行",
    "rows.skipped": "没有用的行",
    "rows.bad": "坏行",
  };
  const rows = Object.entries({ ...run.header, ...run.machine })
    .filter(([k, v]) => k !== "run" && v !== null)
    .map(([k, v]) => [words[k] || k, show(v)]);
  rows.push(...Object.entries(run.identity).map(([k, v]) => [k, v]));
  return element("div", { class: "card" }, element("h3", { text: name + "机器与版本" }), table(null, rows));
}

function configBlock(run, name, others) {
  const parts = {};
  for (const key of [
    ...Object.keys(data.groups).filter((k) => k in run.config),
    ...Object.keys(run.config).filter((k) => !(k in data.groups)),
  ])
    (parts[data.groups[key] || "其他"] ||= []).push(key);
  if (!Object.keys(run.config).length) return null;
  const usual = run.preset ? `预设 ${run.preset}` : "默认值";
  const box = element(
    "details",
    {},
    element("summary", { text: name + "配置" }),
    element("div", {
      class: "note",
      text: several ? "着色的行在这几次训练中不同" : run.changed.length ? `着色的行和${usual}不同` : `和${usual}相同`,
    }),
  );
  const same = (a, b) => JSON.stringify(a ?? null) === JSON.stringify(b ?? null);
  for (const [group, keys] of Object.entries(parts)) {
    box.append(
      element("div", { class: "group", text: group }),
      table(
        null,
        keys.map((key) => {
          const changed = several
            ? others.some((other) => !same(other.config[key], run.config[key]))
            : run.changed.includes(key);
          const cell = element("span", {
            text: key,
            style: "font-family: ui-monospace, Consolas, monospace; font-size: 12.5px",
          });
          return { cls: changed ? "changed" : "", cells: [cell, show(run.config[key]), data.help[key] || ""] };
        }),
      ),
    );
  }
  return box;
}

function differencesCard() {
  const rows = [];
  let last = null;
  for (const [group, what, ...values] of data.differences) {
    const count = data.differences.filter((d) => d[0] === group).length;
    if (group !== last)
      rows.push({ cls: "head", cells: [`${(last = group)}（${count} 项）`, ...subjects.map(() => "")] });
    const counted = values.every((v) => typeof v === "number") && ["结果", "分数"].includes(group);
    const more = (v) =>
      counted && v !== values[0] ? `（${v > values[0] ? "+" : "−"}${short(Math.abs(v - values[0]))}）` : "";
    rows.push([what, ...values.map((v, k) => show(v) + (k ? more(v) : ""))]);
  }
  return element(
    "section",
    { id: "diff" },
    element("h2", { text: "不同之处" }),
    element(
      "div",
      { class: "card roomy" },
      element(
        "div",
        { class: "legend" },
        subjects.map((s, k) => element("span", { style: `color: var(${COLORS[k]})`, text: `${letter(k)} ${s.name}` })),
      ),
      rows.length
        ? table(["项目", ...subjects.map((_, k) => letter(k))], rows)
        : element("div", { text: "配置、数据、代码和结果都相同。" }),
    ),
  );
}

const BITS =
  "每字比特：接着写预训练文本时，平均每个字还要猜多少比特，越低越好。指令微调之后它会变大：模型改学怎样回答，不再练续写，这不是学坏了。";

function talks(conversations) {
  return element(
    "div",
    { class: "chat" },
    conversations.map((talk) =>
      element(
        "div",
        { class: "talk" },
        talk
          .map(([q, a]) => [element("p", { class: "q", text: "你：" + q }), element("p", { text: "小寻：" + a })])
          .flat(),
      ),
    ),
  );
}

function scoreCard(report, name) {
  const scores = Object.entries(report.scores || {}).filter(([, s]) => s && s.by_task);
  if (!scores.length) return null;
  const [, last] = scores[scores.length - 1],
    tasks = Object.keys(last.by_task).sort((a, b) => last.by_task[b] - last.by_task[a]);
  const wording = last.phrasings;
  const percent = (v) => (v === undefined || v === null ? "—" : (100 * v).toFixed(1) + " %");
  const bar = (task) =>
    element(
      "div",
      { class: "bar" },
      element("i", { style: `width:${100 * (last.by_task[task] || 0)}%` }),
      last.chance ? element("u", { style: `left:${100 * (last.chance[task] || 0)}%`, title: "随机猜测" }) : null,
    );
  return element(
    "div",
    { class: "card wide" },
    element("h3", { text: name + "留出题的正确率" }),
    element("div", { class: "note", text: "条：最后一个阶段；竖线：随机猜测" }),
    table(
      ["任务", ...scores.map(([n]) => stageName(n) + "后"), ...(wording ? ["换一种问法"] : []), "随机猜测", ""],
      [
        ["全部", ...scores.map(([, s]) => percent(s.overall)), ...(wording ? [percent(wording.overall)] : []), "", ""],
        ...tasks.map((t) => [
          taskName(t),
          ...scores.map(([, s]) => percent(s.by_task[t])),
          ...(wording ? [percent(wording.by_task[t])] : []),
          percent((last.chance || {})[t]),
          bar(t),
        ]),
      ],
      [...scores.map((_, i) => i + 1), scores.length + 1, ...(wording ? [scores.length + 2] : [])],
    ),
    last.outside === undefined
      ? null
      : element("div", {
          class: "note",
          text: `题外话（它的小世界里没有的）：${percent(last.outside)} 答得体，或老实说不会`,
        }),
    last.tools ? toolScores(last.tools, percent) : null,
  );
}

function toolScores(tools, percent) {
  const reworded = (tools.phrasings || {}).by_task || {};
  return [
    element("h3", { text: "用工具的题" }),
    table(
      ["任务", "叫对工具", "参数全对", "最后答对", "换一种问法"],
      [
        ["全部", "", "", percent(tools.overall), percent((tools.phrasings || {}).overall)],
        ...Object.entries(tools.by_task).map(([task, s]) => [
          taskName(task),
          ...[s.tool, s.arguments, s.answer, (reworded[task] || {}).answer].map(percent),
        ]),
      ],
      [1, 2, 3, 4],
    ),
    element("div", {
      class: "note",
      text: `同样的算术题不给工具，答对 ${percent(tools.off)}；用不着工具的题里叫了工具的占 ${percent(tools.needless)}`,
    }),
  ];
}

function pipelineCard(report, name) {
  const step = (n) => (n.startsWith("score_") ? `${stageName(n.slice(6))}后打分` : stageName(n));
  const of = (part, title, shown) =>
    Object.entries(report[part] || {}).map(([n, v]) => [`${title}（${step(n)}）`, shown(v)]);
  const facts = [
    ...of("bits_per_char", "每字比特", short),
    ...of("tokens_seen", "学过的词元", short),
    ...of("seconds", "用时", clock),
    ...(report.peak_rss_mb ? [["最高内存", short(report.peak_rss_mb) + " MB"]] : []),
  ];
  if (!facts.length) return null;
  return element(
    "div",
    { class: "card" },
    element("h3", { text: name + "整条流水线" }),
    table(null, facts, [1]),
    Object.keys(report.bits_per_char || {}).length > 1 ? element("div", { class: "note", text: BITS }) : null,
  );
}

function scoresSection() {
  const cards = [];
  subjects.forEach((s, k) => {
    const report = s.report || {},
      name = label(k);
    if (s.left_out.length)
      cards.push(
        element(
          "div",
          { class: "card wide" },
          element("div", {
            class: "warn",
            text: `${name}report.json 里${s.left_out.map(stageName).join("、")}的分数属于另一次训练，没有放进来。`,
          }),
        ),
      );
    cards.push(scoreCard(report, name), pipelineCard(report, name));
    if ((report.samples || []).length)
      cards.push(
        element("div", { class: "card" }, element("h3", { text: name + "最后的对话" }), talks(report.samples)),
      );
    if (report.machine)
      cards.push(
        element(
          "div",
          { class: "card" },
          element("h3", { text: name + "机器" }),
          table(
            null,
            Object.entries(report.machine)
              .filter(([, v]) => v !== null)
              .map(([n, v]) => [MACHINE[n] || n, show(v)]),
          ),
        ),
      );
  });
  const there = cards.filter(Boolean);
  return there.length
    ? element(
        "section",
        { id: "scores" },
        element("h2", { text: "分数与用时" }),
        element("div", { class: "grid" }, there),
      )
    : null;
}

function runSection(group, number) {
  const there = group.filter(Boolean),
    cards = [];
  group.forEach((run, k) => {
    if (run)
      cards.push(
        checkCard(run, label(k)),
        preflightCard(run, label(k)),
        samplesCard(run, label(k)),
        diaryCard(run, label(k)),
        machineCard(run, label(k)),
      );
  });
  const titles = [...new Set(there.map((run) => run.title))].join("、");
  return element(
    "section",
    { id: "run" + number },
    element("h2", {}, titles, element("small", { text: there.map((r) => r.id).join("　对　") })),
    tiles(group),
    curveCards(group),
    element("div", { class: "grid loose" }, cards.filter(Boolean)),
    group.map((run, k) => (run ? configBlock(run, label(k), there) : null)),
  );
}

// ---- theme and frame ----

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  redraw();
}

function frame(sections) {
  const dark = window.matchMedia("(prefers-color-scheme: dark)"),
    theme = element("button", { text: "深 / 浅", title: "换深色或浅色" });
  document.documentElement.dataset.theme = dark.matches ? "dark" : "light";
  dark.addEventListener("change", (e) => setTheme(e.matches ? "dark" : "light"));
  theme.addEventListener("click", () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark"));
  const slider = element("input", {
    type: "range",
    min: 0,
    max: 0.98,
    step: 0.02,
    value: smoothing,
    "aria-label": "曲线平滑",
  });
  slider.addEventListener("input", () => {
    smoothing = +slider.value;
    redraw();
  });
  const title = several ? "小寻 TinySeek 训练比较" : "小寻 TinySeek 训练报告";
  app.append(
    element(
      "header",
      {},
      element("h1", { text: title }),
      element("div", {
        class: "sub",
        text: [...(several ? subjects.map((s, k) => `${letter(k)} ${s.name}`) : []), data.made].join("　"),
      }),
      element("div", { class: "tools" }, element("label", {}, "平滑 ", slider), theme),
    ),
    element(
      "nav",
      {},
      sections.map((s) => element("a", { href: "#" + s.id, text: s.querySelector("h2").firstChild.textContent })),
    ),
    ...sections,
    element("footer", { text: "这个文件自成一体，打开时不联网。把鼠标（或手指）放在图上看数值。" }),
  );
}

frame([several ? differencesCard() : null, ...groups().map(runSection), scoresSection()].filter(Boolean));
redraw();
let waiting = null;
window.addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(redraw, 80);
});
document.addEventListener("toggle", redraw, true);
