"""Which rows a stage learns from and which it is scored on. A row that teaches it nothing is in neither, and is
named."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tools.errors import UserError
from tools.reading.held_out import held_every, split_text
from train_agent.trainers import parallel

AT_ONCE = 1 << 24           # tokens looked at together
NAMED = 10                  # rows that are named


@dataclass
class Split:
    """Two caches (one, where nothing is named in eval_data_path) and the documents of each, in order."""
    cache: object
    training: np.ndarray
    held_cache: object
    held: np.ndarray

    def notes(self):
        """For the log's header, and for `announced`."""
        rows = {"train": count_rows(self.cache, self.training), "held": count_rows(self.held_cache, self.held)}
        own = rows["held"] if self.held_cache is self.cache else 0
        skipped = count_rows(self.cache, np.arange(len(self.cache))) - rows["train"] - own
        return {"rows": {**rows, "skipped": skipped, "bad": self.cache.meta["bad"]}}


def divided(options, open_data, usable):
    """The Split of json_data_path: held out is eval_data_path, else every so many-th row of what teaches anything.

    open_data(paths) -> cache; usable(cache) -> its documents that teach this stage. UserError 8 where there are none.
    """
    cache = open_data(options["json_data_path"])
    documents = usable(cache)
    if cache.meta["bad"] and parallel.is_main():
        print(f"跳过了 {cache.meta['bad']} 行不能用的数据，见 {Path(options['log_dir']) / 'bad_lines.jsonl'}。", file=sys.stderr)
    if not len(documents):
        raise UserError("数据里没有一行有可学的内容。请看上面的原因，或运行 python tools/check_data.py 看看每一行的问题。", 8)
    if options["eval_data_path"]:
        other = open_data(options["eval_data_path"])
        return Split(cache, documents, other, usable(other))
    training, held = split_documents(cache, options["eval_share"], documents)
    return Split(cache, training, cache, held)


def split_documents(cache, share, documents=None):
    """-> (training documents, held-out documents): every round(1/share)-th row, from row 0, is held out; see
    held_every."""
    documents = np.arange(len(cache)) if documents is None else np.asarray(documents)
    every = held_every(share, count_rows(cache, documents))
    held = np.asarray(cache.rows)[documents] % every == 0 if every else np.zeros(len(documents), bool)
    if held.all():                                        # something has to be left to learn from
        held[:] = False
    return documents[~held], documents[held]


def digest_of(cache):
    """A short name of what its files hold."""
    return "+".join(digest[:16] for digest in cache.meta["digests"])


def count_rows(cache, documents):
    """Data rows behind `documents`, which are in order."""
    return int((np.diff(np.asarray(cache.rows)[documents], prepend=-1) != 0).sum())


def announced(stage):
    """"训练 n 行，留出 m 行" of a Stage; empty for data that is not ours."""
    rows = stage.notes.get("rows")
    return split_text(rows["train"], rows["held"], rows["skipped"]) if rows else ""


def learnable(width, truncate):
    """usable(cache) of what is packed into rows of `width`: all of it, or the documents that keep a target when cut."""
    def usable(cache):
        return kept(cache, np.arange(len(cache)), teaches(cache, width) if truncate else np.ones(len(cache), bool),
                    f"max_len={width} 以内没有计入损失的回答。可加大 --max_len 或缩短提问")
    return usable


def kept(cache, documents, good, why):
    """The `documents` that are `good` (bool for each); the rows of the others are named with the reason (Chinese)."""
    rows = np.unique(np.asarray(cache.rows)[documents[~good]]) + 1
    if len(rows) and parallel.is_main():
        listed = "、".join(map(str, rows[:NAMED])) + ("等" if len(rows) > NAMED else "")
        print(f"{len(rows)} 行没有可学的内容，跳过（第 {listed} 行）：{why}。", file=sys.stderr)
    return documents[good]


def teaches(cache, width):
    """(documents,) bool: whether a document has a target among the tokens that follow its first `width` inputs."""
    if hasattr(cache, "parts"):
        return np.concatenate([teaches(part, width) for part in cache.parts])
    found, none = np.zeros(len(cache), bool), np.iinfo(np.int64).max
    for part in np.array_split(np.arange(len(cache)), 1 + len(cache.tokens) // AT_ONCE):
        if len(part):
            starts, ends = cache.bounds(part)
            targets = np.flatnonzero(cache.split(np.asarray(cache.tokens[starts[0]:ends[-1]]))[1]) + starts[0]
            first = np.append(targets, none)[np.searchsorted(targets, starts + 1)]
            found[part] = first < np.minimum(ends, starts + width + 1)
    return found
