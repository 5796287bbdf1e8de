"""取公开数据：按名字下载（要 datasets 包和网络），或从本地镜像文件夹读，转成训练能直接用的 JSONL，带校验和，断了再来会接着做。"""

import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: a missing package ends in one line

from tqdm import tqdm

from tools.cli import guarded, parse
from tools.errors import UserError, explain
from tools.formats import BadLines, Row, iter_lines, parse_line
from tools.reading.hub import MARK, local_files
from tools.saving.archive import read_json, write_json
from tools.saving.atomic import CheckpointError, commit

ROOT = Path(__file__).resolve().parents[1]
EVERY = 5000            # rows between two notes of how far it is
SPACED = re.compile(r"(?<=[^\x00-\x7f]) +(?=\S)|(?<=\S) +(?=[^\x00-\x7f])")     # LCCC parts Chinese words by spaces
READABLE = ("*.jsonl", "*.json", "*.csv", "*.tsv", "*.txt", "*.jsonl.gz", "*.json.gz")


@dataclass(frozen=True)
class Set:
    """hub: its name there; subset; file: the one file of several; licence: as its page says; tight: spaces go."""

    hub: str
    what: str
    licence: str
    subset: str | None = None
    file: str | None = None
    tight: bool = False


# Short chat, dialogues of many turns, text. Names, files and licences are those that docs/datasets.md tells.
SETS = {
    "lccc": Set("thu-coai/lccc", "短的闲聊（约六百八十万段）", "MIT", subset="base", tight=True),
    "belle": Set("BelleGroup/multiturn_chat_0.8M", "多轮问答（83 万行）", "GPL-3.0，限研究", file="multiturn_chat_0.8M.json"),
    "minimind-text": Set("jingyaogong/minimind_dataset", "预训练文本（1.2 GB）", "请看发布页", file="pretrain_t2t_mini.jsonl"),
}
EXTRA = [("names", {"nargs": "*", "metavar": "名字", "help": f"{'、'.join(SETS)}，或网上的名字（如 组织/数据集）；不写就列出来"}),
         ("--mirror", {"metavar": "文件夹", "help": "本地镜像：里面有 组织/数据集/ 或 数据集/ 这样的文件夹；有 SHA256SUMS 就照它校验"}),
         ("--output", {"metavar": "文件夹", "default": str(ROOT / "data"), "help": "写到哪里（data）"}),
         ("--rows", {"type": int, "metavar": "N", "help": "只要前 N 行"})]


def sources(name, one, options, mirror):
    """The files that hold a set, in the mirror or fetched from the hub by the `datasets` package."""
    if not mirror:
        keys = {**options, "hf_subset": one.subset or options["hf_subset"]}
        try:
            return [Path(local_files(MARK + "/".join(filter(None, (one.hub, one.file))), keys))]
        except UserError as error:
            raise UserError(f"{error}没有网络时，把数据放进一个文件夹，用 --mirror 文件夹。", error.code) from None
    places = [Path(mirror) / place for place in (one.hub, one.hub.split("/")[-1], name)]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise UserError(f"镜像 {mirror} 里没有 {one.hub}：应有文件夹 {places[0]}。")
    found = sorted({path for pattern in READABLE for path in folder.rglob(one.file or pattern)})
    if not found:
        raise UserError(f"{folder} 里没有{one.file or '能读的数据文件（jsonl、json、csv、txt）'}。")
    for path in found:
        check_sum(path, folder)
    return found


