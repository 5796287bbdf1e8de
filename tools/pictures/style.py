"""What all pictures share: the values that are drawn, words in two languages, fonts, colours, the way to the disk.

Chinese where the machine has a font for it, English elsewhere: never a box in place of a character, never a warning.
"""
import io
import math
import os
import re
from pathlib import Path

import numpy as np

from tools.config.keys import STAGE_TITLES
from tools.errors import UserError
from tools.logs.reader import HELD_OUT
from tools.saving.atomic import write_bytes

# field: (Chinese title, English title)
TITLES = {"loss": ("训练损失", "Loss"), "lr": ("学习率", "Learning rate"),
          "ppx_1": ("困惑度 1（下一个词元）", "Perplexity 1 (next token)"),
          "ppx_2": ("困惑度 2（再下一个词元）", "Perplexity 2 (token after next)"),
          "grad_norm": ("梯度范数（裁剪前）", "Gradient norm (before clipping)"),
          "lexp": ("专家负载均衡 Lexp", "Expert balance Lexp"), "tok_s": ("速度（词元 / 秒）", "Tokens per second")}
WORDS = {"step": ("优化步数", "Optimizer step"), "eval": ("评估", "eval"), "none": ("没有数据", "no data"),
         "last": ("末值", "last"),
         "best": ("最低", "best"), "steps": ("步", "steps"), "more": ("还有", "more:"),
         "dashed": ("虚线：没有训练过的数据", "dashed: held out"),
         "train": ("训练", "train"),
         "curves": ("训练曲线", "Training curves")}
FACTS = {"device": "设备", "precision": "精度", "steps": "总步数", "params": "参数", "trainable": "可训练参数",
         "ranks": "进程数", "code": "代码版本"}         # of a run's header
FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans", "Noto Sans CJK", "Microsoft YaHei", "PingFang",
         "Hiragino Sans GB", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Heiti", "SimHei", "Sarasa",
         "Droid Sans Fallback",
         "Arial Unicode", "Noto Serif CJK", "SimSun", "Songti", "KaiTi")
FONT_FILES = re.compile(r"(noto(sans|serif)cjk|notosanssc|sourcehansans|wqy-|msyh|simhei|pingfang|simsun)",
                        re.IGNORECASE)
