"""Rows of text -> memory-mapped token ids, made once per (data file, vocabulary, template) with all cores.

Every data file has a folder of its own, so that one more shard costs one more shard; see joined_cache.py for several as
one. `tokens.bin` holds all documents one after the other; the top bit of each number says "supervised". `ends.bin`
holds each document's end, `rows.bin` the zero-based row it came from. Nothing here imports torch: the worker processes
start fast.

Every start reads the whole cache once and compares it with the SHA-256 in meta.json (all cores, about a second per
gigabyte and core): a flipped bit on the disk would otherwise be learned. What does not hold is made again from the
data.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools import formats, template
from tools.errors import UserError
from tools.vocab import Vocab
from tools.saving.atomic import PREFIX, CheckpointError, put_folder, read_json, still_written, write_json
from tools.reading.workers import Workers, cores
from train_agent.trainers.data.joined_cache import JoinedCache

VERSION = 4                 # part of the key: raise it when the layout of the cache changes
BLOCK = 2 << 20             # bytes of JSONL per job
PARALLEL_FROM = 4 << 20     # smaller data is done in this process: starting workers costs more
WITH_TOOLS = "带工具的整行（这个底座还不能用工具）"
FILES = ("tokens.bin", "ends.bin", "rows.bin")
PART = 64 << 20             # bytes under one SHA-256: parts of a large file are read side by side
STAMP = attrgetter("st_size", "st_mtime_ns")
ABANDONED = 3600            # seconds without a write after which a dead build's files go


class TokenCache:
    """Read access. Documents 0..len-1; `document(i)` -> ids (int64), supervised (bool)."""

    def __init__(self, folder):
        self.folder, self.name = Path(folder), Path(folder).name
        self.meta = read_json(self.folder / "meta.json")
        self.dtype = np.dtype(self.meta["dtype"])
        self.top = 1 << (8 * self.dtype.itemsize - 1)
        self.tokens = _mapped(self.folder / "tokens.bin", self.dtype)
        self.ends = _mapped(self.folder / "ends.bin", np.int64)
        self.rows = _mapped(self.folder / "rows.bin", np.int64)

    def __reduce__(self):
        return TokenCache, (self.folder,)           # data workers map the files themselves instead of receiving them

    def __len__(self):
        return len(self.ends)

    def bounds(self, documents):
        """documents (D,) -> starts, ends in `tokens`, int64 each."""
        documents = np.asarray(documents, dtype=np.int64)
        ends = np.asarray(self.ends[documents])
        starts = np.where(documents > 0, np.asarray(self.ends[np.maximum(documents - 1, 0)]), 0)
        return starts, ends

    def split(self, numbers):
        """Raw cache numbers -> ids int64, supervised bool."""
        return (numbers & (self.top - 1)).astype(np.int64), (numbers & self.top) != 0

    def document(self, i):
        start, end = self.bounds([i])
        return self.split(np.asarray(self.tokens[start[0]:end[0]]))


def _mapped(path, dtype):
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)


def open_cache(data, vocab, mode, cache_dir, text_field=None, max_bad_share=0.001, bad_log=None, verify=True,
               thinking="auto"):
    """The token cache of these files, built where it is not there or damaged.

    data: path, pattern or list; mode: pretraining (all of it is learned) | instruction_finetuning | preference (what is
    no pair is a bad line). text_field: as parse_line takes it. meta["dropped"]: {what: [rows, characters]} not learned.
    verify=False: another process of this machine has just read all of it. thinking: as template.with_thinking takes it.
    meta["acts"]: what beside words the data teach, as template.acts_in names it.
    """
    paths = formats.expand_paths(data)
    root, bad = Path(cache_dir), formats.BadLines(bad_log, max_bad_share)
    stamps = {p: STAMP(os.stat(p)) for p in paths}
    digests = [file_digest(p, root) for p in paths]
    common = [vocab.hash, mode, text_field, *([] if thinking == "auto" else [thinking])]
    keys = [hashlib.sha256(json.dumps([VERSION, template.TEMPLATE, [d], *common]).encode()).hexdigest()[:24]
            for d in digests]
    _sweep(root)
    missing = {k: (p, d) for k, p, d in zip(keys, paths, digests) if not _is_sound(root / k, verify)}
    if missing:
        with _encoder(vocab, mode, text_field, thinking,
                      sum(os.path.getsize(p) for p, _ in missing.values())) as encode:
            for key, (path, digest) in missing.items():
                _build(root / key, path, digest, encode, bad, stamps[path])
    parts = [TokenCache(root / key) for key in keys]
    cache = parts[0] if len(parts) == 1 else JoinedCache(parts)
    bad.count, bad.first = cache.meta["bad"], next(
        (tuple(p.meta["first_bad"]) for p in parts if p.meta.get("first_bad")), None)
    try:
        bad.check(cache.meta["rows"])
        if not cache.meta["documents"]:
            raise UserError(f"{paths[0]} 里没有一条可用的数据。用 python tools/check_data.py 看看每一行的问题。", 8)
    except UserError:
        for key in missing:                                # of data that is not fit for use nothing is left
            shutil.rmtree(root / key, ignore_errors=True)
        raise
    return cache


def _is_sound(folder, verify):
    """Whether a finished cache lies there; with `verify`, whether every byte is as it was written."""
    if not (folder / "meta.json").exists():
        return False
    try:
        content = read_json(folder / "meta.json")["content"]
        if content == (content_of(folder) if verify else content):
            return True
    except (CheckpointError, KeyError, OSError):
        pass
    print(f"分词缓存 {folder} 已损坏，从数据重新生成。", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    return False


def content_of(folder):
    """{file: [size, SHA-256 of each PART of it]} of a cache."""
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    places = [(name, start) for name, size in sizes.items() for start in range(0, size, PART)]
    with ThreadPoolExecutor(min(len(places) or 1, cores())) as pool:
        parts = pool.map(lambda place: _hash_part(folder / place[0], place[1]), places)
        hashed = list(tqdm(parts, total=len(places), delay=2, desc="检查分词缓存", leave=False))
    content = {name: [size] for name, size in sizes.items()}
    for (name, _), digest in zip(places, hashed):
        content[name].append(digest)
    return content


def _hash_part(path, start):
    sha, left = hashlib.sha256(), PART
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while left and (piece := file.read(min(left, 4 << 20))):
            sha.update(piece)
            left -= len(piece)
    return sha.hexdigest()


def _sweep(root):
    """Remove what killed builds left behind: nobody here writes it, and nobody elsewhere has for an hour."""
    for folder in root.glob(PREFIX + "*"):
        with contextlib.suppress(OSError):
            newest = max((p.stat().st_mtime for p in [folder, *folder.glob("*")]))
            if not still_written(folder.name) and time.time() - newest > ABANDONED:
                shutil.rmtree(folder) if folder.is_dir() else folder.unlink()


def file_digest(path, cache_dir):
    """SHA-256 of a data file. Size and modification time decide whether it has to be read again."""
    path = Path(path).resolve()
    stat = path.stat()
    known_file = Path(cache_dir) / "files.json"
    try:
        known = read_json(known_file)
    except CheckpointError:                                # not there, or damaged: what it would save is read again
        known = {}
    entry = known.get(str(path))
    if entry and entry[:2] == [stat.st_size, stat.st_mtime_ns]:
        return entry[2]
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    known[str(path)] = [stat.st_size, stat.st_mtime_ns, digest]
    known_file.parent.mkdir(parents=True, exist_ok=True)
    write_json(known_file, known)
    return digest


def _build(folder, path, digest, encode, bad, stamp):
    """stamp: of the file that has this digest. UserError 2 where it is another one by now."""
    work = folder.with_name(f"{PREFIX}{folder.name}-{os.getpid()}-{os.urandom(4).hex()}")
    work.mkdir(parents=True)
    try:
        meta = {**_write(work, path, encode, bad), "digests": [digest], "files": [str(path)]}
        if STAMP(os.stat(path)) != stamp:
            raise UserError(f"{path} 在读的时候变了：还没有下载完，或别的程序正在写它。等它写完，再运行同一条命令。", 2)
        write_json(work / "meta.json", meta)
        put_folder(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(work, path, encode, bad):
    documents = tokens = rows = last = wrong = 0
    first, dropped, acts = None, {}, set()
    with open(work / "tokens.bin", "wb") as out, open(work / "ends.bin", "wb") as ends, open(work / "rows.bin",
            "wb") as origin, \
            tqdm(total=os.path.getsize(path), unit="B", unit_scale=True, desc=f"分词 {Path(path).name}", delay=2,
                 leave=False) as bar:
        for result in encode(_blocks(path)):
            formats.add_dropped(dropped, result["dropped"])
            acts |= result["acts"]
            for number, reason, raw in result["bad"]:
                bad.add(path, number, reason, raw)
                first, wrong = first or (str(path), number, reason), wrong + 1
            out.write(result["numbers"].tobytes())
            ends.write((tokens + result["lengths"].cumsum()).astype(np.int64).tobytes())
            origin.write(result["rows"].astype(np.int64).tobytes())
            tokens += len(result["numbers"])
            documents += len(result["lengths"])
            rows, last = rows + result["lines"], result["last"]
            bar.update(result["bytes"])
        for f in (out, ends, origin):
            f.flush()
            os.fsync(f.fileno())
    return {"dtype": encode.dtype.name, "documents": documents, "tokens": tokens, "rows": rows, "lines": last,
            "bad": wrong, "first_bad": first, "dropped": dropped, "acts": sorted(acts), "content": content_of(work)}


class _encoder:
    """encode(blocks) -> their results in order; several processes when that pays, never more blocks in flight than
    twice the workers."""

    def __init__(self, vocab, mode, text_field, thinking, total_bytes):
        self.dtype = np.dtype(np.uint16 if len(vocab) <= 1 << 15 else np.uint32)
        self.settings = (vocab.state(), mode, text_field, thinking, self.dtype.name)
        self.cores = cores()
        self.alone = total_bytes < PARALLEL_FROM or self.cores == 1

    def __enter__(self):
        if self.alone:
            _start_worker(*self.settings)
        else:
            self.pool = Workers(self.cores, _start_worker, self.settings)
        return self

    def __exit__(self, *_):
        if not self.alone:
            self.pool.shutdown(cancel_futures=True)        # after an error or a signal nobody waits for what is queued

    def __call__(self, blocks):
        if self.alone:
            yield from map(_encode_block, blocks)
            return
        waiting = []
        for block in blocks:
            waiting.append(self.pool.submit(_encode_block, block))
            if len(waiting) >= 2 * self.cores:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _blocks(path):
    """(file, [(line number, bytes)]) in blocks of about BLOCK bytes."""
    lines, size = [], 0
    for number, raw in formats.iter_lines(path):
        lines.append((number, bytes(raw) if not isinstance(raw, formats.Unreadable) else raw))
        size += len(raw) + 1
        if size >= BLOCK:
            yield str(path), lines
            lines, size = [], 0
    if lines:
        yield str(path), lines


_worker = {}


def _start_worker(vocab_state, mode, text_field, thinking, dtype):
    _follow_parent()
    _worker.update(vocab=Vocab.from_state(vocab_state), mode=mode, text_field=text_field, thinking=thinking,
                   dtype=np.dtype(dtype))


def _follow_parent():
    """In a worker: Ctrl-C is the parent's business, and without a parent there is nothing left to do."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _encode_block(block):
    path, lines = block
    plain = formats.is_plain_text(path)
    rows, numbers, bad, dropped = [], [], [], {}
    for number, raw in lines:
        row = formats.parse_line(raw, _worker["text_field"], plain)
        if not isinstance(row, str):
            row = (formats.not_a_pair(row) or row) if _worker["mode"] == "preference" else formats.as_dialogue(row)
        if isinstance(row, str):
            bad.append((number, row, raw[:1000]))
        else:
            rows.append(row)
            numbers.append(number - 1)
    parts, owners, acts = [], [], set()
    dtype = _worker["dtype"]
    top = dtype.type(1 << (8 * dtype.itemsize - 1))
    rendered = template.render_many(rows, _worker["vocab"], thinking=_worker["thinking"])
    for row, number, documents in zip(rows, numbers, rendered):
        if documents:
            formats.count_dropped(dropped, formats.without_thoughts(row) if _worker["thinking"] == "off" else row)
        else:
            formats.add_dropped(dropped, {WITH_TOOLS: [1, sum(map(len, formats.row_texts(row)))]})
        for ids, supervised in documents:
            if _worker["mode"] == "pretraining":
                supervised[1:] = True
            acts |= template.acts_in(ids[supervised], _worker["vocab"])
            parts.append(ids.astype(dtype) | np.where(supervised, top, dtype.type(0)))
            owners.append(number)
    return {"lines": len(lines), "last": lines[-1][0], "bytes": sum(len(raw) + 1 for _, raw in lines), "bad": bad,
            "dropped": dropped, "acts": acts,
            "numbers": np.concatenate(parts) if parts else np.zeros(0, dtype),
            "lengths": np.array([len(p) for p in parts], dtype=np.int64), "rows": np.array(owners, dtype=np.int64)}
