// Numbers to places on the screen, and round numbers to label an axis with.

// values: numbers to be shown; from, to: pixels; log: powers of ten; zero: begin at 0. -> {at(value), value(pixel), ticks}
export function axis(values, from, to, { log = false, zero = false }) {
  let [low, high] = values.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  if (!Number.isFinite(low)) [low, high] = [0, 1];
  log = log && low > 0;
  if (zero) low = Math.min(0, low);
  if (log) [low, high] = [Math.log10(low), Math.log10(high)];
  if (high - low < 1e-12) [low, high] = [low - Math.abs(low) * 0.05 - 1e-9, high + Math.abs(high) * 0.05 + 1e-9];
  const margin = log || from > to ? (high - low) * 0.06 : 0;
  if (!zero) low -= margin;
  high += margin;
  const at = (v) => from + (((log ? Math.log10(Math.max(v, 1e-300)) : v) - low) / (high - low)) * (to - from);
  const clamp = (p) => Math.max(Math.min(from, to) - 4, Math.min(Math.max(from, to) + 4, p));
  const value = (p) => { const v = low + ((p - from) / (to - from)) * (high - low); return log ? 10 ** v : v; };
  return { at: (v) => clamp(at(v)), value, ticks: log ? powers(low, high) : rounds(low, high) };
}

function rounds(low, high) {
  const rough = (high - low) / 5;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * unit).find((s) => s >= rough);
  const ticks = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) ticks.push(Math.abs(t) < step * 1e-9 ? 0 : t);
  return ticks;
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
  return ticks.length > 1 ? ticks : rounds(10 ** low, 10 ** high);
}

// 12345 -> 12.3k, 0.00012 -> 1.2e-4, 3.14159 -> 3.142
export function short(v) {
  if (v === null || v === undefined) return "–";
  const size = Math.abs(v);
  if (size && (size < 1e-3 || size >= 1e7)) return v.toExponential(1).replace("e+", "e");
  if (size >= 1e6) return String(Number((v / 1e6).toPrecision(3))) + "M";
  if (size >= 1e4) return String(Number((v / 1e3).toPrecision(3))) + "k";
  return String(Number(v.toPrecision(4)));
}
