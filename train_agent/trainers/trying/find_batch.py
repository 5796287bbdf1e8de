"""How many rows fit into a micro-batch here? Twice as many, until memory or patience ends."""

import math
import time

import torch

from tools.errors import UserError
from train_agent.trainers import parallel
from train_agent.trainers.dataset import make_batch
from train_agent.trainers.hardware.ram import SavedBytes, memory_there
from train_agent.trainers.preflight import SPARE, clock, gigabytes
from train_agent.trainers.trying.dry_loop import Rehearsal

MOST, PATIENCE = 1024, 30.0     # rows, and seconds of one step beyond which more rows are only slower
FULL = ("out of memory", "allocate memory")


class Trial(Rehearsal):
    """Steps on batches of any number of rows, all of them full."""

    def batch(self, rows):
        """`rows` rows of max_len from the beginning of the data, repeated as needed."""
        data = self.stage.train
        pieces, batches = data._plan(0, 0)
        if pieces is None:                                 # the gate's turns
            raise UserError("--find_batch 用于语言模型的阶段，选择门的批不用找。")
        there = sorted((row for batch in batches for row in batch), key=lambda row: -sum(pieces[p][2] for p in row))
        return make_batch(data.cache, pieces, [there[i % len(there)] for i in range(rows)], rows, data.width,
                          teacher=data.teacher)

    def step_with(self, rows):
        """-> (seconds, bytes kept for the backward pass or None where the device ran out of memory)"""
        batch, counted = self.batch(rows), SavedBytes(self.model)
        try:
            start = self.now()
            with counted:
                self.optimize([batch], 1)
            if self.device.type == "cuda":                 # where the first step of a size also fetches its memory
                start = self.now()
                self.optimize([batch], 1)
            return self.now() - start, counted.total
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, (MemoryError, torch.OutOfMemoryError)) and not any(w in str(error).lower()
                    for w in FULL):
                raise
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            return math.inf, None

    def now(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def find_batch(stage, say=print):
    """`--find_batch` -> {"batch_size", "fastest", "tried": [{"rows", "seconds", "tokens_per_s", "bytes"}]}; the model
    stays as it is."""
    say = say if say and parallel.is_main() else lambda line: None
    tried, largest, rows, why = [], 0, 1, f"再大没有试（{MOST} 行为止）"
    with Trial(stage, accumulation_steps=1) as loop:
        loop.step_with(1)                                  # buffers, optimizer state, the allocator's first blocks
        there = min((t for t in parallel.gathered(memory_there(loop.device)) if t is not None), default=None)
        while rows <= MOST:
            expected = tried[-1]["bytes"] * rows / tried[-1]["rows"] if tried else 0
            if there is not None and loop.device.type == "cpu" and expected > SPARE * there:
                why = f"{rows} 行约需 {gigabytes(expected)} 激活，超过可用内存的 {SPARE:.0%}"      # a CPU gives no second chance
                break
            each = parallel.gathered(loop.step_with(rows))             # ranks go on, and stop, together
            seconds, sizes = max(took for took, _ in each), [size for _, size in each]
            kept = None if None in sizes else max(sizes)
            if kept is None:
                why = f"{rows} 行放不下"
                break
            largest = rows
            tried.append(
                {"rows": rows, "seconds": seconds, "tokens_per_s": rows * stage.train.width / seconds, "bytes": kept})
            say(f"{rows:>5} 行  {seconds:>7.3g} 秒一步  每秒 {tried[-1]['tokens_per_s']:>9,.0f} token  激活 {gigabytes(kept)}")
            if seconds > PATIENCE:
                why = f"{rows} 行的一步已要 {clock(seconds)}，不再加大"
                break
            rows *= 2
    if not largest:
        raise UserError("一行也放不下：请减小 max_len 或模型，或加上 --gradient_checkpointing。")
    fastest = max(tried, key=lambda t: t["tokens_per_s"])["rows"]
    say(f"放得下的最大微批：--batch_size {largest}（{why}）；最快的是 {fastest} 行。每步总行数要不变，就把 --accumulation_steps 相应减小。")
    return {"batch_size": largest, "fastest": fastest, "tried": tried}
