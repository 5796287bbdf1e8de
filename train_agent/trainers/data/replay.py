"""Against forgetting: general rows mixed into an adaptation's data, and a fixed general set that is scored beside its
own."""

import random
import sys

import numpy as np

from tools.errors import UserError
from tools.reading.hub import is_hf
from tools.reading.lines import expand_paths
from train_agent.trainers import parallel
from train_agent.trainers.dataset import PackedData
from train_agent.trainers.data.joined_cache import JoinedCache
from train_agent.trainers.data.packing import shuffled
from train_agent.trainers.data.split import digest_of, split_documents, teaches
from train_agent.trainers.hardware import machine

GENERAL_SHARE = 0.02       # held out of the general data where eval_share is 0
REPLAY = 0xFFFF            # the stream of the shuffles that choose general rows
GENERAL_DOCUMENTS = 200    # of them, evenly spread, are scored: the guard must not cost more than the training
# Tokens x parameters that a CPU reads of them: about forty seconds of one core. Counted, not timed, for a resumed run
# has to read the same rows.
CPU_WORK = 1e12
LEAST_DOCUMENTS = 8


class ReplayData(PackedData):
    """PackedData in which `share` of the documents of every epoch are general ones, other ones in every epoch."""

    def __init__(self, cache, documents, general, share, options, truncate):
        """documents, general: numbers in the (joined) cache."""
        self.own, self.general = np.asarray(documents), np.asarray(general)
        self.replayed = max(1, round(len(self.own) * share / (1 - share)))
        super().__init__(cache, np.concatenate([self.own, self.drawn(0)]), options, truncate)

    def ever(self):
        return np.concatenate([self.own, self.general])

    def drawn(self, epoch):
        """The general documents of one epoch: walk through all of them, shuffled anew each time around."""
        size, first = len(self.general), epoch * self.replayed
        rounds = range(first // size, (first + self.replayed - 1) // size + 1)
        orders = np.concatenate([self.general[shuffled(size, 0, around, REPLAY)] for around in rounds])
        return orders[first - rounds[0] * size:][:self.replayed]

    def _records(self, chosen):
        return np.arange(len(self.documents))                  # the general ones come one by one

    def _shuffled_documents(self, epoch):
        mixed = np.concatenate([self.own, self.drawn(epoch)])
        return mixed[shuffled(len(mixed), self.seed, epoch, 0)], np.arange(1, len(mixed) + 1)


class Beside:
    """General rows for a stage whose own batches are of another kind: a few beside each of them. Which ones follows
    from the seed and the place of that batch, so that a resume finds the same."""

    def __init__(self, cache, options):
        self.data = PackedData(cache, split_general(cache, options)[0],
                               {**options, "batch_size": max(1, options["batch_size"] // 4)}, True)
        self.places, self.seed = self.data.places(), options["seed"]
        self.identity = {"通用数据": digest_of(cache)}          # a resume has to find it unchanged

    def batch(self, position):
        rng = random.Random("/".join(map(str, ("general", self.seed, *position))))
        return self.data.batch(rng.choice(self.places))


def same_data(options):
    """Whether the general data is the training data itself, so that there is nothing to guard against."""
    return set(_files(options["json_data_path"])) == set(_files(options["replay_data_path"]))


def _files(paths):
    """The files behind these paths; a data set of the hub is its own name."""
    named = [paths] if isinstance(paths, str) else list(paths or [])
    hub = [p for p in named if is_hf(p)]
    try:
        return hub + (expand_paths([p for p in named if p not in hub]) if len(hub) < len(named) else [])
    except UserError:
        return hub


def add_general(options, train, held, model, open_general):
    """Mix `replay_share` general rows into `train` and add the general set to `held`. -> train, held, identity hashes.

    open_general(paths) -> TokenCache. Without a general file, or where it is the training file, both stay as they are;
    asking for replay then is a UserError 2.
    """
    share, paths = options["replay_share"], options["replay_data_path"]
    if share and same_data(options):
        raise UserError("replay_share 大于 0，但通用数据就是训练数据。请用 --replay_data_path 指定另一份通用数据，或把 replay_share 设为 0。")
    if not share and (same_data(options) or not _files(paths)):
        return train, held, {}
    cache = open_general(paths)
    training, kept = split_general(cache, options)
    if not len(kept):
        raise UserError("通用数据（replay_data_path）里没有一行有可学的内容：请换一份，或加大 --max_len。", 8)
    chosen = evenly(kept)
    if machine.choose_device(options["device"]).type == "cpu":
        chosen = quickly_read(cache, chosen, options, model, "有没有遗忘")
    general = PackedData(cache, chosen, options, True, shuffle=False)
    if share:
        joined = JoinedCache([train.cache, cache])
        train = ReplayData(joined, train.documents, training + len(train.cache), share, options, True)
    return train, {**held, "general": general}, {"通用数据": digest_of(cache)} if share else {}


def split_general(cache, options):
    """-> general documents to learn from, and those to score; of a single row both."""
    documents = np.flatnonzero(teaches(cache, options["max_len"]))
    training, kept = split_documents(cache, options["eval_share"] or GENERAL_SHARE, documents)
    return training, kept if len(kept) else training


def evenly(documents):
    """At most GENERAL_DOCUMENTS of them, from all over the file."""
    return documents[:: -(-len(documents) // GENERAL_DOCUMENTS)]


def quickly_read(cache, documents, options, model, what):
    """Those of them, from all over, that `model` reads within CPU_WORK; fewer than all are told. what: they are for
    (Chinese)."""
    begin, end = cache.bounds(documents)
    work = int(np.minimum(end - begin - 1, options["max_len"]).sum()) * sum(p.numel() for p in model.parameters())
    most = max(LEAST_DOCUMENTS, int(len(documents) * CPU_WORK / work))
    if most >= len(documents):
        return documents
    if parallel.is_main():
        print(f"模型大，CPU 读得慢：{what}只看 {most} 行通用数据。", file=sys.stderr)
    return documents[np.arange(most) * len(documents) // most]


def general_to_learn_from(stage):
    """Some of the general rows that the guard of `stage` does not score, in their order: what its model, which lies on
    the CPU still, reads quickly; None where there is no general data."""
    guard = stage.held.get("general")
    if guard is None:
        return None
    chosen = quickly_read(guard.cache, evenly(split_general(guard.cache, stage.options)[0]), stage.options, stage.model,
                          "forget_penalty ")
    return PackedData(guard.cache, chosen, stage.options, True, shuffle=False)
