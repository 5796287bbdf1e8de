"""数据体检：逐行检查训练数据，列出坏行、乱码、重复、泄漏，说明有多少词元被截断、多少计入损失，并给出一句结论。"""
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
from tools.checkup.aim import Aim, aim_of, natural_stage
from tools.checkup.clean import check_target, write_clean, written
from tools.checkup.vocabulary import load_either, stage_vocabulary, trial_vocabulary
from tools.cli import guarded, parse
from tools.config.keys import STAGES
from tools.checkup.duplicates import Book, find_duplicates
from tools.checkup.findings import KEPT, Findings
from tools.checkup.scan import KIND_NUMBERS, Columns, scan_block, scan_files, start_worker, store
from tools.checkup.scan import count_lines as lines_before
from tools.errors import UserError
from tools.reading.hub import is_hf, local_files
from tools.reading.containers import kind_of
from tools.reading.lines import unpacked
from tools.checkup.near import THRESHOLD
from tools.reading.held_out import held_every

FEW, MINORITY = 20, 0.02    # a file of 20 rows or more: a shape that under 2 % of its rows have is a stranger
QUICK_BYTES, QUICK_BLOCKS = 3 << 19, 12
COUNT_UP_TO = 64 << 20      # bytes read to tell a line's number in a sample; further on the place is given in percent


def check(paths, held=None, vocab=None, max_len=512, text_field=None, near=True, threshold=THRESHOLD, eval_share=0.0,
          max_bad_share=0.001, progress=True, aim=None, origin=None):
    """The whole check-up -> dict (see Findings.summary). paths, held (the held-out data): files, patterns or lists.

    aim: the Aim to judge for, or a function of a path that gives one; None: every row by its own kind and `max_len`.
    origin: Origin of the vocabulary. Memory is flat: columns of numbers lie in a temporary folder (90 bytes a row).
    UserError 2 for missing files, and where held-out data is the training data.
    """
    names = formats.expand_paths(paths)
    held_names = formats.expand_paths(held) if held else []
    if same := same_files(names, held_names):
        raise UserError(f"留出数据就是训练数据：{same[0]}。它们要分开，否则量到的只是背诵；"
                        "请从 --held（eval_data_path）或训练数据里去掉它。")
    with tempfile.TemporaryDirectory(prefix="check_data_", ignore_cleanup_errors=True) as folder:
        files = [unpacked(name, folder)[0] for name in names + held_names]
        return _check(names, held_names, files, folder, vocab, text_field, aim or Aim(max_len=max_len), origin, near,
                      threshold, eval_share, max_bad_share, progress)


def same_files(names, held):
    """Held-out files that are training files, whatever way they are named."""
    real = {os.path.realpath(name) for name in names}
    return [name for name in held if os.path.realpath(name) in real]


def _check(names, held_names, files, folder, vocab, text_field, aim, origin, near, threshold, eval_share, max_bad_share,
           progress=False, same=()):
    """files: the plain files behind names + held_names."""
    marks = [False] * len(names) + [True] * len(held_names)
    aims = [aim(name) if callable(aim) else aim for name in names]
    aims += [aims[0]] * len(held_names)
    findings = Findings(names + held_names, marks, aims, same)
    columns, size = Columns(folder), sum(map(os.path.getsize, files))
    settings = (vocab and vocab.state(), text_field)
    with tqdm(total=size, unit="B", unit_scale=True, desc="数据体检", delay=2, leave=False, 
              disable=not progress) as bar:
        rows = 0
        for number, result in scan_files(files, aims, settings, bar.update):
            before = findings.files[number]["lines"]
            findings.add_block(number, result, before)
            rows = store(columns, number, result, before, rows)
    book = Book(columns, files, marks, text_field)
    try:
        _strangers(findings, book)
        _duplicates(findings, book, near, threshold, held_names, eval_share)
    finally:
        book.close()
        columns.close()
        del book
    return findings.summary(vocab, origin, max_bad_share)


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