COLORS = ["#2563eb", "#ea580c", "#059669", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#db2777", "#4d7c0f", "#64748b"]
MAX_POINTS = 3000                                       # more than a picture has pixels across
INK, GREY, LIGHT = "#111827", "#6b7280", "#e5e7eb"


def chinese_font():
    """The family name of an installed font that has Chinese glyphs, or None."""
    from matplotlib import font_manager as fm
    for fresh in (False, True):
        if fresh:                                       # matplotlib's list may be older than the font
            for path in fm.findSystemFonts():
                if FONT_FILES.search(os.path.basename(path)):
                    try:
                        fm.fontManager.addfont(path)
                    except (OSError, RuntimeError):
                        continue
        for wanted in FONTS:
            for entry in fm.fontManager.ttflist:
                if entry.name.startswith(wanted) and _has_glyphs(entry.fname, "训练损失词元"):
                    return entry.name
    return None


def _has_glyphs(path, text):
    from matplotlib.ft2font import FT2Font
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return False
    return all(c.isspace() or font.get_char_index(ord(c)) for c in text)


class Page:
    """Language, fonts and smoothing of one picture."""

    def __init__(self, smooth=None):
        from matplotlib import font_manager as fm
        family = chinese_font()
        self.smooth, self.chinese = smooth, family is not None
        self.families = [f for f in (family, "DejaVu Sans") if f]
        self.files = [fm.findfont(f) for f in self.families]
        heavy = {e.name for e in fm.fontManager.ttflist if e.weight in ("bold", "heavy", "black", 600, 700, 800, 900)}
        # Matplotlib complains about a weight that is missing
        self.bold = "bold" if set(self.families) <= heavy else "normal"

    def title(self, field):
        return TITLES[field][0 if self.chinese else 1]

    def word(self, key):
        return WORDS[key][0 if self.chinese else 1]

    def held_out(self, name):
        """What a set is called that is evaluated."""
        if self.chinese and name in HELD_OUT:
            return HELD_OUT[name]
        return self.word("eval") + ("" if name == "eval" else f" {self.text(name)}")

    def stage(self, name):
        return STAGE_TITLES.get(name.lower(), name) if self.chinese else name

    def fact(self, key):
        return FACTS.get(key, key) if self.chinese else key

    def text(self, label):
        """A label from outside (file name, stage) without characters that no font can draw."""
        return "".join(c if any(_has_glyphs(f, c) for f in self.files) else "?" for c in str(label)).replace("$", r"\$")

    def rc(self):
        return {"font.family": self.families, "font.size": 10, "axes.edgecolor": "#d1d5db", "axes.labelcolor": GREY,
                "xtick.color": GREY, "ytick.color": GREY, "text.color": INK, "axes.grid": True, "grid.color": LIGHT,
                "grid.linewidth": 0.8,
                "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True, "legend.frameon": False,
                "axes.titlesize": 12, "axes.titlelocation": "left", "axes.titlepad": 9, "savefig.facecolor": "white"}


def short_tick(v, _=None):
    """Tick text: 12000 -> 12k"""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size <= abs(v) < 1e12:
            return f"{v / size:g}{unit}"
    return f"{v:g}"


def power_tick(v, _=None):
    """Tick text of a learning rate: 0.00025 -> 2.5e-4"""
    mantissa, exponent = f"{v:.3e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}" if v else "0"


def dress(ax, page, title, xlabel=None):
    """Title, steps on the x axis and margins as in every picture."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator
    ax.set_title(title, fontweight=page.bold, color=INK)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(short_tick))
    ax.margins(x=0.02)
    if xlabel:
        ax.set_xlabel(xlabel, color=GREY)


def save(figure, path):
    """Write a picture whole -> its path. A viewer that watches the file never sees half of it. UserError 2 or 7."""
    path = Path(path)
    if path.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg"):
        raise UserError(f"无法识别图片 {path} 的扩展名，请用 .png、.pdf、.svg 或 .jpg。")
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix[1:].lower())
    write_bytes(path, drawn.getvalue())
    return str(path)


# ---------------------------------------------------------------- values

def smoothed(values, weight=0.9):
    """Exponential moving average with bias correction (the first values are not pulled to 0). A value that is not
    finite changes nothing: the curve holds its height there."""
    out, mean, mass = np.full(len(values), np.nan), 0.0, 0.0
    for i, v in enumerate(values.tolist()):
        if math.isfinite(v):
            mean, mass = weight * mean + (1 - weight) * v, weight * mass + (1 - weight)
        if mass:
            out[i] = mean / mass
    return out


def curve(run, name, smooth=None, start=0):
    """What is drawn of one field: (x, raw, smooth), float arrays of one length; raw is NaN where the log has no finite
    value.
    smooth: weight of the past in [0, 1); None chooses it by length (about a sixtieth of the run, 3 to 100 points).
    A perplexity is smoothed as its logarithm, the cross-entropy, and the learning rate, which has no noise, not at
    all."""
    raw = run.get(name)
    raw = np.where(np.isfinite(raw), raw, np.nan) if isinstance(raw, np.ndarray) else np.full(len(run), np.nan)
    if smooth is None:
        smooth = 1 - 1 / min(100.0, max(1.0, len(raw) / 60, min(3.0, len(raw) / 8)))
    if name.startswith("ppx"):
        with np.errstate(divide="ignore", invalid="ignore"):
            return run.step + start, raw, np.exp(smoothed(np.log(raw), smooth))
    return run.step + start, raw, smoothed(raw, 0 if name == "lr" else smooth)


def thinned(x, y, limit=MAX_POINTS):
    """At most about `limit` points with the same outline: of each stretch its lowest and its highest value."""
    if len(x) <= limit:
        return x, y
    size = math.ceil(2 * len(x) / limit)
    whole = len(x) // size * size
    blocks = y[:whole].reshape(-1, size)
    ends = np.stack(
        [np.where(np.isnan(blocks), np.inf, blocks).argmin(1), np.where(np.isnan(blocks), -np.inf, blocks).argmax(1)],
        1)
    picks = (np.sort(ends, 1) + np.arange(len(blocks))[:, None] * size).ravel()
    picks = np.append(picks, np.arange(whole, len(x)))
    return x[picks], y[picks]
