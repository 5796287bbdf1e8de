"""What a counted head (model/kernels/ngram_head.py) knows of the data of a run: its tables count what they have not seen, and every
target that they have counted is left out of them, in training and in evaluation."""

import sys
import time

import numpy as np
import torch

from model.kernels.ngram_head import UNLISTED
from train_agent.trainers import parallel

MOST = 32_000_000       # tokens counted at once; sorting them takes some 3 GB and a minute
AT_ONCE = 4_000_000     # tokens looked at together


def count_training(stage):
    """The tables of a stage that trains the whole model count its training documents, as far as they do not know them yet.

    Every process counts what the main one does. The log's header is told tokens and seconds. Adapters leave the tables alone: their
    files hold their own tensors, and one that has learned nothing has to be the base.
    """
    head = getattr(stage.model, "fc1", None)
    if not hasattr(head, "documents"):
        return
    since, since_cpu = time.perf_counter(), time.process_time()

    def count():
        ids, positions = (t.to(head.weight.device) for t in new_text(head, stage.train))
        if len(ids):
            head.count(ids, positions)
        return {**head.tables_state(), "new": torch.tensor(len(ids))}
    found = parallel.tensors_from_main(count)
    tokens = int(found.pop("new"))
    if not parallel.is_main():
        head.take_tables(found)
    stage.notes |= {"counted_tokens": tokens, "counting_seconds": round(time.perf_counter() - since, 2),
                    "counting_cpu_seconds": round(time.process_time() - since_cpu, 2)}
    leave_out(stage.model, stage.train, *stage.held.values())


def new_text(head, data):
    """-> ids, positions (T,) of the training documents that the tables have not counted."""
    documents = data.ever()
    documents = documents[~known(head, data.cache, documents)]
    sizes = np.subtract(*reversed(data.cache.bounds(documents)))
    if sizes.sum() > MOST:
        documents = documents[np.linspace(0, len(documents) - 1, int(len(documents) * MOST / sizes.sum())).astype(np.int64)]
        print(f"counted：没数过的训练文本有 {sizes.sum():,} 个词元，一次最多数 {MOST:,} 个（再多内存不够）。只均匀地数其中 {len(documents):,} 段，"
              "其余照常训练。要全部数，请减少数据；从零训练也可以用 --counted 0。", file=sys.stderr)
    return text_of(data.cache, documents)


def leave_out(model, *sets):
    """Tell PackedData which of their documents the tables of `model` have counted; models without tables change nothing."""
    head = getattr(model, "fc1", None)
    if not hasattr(head, "documents"):
        return
    for data in sets:
        data.counted = np.zeros(len(data.cache), dtype=bool)
        documents = data.ever()
        data.counted[documents] = known(head, data.cache, documents)
    if UNLISTED in head.documents and parallel.is_main():
        print(f"起点模型是旧版本训练的，没有记下它的表数过哪些文本，改按内容判断：训练数据的 {len(sets[0].ever()):,} 段里有 "
              f"{int(sets[0].counted.sum()):,} 段已在表里，训练它们时先从表里去掉。", file=sys.stderr)


def known(head, cache, documents):
    """(D,) bool: which of these documents of a cache the tables have counted."""
    sizes = np.subtract(*reversed(cache.bounds(documents)))
    parts = np.split(documents, np.flatnonzero(np.diff(sizes.cumsum() // AT_ONCE)) + 1)
    return np.concatenate([head.holds(*(t.to(head.weight.device) for t in text_of(cache, part))).cpu().numpy() for part in parts])


def text_of(cache, documents):
    """-> ids, positions (T,) int64 of these documents, one after the other."""
    begin, end = cache.bounds(documents)
    sizes = end - begin
    positions = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
    ids = cache.split(np.asarray(cache.tokens[np.repeat(begin, sizes) + positions]))[0]
    return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(positions)
