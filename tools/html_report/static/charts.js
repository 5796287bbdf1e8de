"use strict";
// Curves and the heat map, drawn on canvases in real pixels; redrawn on a resize and on a change of theme.

const charts = [];
let smoothing = 0.6;

function css(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function element(tag, attributes, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "text") node.textContent = value;
    else node.setAttribute(key, value);
  }
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}

function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "—";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size >= 1e9) return +(value / 1e9).toPrecision(3) + "G";
  if (size >= 1e6) return +(value / 1e6).toPrecision(3) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(3) + "k";
  if (size < 1e-3) return value.toExponential(1).replace("e-", "e−");
  return String(+value.toPrecision(4));
}

// Bias-corrected moving average; what is not a number is passed over.
function smoothed(y, factor) {
  let sum = 0,
    weight = 0;
  return y.map((v) => {
    if (v === null) return weight ? sum / weight : null;
    sum = factor * sum + (1 - factor) * v;
    weight = factor * weight + (1 - factor);
    return sum / weight;
  });
}

function ticks(low, high, count) {
  if (!(high > low)) return [low]; // a single point
  const rough = (high - low) / Math.max(1, count),
    power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((m) => m * power >= rough) * power,
    out = [];
  for (let v = Math.ceil(low / step) * step; v <= high + step * 1e-9; v += step)
    out.push(Math.abs(v) < step * 1e-9 ? 0 : v);
  return out;
}

