"""Filling the tables of a counted head (model/kernels/ngram_head.py) from the text that the run trains on."""

import time

import numpy as np
import torch

from tools.errors import UserError

MOST = 32_000_000       # tokens; sorting them takes some 3 GB and a minute


def count_text(model, data):
    """data: the run's PackedData -> {"counted_tokens", "counting_seconds", "counting_cpu_seconds"}, for the log. UserError 2 for too much text."""
    since, since_cpu = time.perf_counter(), time.process_time()
    begin, end = data.cache.bounds(data.documents)
    sizes = end - begin
    if sizes.sum() > MOST:
        raise UserError(f"counted 要把训练文本全部数一遍，最多 {MOST:,} 个 token，这里有 {sizes.sum():,} 个。请设 counted=0 或减少数据。")
    positions = np.arange(sizes.sum()) - np.repeat(sizes.cumsum() - sizes, sizes)
    ids = data.cache.split(np.asarray(data.cache.tokens[np.repeat(begin, sizes) + positions]))[0]
    model.fc1.count(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(positions))
    model.fc1.left_out = True
    return {"counted_tokens": len(ids), "counting_seconds": round(time.perf_counter() - since, 2),
            "counting_cpu_seconds": round(time.process_time() - since_cpu, 2)}
