// Numbers to places on the screen, and round numbers to label an axis with.

// values: numbers to be shown; from, to: pixels; log: powers of ten; zero: begin at 0; whole: only whole numbers are
// places. -> {at(value), value(pixel), ticks, label(tick): text, different for each tick}
export function axis(values, from, to, { log = false, zero = false, whole = false }) {
  let [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  if (!Number.isFinite(low)) [low, high] = [0, 1];
  log = log && low > 0;
  if (zero) low = Math.min(0, low);
  if (log) [low, high] = [Math.log10(low), Math.log10(high)];
  if (high - low < 1e-9 * Math.max(1, Math.abs(low))) {
    const room = whole ? 0.5 : Math.abs(low) * 0.05 || 1e-9;
    [low, high] = [low - room, high + room];
  }
  const margin = log || from > to ? (high - low) * 0.06 : 0;
  if (!zero) low -= margin;
  high += margin;
  const at = (v) => from + (((log ? Math.log10(Math.max(v, 1e-300)) : v) - low) / (high - low)) * (to - from);
  const clamp = (p) => Math.max(Math.min(from, to) - 4, Math.min(Math.max(from, to) + 4, p));
  const value = (p) => { const v = low + ((p - from) / (to - from)) * (high - low); return log ? 10 ** v : v; };
  const { ticks, label } = log ? powers(low, high) : rounds(low, high, whole);
  return { at: (v) => clamp(at(v)), value, ticks, label };
}

function rounds(low, high, whole) {
  const rough = Math.max((high - low) / 5, whole ? 1 : 0);
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * unit).find((s) => s >= rough && !(whole && s % 1));
  const ticks = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) {
    ticks.push(Math.abs(t) < step * 1e-9 ? 0 : t);
  }
  return { ticks, label: labels(ticks) };
}

function powers(low, high) {
  const marks = high - low > 3 ? [1] : high - low > 1.2 ? [1, 3] : [1, 2, 3, 5, 7];
  const ticks = [];
  for (let e = Math.floor(low); e <= Math.ceil(high); e++) {
    for (const m of marks) {
      const t = Math.log10(m) + e;
      if (t >= low && t <= high) ticks.push(m * 10 ** e);
    }
  }
  return ticks.length > 1 ? { ticks, label: labels(ticks) } : rounds(10 ** low, 10 ** high);
}

// As few digits as tell the ticks apart.
function labels(ticks) {
  const digits = [4, 5, 6, 7, 8, 9, 10].find((d) => new Set(ticks.map((t) => short(t, d))).size === ticks.length);
  return (t) => short(t, digits);
}

// 12345 -> 12.3k, 0.00012 -> 1.2e-4, 3.14159 -> 3.142
export function short(v, digits = 4) {
  if (v === null || v === undefined) return "–";
  const size = Math.abs(v);
  if (size && (size < 1e-3 || size >= 1e7)) return v.toExponential(digits - 3).replace("e+", "e");
  if (size >= 1e6) return String(Number((v / 1e6).toPrecision(digits - 1))) + "M";
  if (size >= 1e4) return String(Number((v / 1e3).toPrecision(digits - 1))) + "k";
  return String(Number(v.toPrecision(digits)));
}
