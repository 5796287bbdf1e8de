"""What a counted head (model/kernels/ngram_head.py) knows of a run's data: its tables count what they have not seen,
and every target that they have counted is left out of them, in training and in evaluation."""

import sys
import time

import numpy as np
import torch

from model.kernels.cross_entropy import chosen
from model.kernels.ngram_head import UNLISTED, last_ids
from train_agent.trainers import parallel
from train_agent.trainers.dataset import Position

MOST = 32_000_000       # tokens counted at once; sorting them takes some 3 GB and a minute
AT_ONCE = 4_000_000     # tokens looked at together


def count_training(stage):
    """The tables of a stage that trains the whole model count its training documents, as far as they do not know them.

    The main process counts, for all of them; the log's header is told tokens and seconds. Adapters leave the tables
    alone: their files hold their own tensors, and an adapter that has learned nothing has to be the base.
    """
    head = head_of(stage.model)
    if head is None:
        return
    since, since_cpu = time.perf_counter(), time.process_time()
    leave_out(stage.model, stage.train)

    def count():
        ids, positions = (t.to(head.weight.device) for t in new_text(stage.train))
        if len(ids):
            head.count(ids, positions)
        return {**head.tables_state(), "new": torch.tensor(len(ids))}
    found = parallel.tensors_from_main(count)
    tokens = int(found.pop("new"))
    if not parallel.is_main():
        head.take_tables(found)
    stage.notes |= {"counted_tokens": tokens, "counting_seconds": round(time.perf_counter() - since, 2),
                    "counting_cpu_seconds": round(time.process_time() - since_cpu, 2)}
    for data in (stage.train, *stage.held.values()):
        data.counted = flags(head, data)


def head_of(model):
    """The counted head of a model, or None."""
    head = getattr(model, "fc1", None)
    return head if hasattr(head, "documents") else None


def leave_out(model, *sets):
    """Tell PackedData which of its documents the tables of `model` have counted; without tables nothing changes."""
    head = head_of(model)
    if head is None:
        return
    for data in sets:
        data.counted = flags(head, data)
    if UNLISTED in head.documents and parallel.is_main():
        print("起点模型的计数表没有记下数过哪些文本（旧版本训练的），改按内容判断："
              f"{len(sets[0].ever()):,} 段训练数据里有 {int(sets[0].counted.sum()):,} 段在表里，学它们时先从表里去掉。", file=sys.stderr)


def flags(head, data):
    """(documents of the cache,) bool: those of `data` that the tables have counted."""
    counted, documents = np.zeros(len(data.cache), dtype=bool), data.ever()
    counted[documents] = known(head, data.cache, documents)
    return counted


def new_text(data):
    """-> ids, positions (T,) of the training documents that the tables have not counted."""
    documents = data.ever()
    documents = documents[~data.counted[documents]]
    sizes = np.subtract(*reversed(data.cache.bounds(documents)))
    if sizes.sum() > MOST:
        fitting = int(len(documents) * MOST / sizes.sum())
        documents = documents[np.linspace(0, len(documents) - 1, fitting).astype(np.int64)]
        print(f"counted：没数过的训练文本有 {sizes.sum():,} 个词元，一次最多数 {MOST:,} 个（再多内存不够）：只数其中均匀的 "
              f"{fitting:,} 段，其余照常训练。想全部都数请减少数据；不想数，从零训练时用 --counted 0。", file=sys.stderr)
    return text_of(data.cache, documents)


@torch.no_grad()
def recall(stage, group):
    """Which share of the targets the tables know, themselves left out: {"train": of the batches `group`, "held": of
    held-out data, None without}; None without tables. The two look alike, unless the tables have the text once more."""
    head = head_of(stage.model)
    if head is None or getattr(stage.train, "counted", None) is None:
        return None
    held = next((data for name, data in stage.held.items() if name != "general"), None)
    places = [Position(0, 0, i) for i in range(min(len(group), held.batches_in(0, 0)))] if held else []
    return {"train": share_known(head, group), "held": share_known(head, map(held.batch, places)) if held else None}


def share_known(head, batches):
    known, table = [], [table for table in head.tables if table.least == 1][-1]       # the longest that drops nothing
    for batch in batches:
        labels = (batch.labels_1 if hasattr(batch, "labels_1") else batch.labels).flatten()
        before = last_ids(batch.ids.flatten(), batch.positions.flatten(), head.past)
        parts = chosen(labels, labels, before, batch.left_out.flatten())
        labels, before, left_out = (t.to(head.weight.device) for t in parts)
        known.append(table.facts(before, labels, left_out)[2] > 0)
    return float(torch.cat(known).float().mean())


def known(head, cache, documents):
    """(D,) bool: which of these documents of a cache the tables have counted."""
    sizes = np.subtract(*reversed(cache.bounds(documents)))
    parts = np.split(documents, np.flatnonzero(np.diff(sizes.cumsum() // AT_ONCE)) + 1)
    texts = ([t.to(head.weight.device) for t in text_of(cache, part)] for part in parts)
    return np.concatenate([head.holds(*text).cpu().numpy() for text in texts])


def text_of(cache, documents):
    """-> ids, positions (T,) int64 of these documents, one after the other."""
    begin, end = cache.bounds(documents)
    sizes = end - begin
    positions = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
    ids = cache.split(np.asarray(cache.tokens[np.repeat(begin, sizes) + positions]))[0]
    return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(positions)
