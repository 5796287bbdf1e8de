"""数据体检：逐行检查训练数据，列出坏行、乱码、重复、泄漏，说明有多少词元被切掉、多少要学，并给出一句结论。"""
import json
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: a missing package ends in one line

import numpy as np
from tqdm import tqdm

from tools import formats
from tools.checkup import wording
from tools.cli import guarded, parse
from tools.checkup.duplicates import Book, find_duplicates, leaks_by_share
from tools.checkup.scan import KIND_NUMBERS, Columns, scan_block, scan_files, start_worker
from tools.checkup.scan import count_lines as lines_before
from tools.errors import UserError
from tools.reading.hub import is_hf, local_files
from tools.reading.lines import rangeable, unpacked
from tools.checkup.near import THRESHOLD
from tools.reading.held_out import held_every
from tools.vocab import Vocab

KEPT = 1000                 # places remembered per kind of fault; all are counted
FEW, MINORITY = 20, 0.02    # a file of 20 rows or more: a shape that under 2 % of its rows have is a stranger
QUICK_BYTES, QUICK_BLOCKS = 3 << 19, 12
TRIAL_BYTES = {"char": 24 << 20, "jieba": 2 << 20}      # read for a vocabulary of the moment; finding words is slow
COUNT_UP_TO = 64 << 20      # bytes read to tell a line's number in a sample; further on the place is given in percent


class Findings:
    """What the check-up found so far. `faults`: {kind or reason: [count, [(file number, line, remark)]]}."""

    def __init__(self, names, held):
        self.files = [{"path": str(n), "bytes": 0, "lines": 0, "items": 0, "rows": 0, "chars": 0, "bad": 0, "held": h}
                      for n, h in zip(names, held)]
        self.bad, self.faults, self.totals, self.dropped, self.hidden_leaks = {}, {}, {}, {}, 0

    def add_block(self, number, result, before):
        """before: lines of the file that come before the block; None = unknown."""
        file = self.files[number]
        for key in ("bytes", "lines", "items", "chars"):
            file[key] += result[key]
        file["bad"] += len(result["bad"])
        formats.add_dropped(self.dropped, result["dropped"])
        file["rows"] += result["items"] - len(result["bad"])
        for table, hits in ((self.bad, result["bad"]), (self.faults, [(line, kind, "") for line, kind in result["faults"]])):
            for line, kind, remark in hits:
                self.note(kind, number, None if before is None else before + line, remark, table)
        for key in ("tokens", "bytes_tokens", "learned", "cut", "documents", "over", "token_bins", "char_bins"):
            if key in result:
                self.totals[key] = self.totals.get(key, 0) + result[key]

    def note(self, kind, number, line, remark="", table=None):
        entry = (self.faults if table is None else table).setdefault(kind, [0, []])
        entry[0] += 1
        if len(entry[1]) < KEPT:
            entry[1].append((number, line, remark))

    def summary(self, vocab, max_len, max_bad_share, share=1.0):
        """-> the JSON-able result of a check-up."""
        def listed(table):
            return {kind: {"count": count, "places": [[self.files[n]["path"], line, remark] for n, line, remark in places]}
                    for kind, (count, places) in sorted(table.items(), key=lambda item: -item[1][0])}
        totals = {k: v.tolist() if hasattr(v, "tolist") else int(v) for k, v in self.totals.items()}
        result = {"files": self.files, "rows": sum(f["rows"] for f in self.files), "bad_lines": sum(f["bad"] for f in self.files),
                  "items": sum(f["items"] for f in self.files), "bad": listed(self.bad), "faults": listed(self.faults),
                  "totals": totals, "max_len": max_len, "share": share, "hidden_leaks": self.hidden_leaks, "dropped": self.dropped,
                  "vocab": None if vocab is None else {"size": len(vocab), "hash": vocab.hash, "token_kind": vocab.token_kind}}
        return {**result, **wording.verdict(result, max_bad_share)}