def _duplicates(findings, book, near, threshold, held_names, eval_share):
    first_row = np.cumsum([0] + [f["last"] for f in findings.files])
    numbers = first_row[book.file] + book.line - 1                      # data rows from 0, as training numbers them
    training = ~book.held_files[book.file] & (np.asarray(book.columns.get("teaches")) > 0)
    every = 0 if held_names else held_every(eval_share, int(training.sum()))
    kept_out = training & (numbers % every == 0) if every else np.zeros(len(numbers), bool)
    if kept_out.sum() == training.sum():                # as training does: something is left to learn from
        kept_out[:] = False
    pairs, found = [], {}
    for kind, row, earlier, share in find_duplicates(book, near, threshold):
        pairs.append((row, earlier)) if every else None
        (number, line), (other, other_line) = book.place(row), book.place(earlier)
        where = f"{Path(findings.files[other]['path']).name} " if other != number else ""
        alike = "" if share == 1.0 else f"，相似 {share:.2f}"
        entry = found.setdefault(kind, [0, []])
        entry[0] += 1
        if len(entry[1]) < 50 * KEPT:                                   # sorted below; a cap all the same
            entry[1].append((number, line, f"同{where}第 {other_line} 行{alike}"))
    for kind, (count, places) in found.items():
        findings.faults[kind] = [count, sorted(places)[:KEPT]]
    both = [pair for a, b in pairs for pair in ((a, b), (b, a))]
    findings.hidden_leaks = len({held for held, other in both if kept_out[held] and not kept_out[other]})
    held = int(book.held_files[book.file].sum())
    findings.looked |= {"duplicates": True, "near": [len(book.columns.get("long")), len(numbers)] if near else None,
                        "leaks": [held, len(numbers) - held] if held_names else None,
                        "split": [int(training.sum() - kept_out.sum()), held if held_names else int(kept_out.sum()),
                                  len(numbers) - held - int(training.sum())]}


# ---------------------------------------------------------------- the short form that opens every training

def quick_check(paths, held=None, vocab=None, max_len=512, text_field=None, max_bad_share=0.001, eval_share=0.0,
                say=print, aim=None, origin=None):
    """A few lines before a training starts, under a second: small data whole, large data by samples spread over it.

    say: where the Chinese lines go, None = nowhere. -> the same dict as `check`; `share` tells how much was read.
    """
    names, aim = formats.expand_paths(paths), aim or Aim(max_len=max_len)
    held_names = formats.expand_paths(held) if held else []
    same = same_files(names, held_names)
    held_names = [name for name in held_names if name not in same]
    common = {"vocab": vocab, "text_field": text_field, "aim": aim, "origin": origin, "max_bad_share": max_bad_share,
              "same": same}
    with tempfile.TemporaryDirectory(prefix="check_data_", ignore_cleanup_errors=True) as folder:
        plain = [unpacked(name, folder, QUICK_BYTES) for name in names + held_names]
        small = sum(os.path.getsize(path) for path, _ in plain) <= QUICK_BYTES and all(whole for _, whole in plain)
        if small:
            result = _check(names, held_names, [path for path, _ in plain], folder, near=True, threshold=THRESHOLD,
                            eval_share=eval_share, **common)
        else:
            result = _sampled(names, plain[:len(names)], **common)
    for line in wording.short(result) if say else ():
        say(line)
    return result


def brief(result):
    """What the log keeps of a check-up: journal.event("data_check", **brief(result))."""
    return {"verdict": result["verdict"], "rows": result["rows"], "bad_lines": result["bad_lines"],
            "share": round(result["share"], 4),
            **{name: result["looked"][name] for name in ("stages", "vocab", "split")},
            "faults": {kind: entry["count"] for kind, entry in result["faults"].items()}}


def _sampled(names, plain, vocab, text_field, aim, origin, max_bad_share, same):
    """Blocks spread evenly over all files, looked at in this process. plain: (path, whether it is all of the file) of
    each."""
    findings = Findings(names, [False] * len(names), [aim] * len(names), same)
    sizes = [os.path.getsize(path) for path, _ in plain]
    start_worker(vocab and vocab.state(), text_field)
    for number, at, end in _spread(sizes):
        path = plain[number][0]
        result = scan_block(path, at, end, aim)
        known = result["bad"] or result["faults"]
        findings.add_block(number, result, lines_before(path, 0, at) if known and at <= COUNT_UP_TO else None)
    read = sum(f["bytes"] for f in findings.files)
    there = sum(size if whole else max(size, length_of(name)) for name, size, (_, whole) in zip(names, sizes, plain))
    return findings.summary(vocab, origin, max_bad_share, min(read / max(1, there), 1.0 if read >= there else 0.99))


