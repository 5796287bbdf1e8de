"""Reading data for the check-up: blocks of lines in several processes, small numbers out. Nothing here imports torch.

`scan_block` turns a byte range of a file into counts, faults and per-row columns (place, hash, signature); `scan_files`
hands out the blocks and yields their results in file order. Memory stays flat: columns go to disk (`Columns`).
"""
import hashlib
import os
from pathlib import Path

import numpy as np

from tools import formats, template
from tools.checkup.aim import is_cut, learned_part, read, why_nothing
from tools.checkup.faults import excused, pattern_faults, repeat_faults, row_faults
from tools.reading.bad_lines import field_names
from tools.reading.lines import is_plain_text, iter_places
from tools.checkup.near import SHORTEST, codes_of, signatures
from tools.template import message_texts
from tools.vocab import Vocab
from tools.reading.workers import Workers, cores

BLOCK = 4 << 20             # bytes per job
PARALLEL_FROM = 16 << 20    # less is done in this process: starting others costs more
BINS = 18                   # lengths 1, 2, 3-4, 5-8, ... 65537-131072
KIND_NUMBERS = {"text": 0, "dialogue": 1, "preference": 2}
UNKNOWN_SHARE, UNKNOWN_FROM = 0.3, 24     # a few strange characters in a short row say nothing about a vocabulary

_worker = {}


def start_worker(vocab_state=None, text_field=None):
    """Settings of this process; a vocabulary is what makes the counts of tokens possible."""
    _worker.update(vocab=vocab_state and Vocab.from_state(vocab_state), text_field=text_field)


def scan_block(path, start, end, aim):
    """One byte range of a plain file, judged for `aim` -> dict of counts, faults [(line from 1 in the range, kind)],
    columns."""
    places, bad, plain, dropped = [], [], is_plain_text(path), {}
    for number, offset, raw in iter_places(path, start, end):
        row = read(raw, _worker["text_field"], plain, aim)
        if isinstance(row, str):
            bad.append((number, row, field_names(raw) if "字段" in row else ""))
        else:
            row.line = number
            formats.count_dropped(dropped, row)
            places.append((row, offset, raw))
    rows = [row for row, _, _ in places]
    texts = [row_text(row) for row in rows]
    lengths = np.array([len(t) for t in texts], dtype=np.int64)
    starts = np.cumsum(lengths + 1) - lengths - 1
    joined = "".join(t + "\0" for t in texts)
    codes = codes_of(joined)
    numbered = [(i, kind) for i, (row, _, raw) in enumerate(places) for kind in (() if plain else row_faults(row, raw))]
    numbered += [hit for hit in pattern_faults(joined, starts) if not excused(hit[1], texts[hit[0]])]
    if len(codes):
        numbered += repeat_faults(codes, starts)
    tokens, token_faults, teaches = _token_counts(rows, aim)
    numbered += token_faults
    long = np.flatnonzero(lengths >= SHORTEST)
    columns = {"line": np.array([row.line for row in rows], np.int64),
               "offset": np.array([o for _, o, _ in places], np.int64),
               "kind": np.array([KIND_NUMBERS[row.kind] for row in rows], np.uint8),
               "hash": np.array([_row_hash(r) for r in rows], np.uint64),
               "teaches": teaches, "long": long,
               "signature": signatures(codes, starts[long], starts[long] + lengths[long])}
    return {"bytes": end - start, "lines": count_lines(path, start, end), "items": len(rows) + len(bad),
            "chars": int(lengths.sum()),
            "last": max([0, *(row.line for row in rows), *(line for line, *_ in bad)]), "bad": bad, "dropped": dropped,
            "faults": list(dict.fromkeys((rows[i].line, kind) for i, kind in numbered)), "columns": columns,
            "char_bins": histogram(lengths), **tokens}


def row_text(row):
    """All of a row's words as one string: what duplicates are judged by. Roles play no part."""
    return "\n".join(formats.row_texts(row))


def _row_hash(row):
    """64 bits of the content, roles and order included."""
    parts = row.texts or ["\1".join([m["role"], *message_texts(m)]) for m in row.messages] + [row.chosen or "",
        row.rejected or ""]
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "little")


def histogram(lengths):
    """Counts by powers of two: bin k holds the lengths in (2^(k-1), 2^k]. (BINS,) int64"""
    bins = np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
    return np.bincount(np.minimum(bins, BINS - 1), minlength=BINS)