def check(paths, held=None, vocab=None, max_len=512, text_field=None, near=True, threshold=THRESHOLD, eval_share=0.0,
          max_bad_share=0.001, progress=True):
    """The whole check-up -> dict (see Findings.summary). paths, held: files, patterns or lists; held: the held-out data.

    Memory is flat; columns of numbers lie in a temporary folder (some 90 bytes a row). UserError 2 for missing files.
    """
    names = formats.expand_paths(paths)
    held_names = [n for n in formats.expand_paths(held) if n not in names] if held else []
    marks = [False] * len(names) + [True] * len(held_names)
    names += held_names
    findings = Findings(names, marks)
    with tempfile.TemporaryDirectory(prefix="check_data_", ignore_cleanup_errors=True) as folder:
        files = [unpacked(name, folder) for name in names]
        columns, size = Columns(folder), sum(map(os.path.getsize, files))
        settings = (vocab and vocab.state(), text_field, max_len)
        with tqdm(total=size, unit="B", unit_scale=True, desc="数据体检", delay=2, leave=False, disable=not progress) as bar:
            rows = 0
            for number, result in scan_files(files, settings, bar.update):
                rows = _store(columns, number, result, findings, rows)
        book = Book(columns, files, marks, text_field)
        try:
            _strangers(findings, book)
            _duplicates(findings, book, near, threshold, eval_share if not held_names else 0.0)
        finally:
            book.close()
            columns.close()
            del book
    return findings.summary(vocab, max_len, max_bad_share)


def _store(columns, number, result, findings, rows):
    """Add one block's numbers; -> rows so far."""
    before, own = findings.files[number]["lines"], result["columns"]
    findings.add_block(number, result, before)
    count = len(own["line"])
    columns.append(line=own["line"] + before, offset=own["offset"], kind=own["kind"], hash=own["hash"],
                   file=np.full(count, number, np.uint32), long=own["long"] + rows, signature=own["signature"])
    return rows + count


def _strangers(findings, book):
    """Rows of a shape that hardly any other row of their file has."""
    kinds = book.columns.get("kind")
    for number, file in enumerate(findings.files):
        own = np.asarray(book.file == number)
        if file["rows"] < FEW:
            continue
        counts = np.bincount(kinds[own], minlength=len(KIND_NUMBERS))
        for kind in np.flatnonzero((counts > 0) & (counts < MINORITY * file["rows"])):
            for row in np.flatnonzero(own & (kinds == kind))[:KEPT].tolist():
                findings.note("mixed", *book.place(row))


def _duplicates(findings, book, near, threshold, eval_share):
    every = held_every(eval_share, len(book.line))
    first_row = np.cumsum([0] + [f["lines"] for f in findings.files])
    pairs, found = [], {}
    for kind, row, earlier, share in find_duplicates(book, near, threshold):
        (number, line), (other, other_line) = book.place(row), book.place(earlier)
        pairs.append((int(first_row[number]) + line - 1, int(first_row[other]) + other_line - 1)) if every else None
        where = f"{Path(findings.files[other]['path']).name} " if other != number else ""
        alike = "" if share == 1.0 else f"，相似 {share:.2f}"
        entry = found.setdefault(kind, [0, []])
        entry[0] += 1
        if len(entry[1]) < 50 * KEPT:                                   # sorted below; a cap all the same
            entry[1].append((number, line, f"同{where}第 {other_line} 行{alike}"))
    for kind, (count, places) in found.items():
        findings.faults[kind] = [count, sorted(places)[:KEPT]]
    findings.hidden_leaks = leaks_by_share(pairs, every)


# ---------------------------------------------------------------- the short form that opens every training

def quick_check(paths, held=None, vocab=None, max_len=512, text_field=None, max_bad_share=0.001, eval_share=0.0, say=print):
    """A few lines before a training starts, under a second: small data whole, large data by samples spread over it.

    say: where the Chinese lines go, None = nowhere. -> the same dict as `check`; `share` tells how much was read.
    """
    names = formats.expand_paths(paths)
    sizes = [os.path.getsize(n) for n in names]
    if sum(sizes) <= QUICK_BYTES and all(map(rangeable, names)):
        result = check(names, held if _is_small(held) else None, vocab, max_len, text_field, eval_share=eval_share,
                       max_bad_share=max_bad_share, progress=False)
    else:
        result = _sampled(names, sizes, vocab, max_len, text_field, max_bad_share)
    for line in wording.short(result) if say else ():
        say(line)
    return result


def brief(result):
    """What the log keeps of a check-up: journal.event("data_check", **brief(result))."""
    return {"verdict": result["verdict"], "rows": result["rows"], "bad_lines": result["bad_lines"], "share": round(result["share"], 4),
            "faults": {kind: entry["count"] for kind, entry in result["faults"].items()}}


def _is_small(held):
    return bool(held) and sum(map(os.path.getsize, formats.expand_paths(held))) <= QUICK_BYTES


