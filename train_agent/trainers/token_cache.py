"""Rows of text -> one memory-mapped file of token ids, made once per (data, vocabulary, template) with all cores.

`tokens.bin` holds all documents one after the other; the top bit of each number says "supervised". `ends.bin` holds each
document's end, `rows.bin` the zero-based row it came from. Nothing here imports torch: the worker processes start fast.
"""

import hashlib
import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools import formats, template
from tools.errors import UserError
from tools.vocab import Vocab

VERSION = 1                 # part of the key: raise it when the layout of the cache changes
BLOCK = 2 << 20             # bytes of JSONL per job
PARALLEL_FROM = 4 << 20     # smaller data is done in this process: starting workers costs more


class TokenCache:
    """Read access. Documents 0..len-1; `document(i)` -> ids (int64), supervised (bool)."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
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


def open_cache(data, vocab, mode, cache_dir, text_field=None, max_bad_share=0.001, bad_log=None):
    """The token cache of these files, built if it is not there. data: path, pattern or list; mode: pretraining (all of it is learned) | instruction_finetuning."""
    paths = formats.expand_paths(data)
    folder_root = Path(cache_dir)
    digests = [file_digest(p, folder_root) for p in paths]
    key = hashlib.sha256(json.dumps([VERSION, template.TEMPLATE, digests, vocab.hash, mode, text_field]).encode()).hexdigest()[:24]
    folder = folder_root / key
    if not (folder / "meta.json").exists():
        _build(folder, paths, vocab, mode, text_field, max_bad_share, bad_log, digests)
    cache = TokenCache(folder)
    _check_sizes(cache, folder)
    return cache


def _check_sizes(cache, folder):
    sizes = {n: (folder / n).stat().st_size for n in ("tokens.bin", "ends.bin", "rows.bin")}
    if sizes != cache.meta["sizes"]:
        raise UserError(f"分词缓存 {folder} 已损坏（大小不符）。删除这个文件夹后重新运行即可。", 4)


def file_digest(path, cache_dir):
    """SHA-256 of a data file. Size and modification time decide whether it has to be read again."""
    path = Path(path).resolve()
    stat = path.stat()
    known_file = Path(cache_dir) / "files.json"
    try:
        known = json.loads(known_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    entry = known.get(str(path))
    if entry and entry[:2] == [stat.st_size, stat.st_mtime_ns]:
        return entry[2]
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    known[str(path)] = [stat.st_size, stat.st_mtime_ns, digest]
    _replace(known_file, json.dumps(known).encode())
    return digest


def _replace(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _build(folder, paths, vocab, mode, text_field, max_bad_share, bad_log, digests):
    work = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        meta = _write(work, paths, vocab, mode, text_field, formats.BadLines(bad_log, max_bad_share))
        meta["digests"] = digests
        (work / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(work, paths, vocab, mode, text_field, bad):
    dtype = np.dtype(np.uint16 if len(vocab) <= 1 << 15 else np.uint32)
    total_bytes = sum(os.path.getsize(p) for p in paths)
    documents = tokens = rows = 0
    with open(work / "tokens.bin", "wb") as out, open(work / "ends.bin", "wb") as ends, open(work / "rows.bin", "wb") as origin, \
            tqdm(total=total_bytes, unit="B", unit_scale=True, desc="分词", delay=2, leave=False) as bar:
        for result in _results(paths, vocab, mode, text_field, dtype, total_bytes):
            for number, reason, raw in result["bad"]:
                bad.add(result["file"], number, reason, raw)
            out.write(result["numbers"].tobytes())
            ends.write((tokens + result["lengths"].cumsum()).astype(np.int64).tobytes())
            origin.write(result["rows"].astype(np.int64).tobytes())
            tokens += len(result["numbers"])
            documents += len(result["lengths"])
            rows += result["lines"]
            bar.update(result["bytes"])
        for f in (out, ends, origin):
            f.flush()
            os.fsync(f.fileno())
    bad.check(rows)
    if not documents:
        raise UserError(f"{paths[0]} 里没有一条可用的数据。用 python tools/check_data.py 看看每一行的问题。", 2)
    sizes = {n: (work / n).stat().st_size for n in ("tokens.bin", "ends.bin", "rows.bin")}
    return {"dtype": dtype.name, "documents": documents, "tokens": tokens, "rows": rows, "bad": bad.count, "sizes": sizes,
            "files": [str(p) for p in paths]}


def _results(paths, vocab, mode, text_field, dtype, total_bytes):
    """Encoded blocks in file order; several processes when that pays, never more blocks in flight than twice the workers."""
    settings = (vocab.state(), mode, text_field, dtype.name)
    cores = os.cpu_count() or 1
    if total_bytes < PARALLEL_FROM or cores == 1:
        _start_worker(*settings)
        yield from map(_encode_block, _blocks(paths))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(cores, context, _start_worker, settings) as pool:
        waiting = []
        for block in _blocks(paths):
            waiting.append(pool.submit(_encode_block, block))
            if len(waiting) >= 2 * cores:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _blocks(paths):
    """(file, [(line number, bytes)], row number of line 1) in blocks of about BLOCK bytes."""
    offset = 0
    for path in paths:
        lines, size, last = [], 0, 0
        for number, raw in formats.iter_lines(path):
            lines.append((number, bytes(raw) if not isinstance(raw, formats.TooLong) else raw))
            last, size = number, size + len(raw) + 1
            if size >= BLOCK:
                yield str(path), lines, offset
                lines, size = [], 0
        if lines:
            yield str(path), lines, offset
        offset += last


_worker = {}


def _start_worker(vocab_state, mode, text_field, dtype):
    _worker.update(vocab=Vocab.from_state(vocab_state), mode=mode, text_field=text_field, dtype=np.dtype(dtype))


def _encode_block(block):
    path, lines, offset = block
    plain = formats.is_plain_text(path)
    rows, numbers, bad = [], [], []
    for number, raw in lines:
        row = formats.parse_line(raw, _worker["text_field"], plain)
        if isinstance(row, str):
            bad.append((number, row, raw[:1000]))
        else:
            rows.append(row)
            numbers.append(offset + number - 1)
    parts, owners = [], []
    dtype = _worker["dtype"]
    top = dtype.type(1 << (8 * dtype.itemsize - 1))
    for number, documents in zip(numbers, template.render_many(rows, _worker["vocab"])):
        for ids, supervised in documents:
            if _worker["mode"] == "pretraining":
                supervised[1:] = True
            parts.append(ids.astype(dtype) | np.where(supervised, top, dtype.type(0)))
            owners.append(number)
    return {"file": path, "lines": len(lines), "bytes": sum(len(raw) + 1 for _, raw in lines), "bad": bad,
            "numbers": np.concatenate(parts) if parts else np.zeros(0, dtype),
            "lengths": np.array([len(p) for p in parts], dtype=np.int64), "rows": np.array(owners, dtype=np.int64)}