def digest_of_file(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sum(path, folder):
    """Against the line of folder/SHA256SUMS, as `sha256sum` writes it; without one nothing is known."""
    listed = folder / "SHA256SUMS"
    if listed.is_file():
        entries = filter(None, listed.read_text(encoding="utf-8").splitlines())
        sums = dict(reversed(line.split(maxsplit=1)) for line in entries)
        sums = {name.lstrip("*").strip(): value for name, value in sums.items()}
        wanted = sums.get(path.relative_to(folder).as_posix())
        if wanted and wanted != digest_of_file(path):
            raise UserError(f"{path} 和 SHA256SUMS 对不上：文件不完整或被改过。请重新下载它。")


def plain(row, tight):
    """A Row -> what is written: {"text"} or {"conversations"}."""
    said = (lambda text: SPACED.sub("", text)) if tight else str
    if row.kind == "text":
        return [{"text": said(text)} for text in row.texts]
    messages = [*row.messages, *([{"role": "assistant", "content": row.chosen}] if row.kind == "preference" else [])]
    return [{"conversations": [{**one, "content": said(one["content"])} for one in messages]}]


def convert(files, target, tight, limit=None):
    """Write the rows of `files` to `target`; broken off, it goes on after the last note. -> rows, rows left out"""
    part, note = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")
    about = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files] + [tight, limit]
    done = noted(note, part, about)
    bad, seen = BadLines(target.with_name("bad_lines.jsonl"), 0.34), 0
    bar = tqdm(desc=target.name, delay=2, unit="行", leave=False)
    with open(part, "r+b" if done["read"] else "wb") as out, bar:
        out.truncate(done["bytes"])
        out.seek(done["bytes"])
        for path, number, raw in ((path, *line) for path in files for line in iter_lines(path)):
            seen += 1
            if seen <= done["read"]:
                continue
            if limit and done["rows"] >= limit:
                break
            row = parse_line(raw)
            rows = plain(row, tight) if isinstance(row, Row) else []
            if not rows:
                bad.add(path, number, row, raw)
            out.write(b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in rows))
            done["rows"], done["bad"], done["read"] = done["rows"] + len(rows), done["bad"] + (not rows), seen
            bar.update()
            if seen % EVERY == 0:
                out.flush()
                write_json(note, {"about": about, "done": {**done, "bytes": out.tell()}})
    bad.check(max(1, done["read"]))
    if not done["rows"]:
        raise UserError(f"{files[0]} 里没有一条可用的数据。用 python tools/check_data.py 看看每一行的问题。", 8)
    commit(part, target)
    note.unlink(missing_ok=True)
    return done


def noted(note, part, about):
    """How far an earlier start of the same work came."""
    try:
        known = read_json(note)
        if known["about"] == about and part.stat().st_size >= known["done"]["bytes"]:
            return dict(known["done"])
    except (CheckpointError, KeyError, OSError):
        pass
    return {"read": 0, "rows": 0, "bad": 0, "bytes": 0}


def get(name, options, command):
    """One set -> its line in Chinese."""
    one = SETS.get(name) or Set(name, "", "请看发布页")
    if name not in SETS and "/" not in name:
        raise UserError(f"没有叫 {name} 的数据，可选：{'、'.join(SETS)}；或写网上的全名，如 组织/数据集。")
    folder = Path(command.output)
    target = folder / f"{name.replace('/', '_')}.jsonl"
    sums = folder / "checksums.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = read_json(sums) if sums.exists() else {}
        if target.exists():
            if known.get(target.name) != digest_of_file(target):
                raise UserError(f"{target} 已经有了，却和当初取到的不一样（或不是本工具写的）。请移走它，再运行同一条命令。")
            return f"{target} 已经有了，校验通过。"
        done = convert(sources(name, one, options, command.mirror), target, one.tight, command.rows)
        write_json(sums, {**known, target.name: digest_of_file(target)})
    except OSError as error:
        raise explain(error, target) from error
    left = f"，{done['bad']:,} 行不能用，见 {folder / 'bad_lines.jsonl'}" if done["bad"] else ""
    return f"{target}：{done['rows']:,} 行{left}；许可：{one.licence}；SHA-256 记在 {sums}。"


def main(argv=None):
    manager, command = parse(argv, "取公开数据，转成训练能直接用的 JSONL。", extra=EXTRA,
                             reads=("cache_dir", "hf_split", "hf_subset", "hf_streaming", "out_dir"))
    if not command.names:
        print("\n".join(f"{name:<14} {one.hub:<34} {one.what}；许可：{one.licence}" for name, one in SETS.items()))
        return
    if command.rows is not None and command.rows < 1:
        raise UserError("--rows 至少为 1。")
    options = {**manager.config, **manager.config["pre"]}
    for name in command.names:
        print(get(name, options, command))


if __name__ == "__main__":
    guarded(main)