function prepared(canvas, height) {
  const ratio = window.devicePixelRatio || 1,
    width = canvas.parentNode.clientWidth;
  canvas.style.height = height + "px";
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(ratio, 0, 0, ratio, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "11px system-ui, sans-serif";
  return [pen, width];
}

// spec: {title, note, log, series: [{name, color, x, y, low, high, dots}], marks: [{x, color}]}
function lineChart(spec) {
  const canvas = element("canvas"),
    tip = element("div", { class: "tip" }),
    height = 230;
  const legend = element(
    "div",
    { class: "legend" },
    spec.series.length < 2 && !spec.always
      ? []
      : spec.series.map((s) =>
          element(
            "span",
            {},
            element("i", {
              style: `background: var(${s.color})${s.dots ? "; height: 7px; width: 7px; border-radius: 50%" : ""}`,
            }),
            s.name,
          ),
        ),
  );
  const card = element(
    "div",
    { class: "card" + (spec.wide ? " wide" : "") },
    element("h3", { text: spec.title }),
    spec.note ? element("div", { class: "note", text: spec.note }) : null,
    legend,
    element("div", {}, canvas),
    tip,
  );
  const to = (v) => (spec.log ? Math.log10(v) : v);
  let place = null;

  function ranges() {
    const xs = spec.series.flatMap((s) => s.x),
      shown = [];
    for (const s of spec.series) {
      const values = s.y.filter((v) => v !== null && (!spec.log || v > 0)).map(to),
        sorted = [...values].sort((a, b) => a - b);
      shown.push(sorted[Math.floor(sorted.length * 0.01)], sorted[Math.ceil(sorted.length * 0.99) - 1]);
      if (!s.dots) shown.push(...smoothed(values, smoothing));
    }
    const fine = shown.filter(Number.isFinite);
    let low = Math.min(...fine),
      high = Math.max(...fine);
    if (!(high - low > 1e-9 * Math.abs(high))) {
      const pad = Math.abs(low) * 0.1 || 1;
      low -= pad;
      high += pad;
    }
    const pad = (high - low) * 0.05;
    return [Math.min(...xs), Math.max(...xs), low - pad, high + pad];
  }

  function draw() {
    const [pen, width] = prepared(canvas, height),
      [x0, x1, y0, y1] = ranges();
    const left = 46,
      right = width - 8,
      top = 8,
      bottom = height - 22;
    const px = (x) => left + (right - left) * (x1 > x0 ? (x - x0) / (x1 - x0) : 0.5);
    const py = (y) => bottom - ((bottom - top) * (to(y) - y0)) / (y1 - y0);
    place = { left, right, top, bottom, x0, x1, px, py };
    pen.fillStyle = css("--soft");
    pen.strokeStyle = css("--grid");
    pen.lineWidth = 1;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    for (const t of ticks(y0, y1, 5)) {
      const y = bottom - ((bottom - top) * (t - y0)) / (y1 - y0);
      pen.beginPath();
      pen.moveTo(left, y);
      pen.lineTo(right, y);
      pen.stroke();
      pen.fillText(short(spec.log ? 10 ** t : t), left - 6, y);
    }
    pen.textAlign = "center";
    pen.textBaseline = "top";
    for (const t of ticks(x0, x1, width / 90)) if (px(t) < right - 8) pen.fillText(short(t), px(t), bottom + 6);
    pen.save();
    pen.beginPath();
    pen.rect(left, top - 2, right - left, bottom - top + 4);
    pen.clip();
    for (const m of spec.marks || []) {
      pen.strokeStyle = css(m.color);
      pen.globalAlpha = 0.35;
      line(pen, [
        [px(m.x), top],
        [px(m.x), bottom],
      ]);
    }
    for (const s of spec.series) s.dots ? drawDots(pen, s, px, py) : drawCurve(pen, s, px, py);
    pen.restore();
  }

  function drawCurve(pen, s, px, py) {
    pen.strokeStyle = pen.fillStyle = css(s.color);
    if (s.low) {
      pen.globalAlpha = 0.13;
      pen.beginPath();
      s.x.forEach((x, i) => {
        if (s.high[i] !== null) pen.lineTo(px(x), py(s.high[i]));
      });
      for (let i = s.x.length - 1; i >= 0; i--) if (s.low[i] !== null) pen.lineTo(px(s.x[i]), py(s.low[i]));
      pen.fill();
    }
    const alone = s.y.findIndex((v) => v !== null);
    if (alone >= 0 && !s.y.some((v, i) => v !== null && i !== alone))
      return drawDots(pen, { ...s, x: [s.x[alone]], y: [s.y[alone]] }, px, py);
    const points = (y) => s.x.map((x, i) => (y[i] === null ? null : [px(x), py(y[i])]));
    const even = s.x.length > 8 && smoothing > 0 && !s.exact;
    pen.globalAlpha = even ? 0.28 : 1;
    pen.lineWidth = even ? 1 : 1.8;
    line(pen, points(s.y));
    pen.globalAlpha = 1;
    if (even) {
      pen.lineWidth = 1.8;
      line(
        pen,
        points(
          spec.log
            ? smoothed(
                s.y.map((v) => (v === null ? null : Math.log(v))),
                smoothing,
              ).map((v) => (v === null ? null : Math.exp(v)))
            : smoothed(s.y, smoothing),
        ),
      );
    }
  }

  function drawDots(pen, s, px, py) {
    pen.strokeStyle = pen.fillStyle = css(s.color);
    pen.globalAlpha = 1;
    pen.lineWidth = 1.2;
    pen.setLineDash([4, 3]);
    line(
      pen,
      s.x.map((x, i) => (s.y[i] === null ? null : [px(x), py(s.y[i])])),
    );
    pen.setLineDash([]);
    s.x.forEach((x, i) => {
      if (s.y[i] !== null) {
        pen.beginPath();
        pen.arc(px(x), py(s.y[i]), 3, 0, 7);
        pen.fill();
      }
    });
  }

  function hover(event) {
    const box = canvas.getBoundingClientRect(),
      at = event.clientX - box.left;
    if (!place || at < place.left - 4 || at > place.right + 4) {
      leave();
      return;
    }
    draw();
    const step = place.x0 + ((at - place.left) / (place.right - place.left)) * (place.x1 - place.x0),
      pen = canvas.getContext("2d"),
      rows = [];
    let shown = step;
    for (const s of spec.series) {
      let best = 0;
      s.x.forEach((x, i) => {
        if (Math.abs(x - step) < Math.abs(s.x[best] - step)) best = i;
      });
      if (s.y[best] === null) continue;
      shown = s.dots ? shown : s.x[best];
      pen.fillStyle = css(s.color);
      pen.globalAlpha = 1;
      pen.beginPath();
      pen.arc(place.px(s.x[best]), place.py(s.y[best]), 3.5, 0, 7);
      pen.fill();
      rows.push(
        element(
          "div",
          {},
          element("i", {
            style: `display:inline-block;width:8px;height:8px;border-radius:50%;` +
        `margin-right:6px;background:var(${s.color})`,
          }),
          `${s.name}  ${short(s.y[best])}`,
        ),
      );
    }
    tip.replaceChildren(
      element("div", { class: "note", style: "margin:0", text: `第 ${Math.round(shown)} 步` }),
      ...rows,
    );
    put(tip, card, event);
  }
  const leave = () => {
    tip.style.display = "none";
    draw();
  };
  canvas.addEventListener("pointermove", hover);
  canvas.addEventListener("pointerdown", hover);
  canvas.addEventListener("pointerleave", leave);
  charts.push({ draw, canvas });
  return card;
}

function line(pen, points) {
  let open = false;
  pen.beginPath();
  for (const p of points) {
    if (p === null || !Number.isFinite(p[1])) {
      open = false;
      continue;
    }
    open ? pen.lineTo(p[0], p[1]) : pen.moveTo(p[0], p[1]);
    open = true;
  }
  pen.stroke();
}

function put(tip, card, event) {
  tip.style.display = "block";
  const box = card.getBoundingClientRect(),
    x = event.clientX - box.left,
    y = event.clientY - box.top;
  tip.style.left = Math.max(4, Math.min(x + 14, box.width - tip.offsetWidth - 6)) + "px";
  tip.style.top = Math.max(4, y - tip.offsetHeight - 12) + "px";
}

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

// heat: {steps, values: [layer][expert][column]}, 1 = an even share; the colour is the logarithm, from 1/4 to 4.
function heatChart(heat, title, note) {
  const layers = heat.values.length,
    experts = heat.values[0].length,
    cell = experts > 32 ? 5 : experts > 12 ? 8 : 12,
    gap = 7;
  const height = layers * (experts * cell + gap) + 22;
  const canvas = element("canvas"),
    tip = element("div", { class: "tip" });
  const card = element(
    "div",
    { class: "card wide" },
    element("h3", { text: title }),
    element("div", { class: "note", text: note }),
    element("div", {}, canvas),
    element("div", { class: "scale" }, "少用（¼ 份）", element("i"), "多用（4 份）"),
    tip,
  );
  let left = 46,
    right = 0;
  function draw() {
    const [pen, width] = prepared(canvas, height),
      cold = rgb(css("--cold")),
      even = rgb(css("--even")),
      hot = rgb(css("--hot"));
    right = width - 8;
    const step = (right - left) / heat.steps.length;
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    heat.values.forEach((layer, l) => {
      const top = l * (experts * cell + gap);
      pen.fillStyle = css("--soft");
      pen.fillText(`第${l + 1}层`, left - 6, top + (experts * cell) / 2);
      layer.forEach((row, e) =>
        row.forEach((value, t) => {
          const far = Math.max(-1, Math.min(1, Math.log2(Math.max(value, 1e-3)) / 2)),
            end = far < 0 ? cold : hot,
            f = Math.abs(far);
          pen.fillStyle = `rgb(${even.map((v, i) => Math.round(v + (end[i] - v) * f)).join()})`;
          pen.fillRect(left + t * step, top + e * cell, Math.ceil(step * 10) / 10 + 0.4, cell - 0.6);
        }),
      );
    });
    pen.fillStyle = css("--soft");
    pen.textAlign = "center";
    pen.textBaseline = "top";
    const [a, b] = [heat.steps[0], heat.steps[heat.steps.length - 1]];
    for (const t of ticks(a, b, width / 90))
      if (b > a) pen.fillText(short(t), left + ((t - a) / (b - a)) * (right - left), height - 16);
  }
  function hover(event) {
    const box = canvas.getBoundingClientRect(),
      x = event.clientX - box.left,
      y = event.clientY - box.top;
    const l = Math.floor(y / (experts * cell + gap)),
      e = Math.floor((y - l * (experts * cell + gap)) / cell),
      t = Math.floor(((x - left) / (right - left)) * heat.steps.length);
    const value = heat.values[l] && heat.values[l][e] && heat.values[l][e][t];
    if (value === undefined || value === null) {
      tip.style.display = "none";
      return;
    }
    tip.textContent = `第 ${Math.round(heat.steps[t])} 步　第 ${l + 1} 层　专家 ${e + 1}：均分的 ${short(value)} 倍`;
    put(tip, card, event);
  }
  canvas.addEventListener("pointermove", hover);
  canvas.addEventListener("pointerdown", hover);
  canvas.addEventListener("pointerleave", () => {
    tip.style.display = "none";
  });
  charts.push({ draw, canvas });
  return card;
}

function redraw() {
  for (const chart of charts) if (chart.canvas.parentNode.clientWidth) chart.draw();
}
