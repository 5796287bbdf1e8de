"""Data for people with a loop of their own: `create_dataloader` for files and hub names, `TextDataset` for one running
text."""

import copy
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from model.kernels.cross_entropy import IGNORE
from tools import formats
from tools.config.keys import KEYS, default_of
from tools.config.values import check_value
from tools.errors import UserError
from tools.vocab import Vocab
from train_agent.trainers import parallel
from train_agent.trainers.dataset import ItemData, PackedData, Position, loader
from train_agent.trainers.build_stage import cached
from train_agent.trainers.data.split import learnable

FILES = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".gz")


class TextDataset(Dataset):
    """Windows over one running text: item i is (tokens, targets), both (seq_len,) int64, targets one further.

    file: a .txt file, or any data file the trainers read; tokenizer: a Vocab, or whatever has .encode(text) -> ids.
    N tokens give (N - (seq_len + 1)) // stride + 1 windows: 1,000 tokens and seq_len 128 give 7. stride: default
    seq_len. UserError 2 where the text is shorter than one window.
    """

    def __init__(self, file, tokenizer, seq_len, stride=None):
        self.seq_len, self.stride = int(seq_len), int(stride or seq_len)
        if self.seq_len < 1 or self.stride < 1:
            raise UserError(f"seq_len 和 stride 应为正整数，而不是 {seq_len} 和 {stride}。")
        self.ids = np.asarray(tokenizer.encode(_text_of(file)), dtype=np.int64)
        if len(self) < 1:
            raise UserError(f"{file} 只有 {len(self.ids)} 个词元，不够一个窗口（seq_len {self.seq_len} + 1）。请换更长的文本或减小 seq_len。")

    def __len__(self):
        return (len(self.ids) - (self.seq_len + 1)) // self.stride + 1

    def __getitem__(self, i):
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        start = i % len(self) * self.stride
        window = torch.from_numpy(self.ids[start:start + self.seq_len + 1].copy())
        return window[:-1], window[1:]


def _text_of(file):
    """All the text of a file: a .txt as it is, the rows of a data file joined by line breaks."""
    if formats.is_plain_text(file) and not str(file).endswith(".gz"):
        path = formats.expand_paths(os.fspath(file))[0]
        try:
            return Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{file} 不是 UTF-8 文本。") from None
    return "\n".join(text for row in formats.read_rows(os.fspath(file)) for text in formats.row_texts(row))


def create_dataloader(dataset_name, tokenizer, batch_size=4, max_length=512, split="train", subset=None,
                      text_field=None,
                      training_mode="instruction_finetuning", num_workers=0, shuffle=True, num_samples=None, seed=0,
                      cache_dir=None, streaming=False, columns=None):
    """An iterable of packed batches, dicts for `outputs = model(**batch)`; each walk over it is the next epoch. len() =
    batches.

    dataset_name: a file, pattern or list of them, a folder or name of the `datasets` package; tokenizer: a Vocab or its
    path.
    num_samples: only so many rows. Raises UserError for what a user can mend.
    """
    vocab = tokenizer if isinstance(tokenizer, Vocab) else Vocab.load_vocab(tokenizer)
    given = {"batch_size": batch_size, "max_len": max_length, "hf_split": split, "hf_subset": subset,
             "text_field": text_field,
             "training_mode": training_mode, "num_workers": num_workers, "seed": seed, "n_of_samples": num_samples,
             "hf_streaming": streaming, "columns": columns}
    options = {name: default_of(name, "pre") for name in KEYS} | {name: check_value(name, value)
                                                                  for name, value in given.items()}
    options |= {"cache_dir": str(cache_dir or Path("out", "cache")), "log_dir": str(cache_dir or "logs"),
                "max_epochs": 1 << 30,
                "n_of_samplings": 1 if num_samples else None, "accumulation_steps": 1}
    cache = cached(options, vocab, _as_paths(dataset_name))
    truncate = training_mode != "pretraining"
    rows = learnable(max_length, truncate)(cache)
    if num_samples:
        first = np.unique(np.asarray(cache.rows))[:num_samples]
        rows = rows[np.isin(np.asarray(cache.rows), first)]
    options["n_of_samples"] = None
    data = PackedData(cache, rows, options, truncate, shuffle=shuffle)
    return BatchLoader(data, options)


def _as_paths(name):
    """What is no file here and does not look like one is a name for the `datasets` package."""
    if not isinstance(name, (str, Path)):
        return [_as_paths(one) for one in name]
    name = os.fspath(name)
    if name.startswith("hf:") or name.endswith(FILES) or any(c in name for c in "*?[") or os.path.isfile(name):
        return name
    return "hf:" + name


class BatchLoader:
    """Walks over one epoch of a PackedData at a time, in the batches of this process."""

    def __init__(self, data, options):
        self.data, self.options, self.epoch = data, options, 0

    def __len__(self):
        epoch = self.epoch if self.data.shuffle else 0
        return sum(-(-self.data.batches_in(epoch, chunk) // parallel.world()) for chunk in range(self.data.chunks))

    def __iter__(self):
        epoch = self.epoch if self.data.shuffle else 0
        self.epoch += 1
        walk = loader(self.data, Position(epoch, 0, 0), self.options, torch.device("cpu"), parallel.rank(),
                      parallel.world())
        for group, after, _ in walk:
            for batch in group:
                yield {"input_ids": batch.ids, "positions": batch.positions, "valid": batch.valid,
                       "layout": batch.layout,
                       "labels_1": batch.labels_1, "labels_2": batch.labels_2}
            if after.chunk >= self.data.chunks:
                return


# ---- somebody's own Dataset in our loop ----

class PairBatch:
    """tokens, targets: (B, T) int64, targets < 0 do not count. The rest is what the loop asks of a batch."""

    def __init__(self, tokens, targets, position=None):
        targets = targets.masked_fill(targets < 0, IGNORE)
        self.ids, self.targets, self.position = tokens, targets, position
        self.tokens, self.targets_1 = tokens.numel(), int((targets >= 0).sum())
        after = torch.nn.functional.pad(targets[:, 1:], (0, 1), value=IGNORE)
        self.targets_2 = int((after >= 0).sum())
        self.labels = targets, after

    def to(self, device):
        moved = copy.copy(self)                                # a blank one stays blank
        moved.ids, moved.targets = self.ids.to(device), self.targets.to(device)
        moved.labels = moved.targets, self.labels[1].to(device)
        return moved

    def pin_memory(self):
        return self

    def blank(self):
        empty = PairBatch(self.ids, torch.full_like(self.targets, IGNORE))
        empty.tokens = 0
        return empty


class PairData(ItemData):
    """Any map-style dataset of (tokens, targets) of equal length, walked through like packed documents."""

    def __init__(self, dataset, options, shuffle=True):
        super().__init__(None, np.arange(len(dataset)), options, truncate=False, shuffle=shuffle)
        self.dataset = dataset

    def batch(self, position):
        items = [self.dataset[int(i)] for i in self.items(position)]
        tokens, targets = (torch.stack([torch.as_tensor(item[k]) for item in items]).long() for k in (0, 1))
        made = PairBatch(tokens, targets, position)
        return made if position.batch >= 0 else made.blank()

    def source_rows(self, position):
        return sorted(int(i) for i in self.items(position))
