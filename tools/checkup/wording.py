"""The words of the data check-up: tables, a histogram, the first rows as the model sees them, the verdict."""
import os
import sys
from itertools import islice
from pathlib import Path

from tools import formats, template
from tools.checkup.aim import Aim, is_cut, learned_part, taken
from tools.checkup.faults import KINDS
from tools.reading.held_out import split_text
from tools.vocab import FIRST_BYTE

LISTED = 5                  # places shown per kind
HOPELESS = 0.2              # share of byte tokens from which a vocabulary does not fit the data
# named first in the verdict
LOOK_FIRST = ("leak", "secret", "replacement", "mojibake", "answer_lost", "no_turn", "duplicate", "near_duplicate")
SHOWN = 300                 # characters of a rendered row
GREEN, GREY, BOLD, RED, YELLOW, OFF = "\033[32m", "\033[90m", "\033[1m", "\033[31m", "\033[33m", "\033[0m"


def coloured():
    """Colours go to terminals only, and nowhere under NO_COLOR (no-color.org); FORCE_COLOR wins over the terminal's
    absence."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or (sys.stdout.isatty() and os.environ.get("TERM") != "dumb")


def paint(text, colour):
    return f"{colour}{text}{OFF}" if coloured() else text


def percent(part, whole):
    share = 100 * part / whole if whole else 0
    return f"{share:.0f} %" if share >= 10 or share == 0 else f"{share:.2g} %"


# ---------------------------------------------------------------- the verdict

def verdict(result, max_bad_share):
    """{"level", "verdict": one Chinese line, "hints": list} of a result of Findings.summary.

    level: ok · warn · poor: can be trained on, but should not · stop: training would refuse it · unseen: nothing was
    read.
    """
    hints, unseen = _hints(result), _unseen(result)
    if not result["items"] and result["share"] < 1:
        return {"level": "unseen", "hints": hints, "verdict": "结论：没有抽查到一行，数据好不好还不知道。"}
    if why := _refused(result, max_bad_share):
        return {"level": "stop", "hints": hints, "verdict": f"结论：{why}"}
    tokens = result["totals"].get("tokens", 0)
    if (spelled := result["totals"].get("bytes_tokens", 0)) > HOPELESS * tokens:
        return {"level": "poor", "hints": hints, "verdict": f"结论：不建议这样训练，词表不合这批数据：{percent(spelled, tokens)} 的词元是拆开的字节。"
                "请换一个学过这类文字的起点模型，或把这批数据也列进 --vocab_data_path，移走旧词表重建（必要时加大 --vocab_size），再重新预训练。"}
    order = sorted(result["faults"], key=lambda k: (k not in LOOK_FIRST, -result["faults"][k]["count"]))
    named = [f"{KINDS[k][0]} {result['faults'][k]['count']} 行" for k in order[:4]]
    if result["bad_lines"]:
        named.insert(0, f"坏行 {result['bad_lines']} 行（训练时会跳过）")
    if said := formats.dropped_text(result["dropped"])[0]:
        hints = [f"数据里有内容不会学：{said}", *hints]
    if same := result["looked"]["same"]:
        hints = [f"留出数据 {'、'.join(Path(p).name for p in same)} 就是训练数据，评估会虚高", *hints]
    part = f"（{'；'.join(unseen)}）" if unseen else ""
    if not named and not hints:
        word = f"可以训练，看过的都没有问题{part}" if unseen else "数据干净，可以放心训练"
        return {"level": "ok", "hints": hints, "verdict": f"结论：{word}。"}
    more = "等" if len(order) > 4 else ""
    parts = ([f"请先看看：{'、'.join(named)}{more}"] if named else []) + hints
    return {"level": "warn", "hints": hints, "verdict": f"结论：可以训练。{'；'.join(parts)}{part}。"}


def _refused(result, max_bad_share):
    """Why training would refuse this, with the cure (Chinese), or None."""
    totals, faults = result["totals"], result["faults"]
    for whose, held in (("", False), ("留出数据 ", True)):
        files = [f for f in result["files"] if f["held"] == held]
        bad, items = (sum(f[key] for f in files) for key in ("bad", "items"))
        if files and bad >= items:
            return f"不能训练，{whose}没有一行可用的数据。" + _first_bad(result)
        if formats.too_many(bad, items, max_bad_share):
            return f"先别训练，{whose}{items} 行里有 {bad} 行不能用（{percent(bad, items)}）。{_first_bad(result)}"
    if not totals["teaching"]:
        why = next(kind for kind in ("answer_lost", "no_turn") if kind in faults)
        return f"不能训练，没有一行有可学的内容：{KINDS[why][0]} {faults[why]['count']} 行。{KINDS[why][1]}。"
    return None


def _unseen(result):
    """What the check-up did not look at (Chinese)."""
    looked, missed = result["looked"], sum(not f["bytes"] for f in result["files"])
    said = [] if looked["vocab"] else ["没有词表，没有看词元，max_len 会截断多少也不知道"]
    said += [f"只抽查了 {percent(result['share'], 1)}"] if result["share"] < 1 else []
    said += [f"{missed} 个文件没有抽到"] if missed else []
    return said + ([] if looked["duplicates"] else ["没有查重复"])


def _first_bad(result):
    for reason, entry in result["bad"].items():
        path, line, _ = entry["places"][0]
        place = f"，如 {path} 第 {line} 行" if line else ""
    return f"最多的是“{reason}”{entry['count']} 行{place}。"
    return ""


def _hints(result):
    """What the counts of tokens suggest."""
    totals, looked, hints = result["totals"], result["looked"], []
    if not (tokens := totals.get("tokens", 0)):
        return hints
    learned, lost = totals["learned"], totals["cut_learned"]
    if totals["cut"] > 0.1 * tokens:
        hints.append(f"{totals['cut_rows']} 行超过 max_len {looked['max_len']}，{percent(totals['cut'], tokens)} 的词元被截断，"
                     "可加大 --max_len")
    if HOPELESS * tokens >= totals["bytes_tokens"] > 0.05 * tokens:
        hints.append(f"{percent(totals['bytes_tokens'], tokens)} 的词元是拆开的字节，可加大 --vocab_size 或用这批数据建词表")
    if learned + lost < 0.05 * tokens:
        hints.append(f"只有 {percent(learned + lost, tokens)} 的词元计入损失，回答太短")
    elif lost > learned:
        hints.append(f"回答的词元被截断 {percent(lost, learned + lost)}，学不到完整的回答")
    return hints


# ---------------------------------------------------------------- the long form and the short one

def full(result, everything=False):
    """Generator of the lines of the whole report, verdict excluded."""
    yield f"检查：{_aim(result)}，词表：{result['looked']['vocab'] or '没有，不看词元'}"
    for f in result["files"]:
        yield (
            f"{paint(f['path'], BOLD)}{'（留出）' if f['held'] else ''}：{f['lines']:,} 行，{size_text(f['bytes'])}，"
            f"{f['chars']:,} 字，"
               f"可用 {f['rows']:,} 行，坏行 {f['bad']:,} 行")
    for title, table in (("坏行", result["bad"]), ("问题", result["faults"])):
        for kind, entry in table.items():
            name, cure = KINDS.get(kind, (kind, ""))
            color = RED if title == "坏行" else YELLOW
            yield f"{paint(title, color)}  {name}：{entry['count']:,} 行{'。' + cure if cure else ''}"
            yield from _places(entry, len(result["files"]) > 1, everything)
    said, about = formats.dropped_text(result["dropped"])
    if said:
        yield f"{paint('没有学', YELLOW)}  {said}"
    if about:
        yield f"只是说明、没有学的字段：{about}"
    yield from _compared(result)
    totals = result["totals"]
    if totals.get("tokens"):
        yield _token_line(totals, result["max_len"])
    bins, unit = (totals["token_bins"], "词元") if "token_bins" in totals else (totals.get("char_bins", []), "字")
    yield from histogram_lines(bins, unit)
    for hint in result["hints"]:
        yield f"建议  {hint}。"


def _aim(result):
    looked = result["looked"]
    return "、".join(looked["stages"]) + ("" if looked["whole"] else f"，max_len {looked['max_len']}")


def _compared(result):
    """Which rows were held against which, and how they are divided."""
    looked, leaks = result["looked"], result["faults"].get("leak", {"count": 0})["count"]
    near = "没有查近似重复" if looked["near"] is None else "近似重复只比 50 字以上的 {:,} 行，更短的只查完全相同".format(looked["near"][0])
    yield f"重复：比了全部 {sum(f['rows'] for f in result['files']):,} 行；{near}。"
    if looked["leaks"]:
        yield f"泄漏：留出的 {looked['leaks'][0]:,} 行和训练的 {looked['leaks'][1]:,} 行比过，{leaks:,} 行也在训练数据里。"
    elif looked["split"][1]:
        so = "，评估会略偏乐观" if result["hidden_leaks"] else ""
        yield (f"泄漏：自动留出的 {looked['split'][1]:,} 行里，有 {result['hidden_leaks']:,} 行"
               f"在训练行里有相同或相近的一行{so}。")
    yield f"{split_text(*looked['split'])}。"


def _places(entry, many_files, everything):
    places = entry["places"] if everything else entry["places"][:LISTED]
    for path, line, remark in places:
        where = f"{Path(path).name} " if many_files else ""
        yield f"      {where}第 {line} 行{'（' + remark + '）' if remark else ''}"
    if entry["count"] > len(places):
        yield f"      …… 还有 {entry['count'] - len(places):,} 行{'' if everything else '（--all 列出）'}"


def _token_line(totals, max_len):
    tokens = totals["tokens"]
    return (
        f"词元 {tokens:,} 个；计入损失的占 {percent(totals['learned'], tokens)}；{totals['cut_rows']:,} 行因超过 max_len {max_len} "
        f"被截断，"
            f"截断 {percent(totals['cut'], tokens)} 的词元；拆成字节的 {percent(totals['bytes_tokens'], tokens)}；"
            f"长过一行的文档 {percent(totals['over'], totals['documents'])}")


def histogram_lines(bins, unit):
    """bins: counts of the lengths in (2^(k-1), 2^k]."""
    used = [k for k, n in enumerate(bins) if n]
    if not used:
        return
    yield f"长度分布（每篇{unit}数）"
    most = max(bins)
    for k in range(used[0], used[-1] + 1):
        low, high = (1 << (k - 1)) + 1 if k > 1 else k + 1, 1 << k
        bar = "█" * round(40 * bins[k] / most) or ("▏" if bins[k] else "")
        yield f"  {low:>6,}–{high:<7,} {bars(bar)} {bins[k]:,}"


def bars(bar):
    return bar.ljust(40)


def short(result):
    """Three lines at most, for the start of a training."""
    bad, rows, totals = result["bad_lines"], result["rows"], result["totals"]
    names = "、".join(Path(f["path"]).name for f in result["files"][:3]) + (f" 等 {len(result['files'])} 个文件"
        if len(result["files"]) > 3 else "")
    part = "" if result["share"] >= 1 else f"，抽查 {percent(result['share'], 1)}"
    line = f"数据体检（{_aim(result)}，词表：{result['looked']['vocab'] or '没有'}{part}）：{names}，{rows:,} 行可用，坏行 {bad:,} 行"
    if totals.get("tokens"):
        learned, cut = (percent(totals[part], totals["tokens"]) for part in ("learned", "cut"))
        line += f"，词元 {totals['tokens']:,}，计入损失 {learned}，截断 {cut}"
    if result["looked"]["split"]:
        line += f"；{split_text(*result['looked']['split'])}"
    yield line + "。"
    yield result["verdict"]
    if result["level"] != "ok":
        files = " ".join(f["path"] for f in result["files"][:3])
        yield f"细看：python tools/check_data.py {files}{result['looked']['options']}"


def size_text(count):
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count} B"
        count /= 1000
    return f"{count:.3g} GB"


# ---------------------------------------------------------------- what the model sees

def views(paths, vocab, text_field=None, count=3, aim=None):
    """Generator of lines: the first rows as rendered, the part that `aim` learns coloured (in 【】 without colours)."""
    aim = aim or Aim()
    read = (taken(row, aim) for row in formats.read_rows(paths, text_field, formats.BadLines()))
    rendered = ((row, documents) for row in read if not isinstance(row, str)
                for documents in template.render_many([row], vocab) if documents)
    rows = list(islice(rendered, count))
    yield f"前 {len(rows)} 行在模型眼里的样子（{'绿色' if coloured() else '【】里'}计入损失，其余只是上文）"
    for row, documents in rows:
        ids, learned = documents[0]
        learned = learned_part(learned, row.kind, aim).copy()
        learned[aim.max_len + 1 if is_cut(row.kind, aim) else len(ids):] = False
        yield f"  第 {row.line} 行：{len(ids)} 个词元，计入损失 {int(learned.sum())} 个"
        yield "  " + view(ids, learned, vocab)


def view(ids, learned, vocab):
    """One document as a string; reserved ids by name, line breaks as ⏎."""
    parts, at = [], 0
    while at < len(ids):
        end = at + 1
        while end < len(ids) and learned[end] == learned[at]:
            end += 1
        text = _readable(ids[at:end], vocab)
        cut = text if len(
            text) <= SHOWN else f"{text[:SHOWN * 2 // 3]}……（略 {len(text) - SHOWN} 字）……{text[-SHOWN // 3:]}"
        if not learned[at]:
            parts.append(paint(cut, GREY))
        else:
            parts.append(paint(cut, GREEN) if coloured() else f"【{cut}】")
        at = end
    return "".join(parts)


def _readable(ids, vocab):
    out, run = [], []
    for i in [*ids.tolist(), None]:
        if i is not None and i >= FIRST_BYTE:
            run.append(i)
            continue
        out.append(vocab.decode(run))
        run = []
        if i is not None:
            out.append(vocab.name(i))
    return "".join("⏎" if c == "\n" else c if c.isprintable() else f"\\x{ord(c):02x}" for c in "".join(out))