def _spread(sizes):
    """Generator of (file number, first byte, end): all of little data, blocks evenly spread over much."""
    total, width = sum(sizes), QUICK_BYTES // QUICK_BLOCKS
    if total <= QUICK_BYTES:
        yield from ((number, 0, size) for number, size in enumerate(sizes))
        return
    ends = np.cumsum(sizes)
    for k in range(QUICK_BLOCKS):
        number = int(np.searchsorted(ends, total * k // QUICK_BLOCKS, side="right"))
        at = total * k // QUICK_BLOCKS - int(ends[number]) + sizes[number]
        yield number, at, min(sizes[number], at + width)


def length_of(path):
    """Bytes of a file's text; what a .gz says of itself, modulo 4 GiB."""
    if not kind_of(path).zipped:
        return os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(-4, os.SEEK_END)
        return int.from_bytes(file.read(4), "little")


# ---------------------------------------------------------------- the command

READS = ("json_data_path", "eval_data_path", "eval_share", "text_field", "columns", "training_mode", "init_from",
         "pretraining_model_path", "experts", "vocab_trg_path", "vocab_size", "token_kind", "max_len", "max_bad_share",
         "hf_subset", "hf_split", "hf_streaming", "out_dir", "cache_dir")
OPTIONS = [
    ("files", {"nargs": "*", "metavar": "文件", "help": "要检查的数据，可用通配，不写则检查配置里的训练数据"}),
    ("--stage", {"choices": STAGES, "help": "为哪个阶段检查；不写则每个文件看它哪种数据最多：文本按 pre，对话按 sft，偏好按 dpo"}),
    ("--held", {"nargs": "+", "metavar": "文件", "help": "留出数据：检查它有没有混进训练数据"}),
    ("--vocab", {"metavar": "文件", "help": "词表或模型（.pkl），默认用起点模型自带的，其次 vocab_trg_path；都没有就用数据临时建一个"}),
    ("--near", {"type": float, "default": THRESHOLD, "metavar": "相似度",
                "help": f"多相似算近似重复（字符三元组的 Jaccard），默认 {THRESHOLD}，0 = 不查"}),
    ("--output", {"metavar": "文件", "help": "把去掉坏行、重复和别家标记之后的数据写到这个 .jsonl（已有的文件不会覆盖）"}),
    ("--keep_duplicates", {"action": "store_true", "help": "写 --output 时留下重复的行"}),
    ("--all", {"action": "store_true", "help": "列出每一处问题，而不只是前几处"}),
    ("--json", {"metavar": "文件", "help": "把结果另存为 JSON"}),
]


def main(argv=None):
    manager, options = parse(argv, __doc__, extra=OPTIONS, reads=READS)
    config = manager.config
    section = config[options.stage or "pre"]
    hub = {**config, **section}                            # where and how an hf: name among them is fetched
    paths = formats.expand_paths(local_files(options.files or _configured(config, options.stage), hub))
    if not 0 <= options.near <= 1:
        raise UserError(f"--near 应在 0 到 1 之间，而不是 {options.near:g}。")
    if options.output:
        check_target(options.output)
    text_field, held = formats.fields_of(section), local_files(options.held or section["eval_data_path"], hub)
    start = time.perf_counter()
    stages = {path: options.stage or natural_stage(path, text_field) for path in paths}
    aims = {path: aim_of(stage, config[stage]) for path, stage in stages.items()}
    stage = aims[paths[0]].stage
    vocab, origin = load_either(options.vocab) if options.vocab else stage_vocabulary(manager.stage(stage), stage)
    if vocab is None:
        vocab, origin = trial_vocabulary(paths, config, text_field)
    near = {"near": options.near > 0, "threshold": options.near or THRESHOLD}
    result = check(paths, held, vocab, text_field=text_field, **near,
                   eval_share=section["eval_share"], max_bad_share=config["max_bad_share"], aim=aims.get, origin=origin)
    for line in wording.full(result, everything=options.all):
        print(line)
    if vocab:
        for line in wording.views(paths[:1], vocab, text_field, aim=aims[paths[0]]):
            print(line)
    if options.output:
        counts = write_clean(paths, options.output, text_field, aims.get, not options.keep_duplicates, **near)
        print(written(options.output, counts))
        again = check(options.output, None, vocab, max_bad_share=config["max_bad_share"], aim=aims[paths[0]], **near)
        print(f"{Path(options.output).name} 的{again['verdict']}")
    print(f"用时 {time.perf_counter() - start:.1f} 秒。")
    print(result["verdict"])
    if options.json:
        Path(options.json).write_text(json.dumps(result, ensure_ascii=False, indent=1), encoding="utf-8")
    return 8 if result["level"] == "stop" else 0


def _configured(config, stage):
    """The training data of the configuration, as far as it is there."""
    given = [config[one]["json_data_path"] or [] for one in ([stage] if stage else ("pre", "sft"))]
    wanted = [path for paths in given for path in ([paths] if isinstance(paths, str) else paths)]
    found = [p for p in dict.fromkeys(wanted) if is_hf(p) or Path(p).exists()]
    if not found:
        raise UserError("没有给出要检查的文件。用法：python tools/check_data.py data/我的数据.jsonl")
    return found


if __name__ == "__main__":
    guarded(main)