def _token_counts(rows, aim):
    """Token statistics of these rows as the trainers would see them, faults that only tokens show, which rows teach
    anything."""
    teaches = np.ones(len(rows), np.uint8)
    if not _worker["vocab"]:
        return {}, [], teaches
    counts = dict.fromkeys(("tokens", "bytes_tokens", "learned", "cut", "cut_rows", "cut_learned", "documents", "over"),
                           0)
    faults, lengths, room = [], [], aim.max_len + 1
    low, high = _worker["vocab"].broken
    for i, documents in enumerate(template.render_many(rows, _worker["vocab"], thinking=aim.thinking)):
        total = fallback = longest = 0
        kind = rows[i].kind
        for ids, learned in documents:
            learned, size = learned_part(learned, kind, aim), len(ids)
            kept = learned[:room] if is_cut(kind, aim) else learned
            total, longest = total + size, max(longest, size)
            fallback += int(((ids >= low) & (ids < high)).sum())
            lengths.append(size)
            counts["over"] += size > room
            counts["learned"] += int(kept.sum())
            counts["cut_learned"] += int(learned.sum()) - int(kept.sum())
            counts["cut"] += size - len(kept)
        counts["cut_rows"] += is_cut(kind, aim) and longest > room
        if why := why_nothing(documents, kind, aim):
            teaches[i] = 0
            faults.append((i, why))
        counts["tokens"] += total
        counts["bytes_tokens"] += fallback
        counts["documents"] += len(documents)
        if fallback >= UNKNOWN_FROM and fallback > UNKNOWN_SHARE * total:
            faults.append((i, "unknown_words"))
    return {**counts, "token_bins": histogram(np.array(lengths, np.int64))}, faults, teaches


def count_lines(path, start, end):
    """Lines that begin in [start, end)."""
    with open(path, "rb") as f:
        f.seek(max(0, start - 1))
        left, count = end - max(0, start - 1) - 1, int(start == 0 < end)
        while left > 0 and (piece := f.read(min(left, 1 << 20))):
            count += piece.count(b"\n")
            left -= len(piece)
    return count


# ---------------------------------------------------------------- all blocks of all files

def scan_files(files, aims, settings, progress=lambda n: None):
    """Generator of (file number, result of scan_block) in order. files: plain paths, each with its aim."""
    jobs = [(number, path, at, min(at + BLOCK, size), aims[number]) for number, path in enumerate(files)
            for size in [os.path.getsize(path)] for at in range(0, size, BLOCK)]
    count = cores()
    if count == 1 or sum(job[3] - job[2] for job in jobs) < PARALLEL_FROM:
        start_worker(*settings)
        for number, *job in jobs:
            yield number, scan_block(*job)
            progress(job[2] - job[1])
        return
    with Workers(count, start_worker, settings) as pool:
        waiting = []
        # never more blocks in flight than twice the workers
        for job in jobs + [None] * (2 * count):
            if job:
                waiting.append((job, pool.submit(scan_block, *job[1:])))
            if waiting and (not job or len(waiting) > 2 * count):
                (number, _, at, end, _), future = waiting.pop(0)
                yield number, future.result()
                progress(end - at)


def store(columns, number, result, before, rows):
    """Add one block's columns -> rows so far. number: of its file; before: lines of the file before it; rows: so
    far."""
    own = result["columns"]
    count = len(own["line"])
    columns.append(line=own["line"] + before, **{name: own[name] for name in ("offset", "kind", "hash", "teaches")},
                   file=np.full(count, number, np.uint32), long=own["long"] + rows, signature=own["signature"])
    return rows + count


class Columns:
    """Arrays that grow on disk. append(line=..., hash=...), then `get(name)` maps one into memory."""

    def __init__(self, folder):
        self.folder, self.files, self.about = Path(folder), {}, {}

    def append(self, **arrays):
        for name, array in arrays.items():
            if name not in self.files:
                self.files[name] = open(self.folder / f"{name}.column", "wb")
                self.about[name] = (array.dtype, array.shape[1:])
            self.files[name].write(np.ascontiguousarray(array).tobytes())

    def get(self, name):
        """(N, …) read-only; empty where nothing was appended."""
        if name not in self.files:
            return np.zeros(0, np.int64)
        self.files[name].flush()
        dtype, shape = self.about[name]
        path = self.folder / f"{name}.column"
        return np.memmap(path, dtype, "r").reshape(-1, *shape) if path.stat().st_size else np.zeros((0, *shape), dtype)

    def close(self):
        for file in self.files.values():
            file.close()