def _sampled(names, sizes, vocab, max_len, text_field, max_bad_share):
    """Blocks evenly spread over all plain files, looked at in this process."""
    plain = [(n, s) for n, s in zip(names, sizes) if rangeable(n)]
    findings = Findings(names, [False] * len(names))
    total, width = sum(s for _, s in plain), QUICK_BYTES // QUICK_BLOCKS
    start_worker(vocab and vocab.state(), text_field, max_len)
    for k in range(QUICK_BLOCKS if plain else 0):
        at = total * k // QUICK_BLOCKS
        for name, size in plain:
            if at < size:
                break
            at -= size
        end = min(size, at + width)
        result = scan_block(name, at, end)
        known = result["bad"] or result["faults"]
        findings.add_block(names.index(name), result, lines_before(name, 0, at) if known and at <= COUNT_UP_TO else None)
    read = sum(f["bytes"] for f in findings.files)
    return findings.summary(vocab, max_len, max_bad_share, read / max(1, sum(sizes)))


# ---------------------------------------------------------------- the command

READS = ("json_data_path", "eval_data_path", "eval_share", "text_field", "vocab_trg_path", "vocab_size", "token_kind", "max_len",
         "max_bad_share", "hf_subset", "hf_split", "hf_streaming", "out_dir", "cache_dir")
OPTIONS = [
    ("files", {"nargs": "*", "metavar": "文件", "help": "要检查的数据（.jsonl .jsonl.gz .txt，可用通配），不写则检查配置里的训练数据"}),
    ("--held", {"nargs": "+", "metavar": "文件", "help": "留出数据：检查它有没有混进训练数据"}),
    ("--vocab", {"metavar": "文件", "help": "词表，默认用配置里的 vocab_trg_path；没有就用数据临时建一个"}),
    ("--near", {"type": float, "default": THRESHOLD, "metavar": "相似度",
                "help": f"多相似算近似重复（字符三元组的 Jaccard），默认 {THRESHOLD}，0 = 不查"}),
    ("--all", {"action": "store_true", "help": "列出每一处问题，而不只是前几处"}),
    ("--json", {"metavar": "文件", "help": "把结果另存为 JSON"}),
]


def main(argv=None):
    manager, options = parse(argv, __doc__, extra=OPTIONS, reads=READS)
    config = manager.config
    hub = {**config, **config["pre"]}                      # where and how an hf: name among them is fetched
    paths = formats.expand_paths(local_files(options.files or _configured(config), hub))
    text_field, held = formats.fields_of(config["pre"]), local_files(options.held or config["pre"]["eval_data_path"], hub)
    start = time.perf_counter()
    vocab, origin = _vocabulary(options.vocab or config["pre"]["vocab_trg_path"], bool(options.vocab), paths, config, text_field)
    result = check(paths, held, vocab, config["sft"]["max_len"], text_field, options.near > 0, options.near or THRESHOLD,
                   0.0 if held else config["pre"]["eval_share"], config["max_bad_share"])
    print(f"词表：{origin}" if vocab else origin)
    for line in wording.full(result, everything=options.all):
        print(line)
    if vocab:
        for line in wording.views(paths, vocab, text_field):
            print(line)
    print(f"用时 {time.perf_counter() - start:.1f} 秒。")
    print(result["verdict"])
    if options.json:
        Path(options.json).write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
    return 8 if result["level"] == "stop" else 0


def _configured(config):
    """The training data of the configuration, as far as it is there."""
    wanted = [p for stage in ("pre", "sft") for p in ([config[stage]["json_data_path"]] if isinstance(config[stage]["json_data_path"], str)
                                                       else config[stage]["json_data_path"] or [])]
    found = [p for p in dict.fromkeys(wanted) if is_hf(p) or Path(p).exists()]
    if not found:
        raise UserError("没有给出要检查的文件。用法：python tools/check_data.py data/我的数据.jsonl")
    return found


def _vocabulary(path, asked, paths, config, text_field):
    """(Vocab or None, where it comes from in Chinese)."""
    if asked or Path(path).exists():
        vocab = Vocab.load_vocab(path)
        return vocab, f"{path}（{len(vocab)} 项）"
    try:
        sample = TRIAL_BYTES[config["token_kind"]]
        vocab = Vocab.create_vocab(paths, config["vocab_size"], config["token_kind"], sample_bytes=sample, text_field=text_field, progress=False)
    except UserError as error:
        return None, f"没有词表，也建不出来（{error}），不统计词元。"
    return vocab, f"还没有，用这批数据临时建了一个（{len(vocab)} 项）"


if __name__ == "__main__":
    guarded(main)
