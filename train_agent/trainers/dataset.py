"""Token cache -> packed batches. Every batch is a pure function of (data, seed, epoch, chunk, number).

A run walks through epochs, each epoch through chunks of `n_of_samples` documents, each chunk through its batches. A
Position names the next micro-batch; training can be stopped and taken up at any Position.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from model.kernels.cross_entropy import IGNORE
from model.kernels.ngram_head import orders_held
from model.segments import Segments
from tools.errors import UserError
from train_agent.trainers.data import ahead
from train_agent.trainers.data.packing import best_fit, cut, shuffled
from train_agent.trainers.running.options import DataOptions

CHUNK_DOCUMENTS = 16384     # documents per chunk where n_of_samples, which counts data rows, is null
NOTHING = -1                # what a rank reads where a step has no micro-batch left for it
EXACT_UP_TO = 300_000       # documents per epoch up to which the number of steps is counted, beyond it is estimated


class Position(NamedTuple):
    """The next micro-batch: epoch and chunk count from 0, batch within the chunk too. Batch NOTHING is one without
    content."""
    epoch: int = 0
    chunk: int = 0
    batch: int = 0


class Movable:
    """A batch, a dataclass, whose tensors and layout go to a device, or into pinned memory, together."""

    def to(self, device):
        return self if device.type == "cpu" else self._each(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self):
        return self._each(lambda part: part.pin_memory())

    def _each(self, change):
        return replace(
            self, **{k: change(part) for k, part in self.__dict__.items()
                     if isinstance(part, (torch.Tensor, Segments, Movable))})

    def blank(self):
        """Nothing to learn from, for a process that has no batch in a step."""
        return replace(self, tokens=0, targets_1=0, position=None)


@dataclass
class Batch(Movable):
    """ids, positions, labels_1, labels_2: (B, T) int64; valid: (B, T) bool; layout: documents for attention; counts as
    ints."""
    ids: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor
    labels_1: torch.Tensor
    labels_2: torch.Tensor
    layout: Segments
    tokens: int
    targets_1: int
    targets_2: int
    position: Position = None
    left_out: torch.Tensor = None        # (B, T) int8, see TinySeek.forward
    taught: Movable = None               # what a teacher says, see data/teacher_table.py

    def blank(self):
        """The same shapes without a single token that counts."""
        return replace(self, valid=torch.zeros_like(self.valid), labels_1=torch.full_like(self.labels_1, IGNORE),
                       labels_2=torch.full_like(self.labels_2, IGNORE), tokens=0, targets_1=0, targets_2=0,
                       position=None)


def make_batch(cache, pieces, rows, row_count, width, counted=None, teacher=None):
    """pieces (P, 3): document, start, inputs; rows: list of lists of piece numbers -> Batch of row_count x width.

    counted: (documents,) bool, those that are in the tables of a counted head; None = there are no tables. teacher: a
    TeacherTable, or None.

    Two documents of five tokens, EABCD and EXYZW (E: the end that opens each), in one row of width 10; B, C and Y are
    to be learned. The fifth token is a target alone, so each has four inputs, and two places stay empty:

        ids        E A B C E X Y Z . .      labels_1  . B C . . Y . . . .
        positions  0 1 2 3 0 1 2 3 8 9      labels_2  B C . . Y . . . . .      segments of 4, 4 and 2
    """
    order = np.array([piece for row in rows for piece in row], dtype=np.int64)
    row_of = np.arange(len(rows)).repeat([len(row) for row in rows])
    document, start, size = pieces[order].T
    begin, end = cache.bounds(document)
    before = size.cumsum() - size                                    # inputs of all pieces before this one
    column = before - before[np.searchsorted(row_of, row_of)]        # of those in its row
    offset = np.arange(size.sum()) - before.repeat(size)             # (N,), one for each input, as all that follows
    source = (begin + start).repeat(size) + offset
    target = (row_of * width + column).repeat(size) + offset
    empty = np.tile(np.arange(width), row_count)

    def spread(values, elsewhere):
        flat = np.full(row_count * width, elsewhere, dtype=values.dtype)
        flat[target] = values
        return torch.from_numpy(flat).view(row_count, width)

    positions = torch.from_numpy(empty).index_copy_(0, torch.from_numpy(target), torch.from_numpy(offset))
    labels = [spread(labels_at(cache, source + ahead, end.repeat(size)), IGNORE) for ahead in (1, 2)]
    made = Batch(spread(cache.split(np.asarray(cache.tokens[source]))[0], 0), positions.view(row_count, width),
                 spread(np.ones(len(target), bool), False), *labels,
                 layout=Segments.from_lengths(_with_padding(row_of, size, row_count, width)), tokens=len(target),
                 targets_1=int((labels[0] >= 0).sum()), targets_2=int((labels[1] >= 0).sum()))
    if counted is not None:
        orders = orders_held(torch.from_numpy(start.repeat(size)), torch.from_numpy(offset)).numpy()
        made.left_out = spread(orders * counted[document].repeat(size), 0)
    if teacher is not None:
        made.taught = teacher.lesson(source + 1, target, made.labels_1)
    return made


def labels_at(cache, places, limit):
    """(N,) ids of the tokens there as far as they are supervised and before `limit`, the end of their document."""
    inside = places < limit
    ids, supervised = cache.split(np.asarray(cache.tokens[np.where(inside, places, 0)]))
    return np.where(inside & supervised, ids, IGNORE)


def thin(batch, every, position):
    """Leaves head 2 one target in `every`, others in each epoch and batch: it learns nearly as much and costs a
    fraction."""
    kept = (batch.positions + position.epoch + position.batch) % every == 0
    batch.labels_2 = batch.labels_2.where(kept, torch.full_like(batch.labels_2, IGNORE))
    batch.targets_2 = int((batch.labels_2 >= 0).sum())


def _with_padding(row_of, size, row_count, width):
    """Lengths of all segments in flat order; the unused end of a row is a segment of its own."""
    lengths = []
    for row in range(row_count):
        inside = size[row_of == row].tolist()
        rest = width - sum(inside)
        lengths += inside + [rest] * (rest > 0)
    return lengths


class PackedData(Dataset):
    """Documents of one or more shuffled epochs, packed. Index it with a list of Positions to get their Batches."""

    def __init__(self, cache, documents, options, truncate, shuffle=True):
        """documents: (D,) numbers in the cache; options: a flat dict with the keys of DataOptions."""
        options = DataOptions.of(options)
        self.cache, self.documents, self.truncate, self.shuffle = cache, np.asarray(documents), truncate, shuffle
        self.counted = self.teacher = None                     # see make_batch
        self.width, self.batch_size, self.seed = options.max_len, options.batch_size, options.seed
        self.epochs = options.max_epochs if shuffle else 1
        self.second_every = options.fc2_every
        if not len(self.documents):
            raise UserError("数据里没有一行能用来训练。用 python tools/check_data.py 看看每一行的问题。", 8)
        self.starts = self._records(options.n_of_samples)
        self.per_chunk = min(options.n_of_samples or CHUNK_DOCUMENTS, len(self.starts))
        most = -(-len(self.starts) // self.per_chunk)
        self.chunks = min(options.n_of_samplings or most, most) if shuffle else most    # held-out data is used whole
        self._order = lru_cache(2)(self._shuffled_documents)
        self._plan = lru_cache(3)(self._packed_chunk)

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k not in ("_order", "_plan")}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._order, self._plan = lru_cache(2)(self._shuffled_documents), lru_cache(3)(self._packed_chunk)

    def ever(self):
        """All documents that some epoch may hold."""
        return self.documents

    def _records(self, chosen):
        """Where each of the records that chunks are counted in begins in `documents`: data rows, which may be several
        documents, in chunks of a chosen size; else every document is one."""
        if not chosen or self.cache is None:
            return np.arange(len(self.documents))
        return np.flatnonzero(np.diff(np.asarray(self.cache.rows)[self.documents], prepend=-1))

    def _shuffled_documents(self, epoch):
        """-> documents in the order of an epoch, and where in it each record ends."""
        sizes = np.diff(self.starts, append=len(self.documents))
        order = shuffled(len(sizes), self.seed, epoch, 0) if self.shuffle else np.arange(len(sizes))
        ends = sizes[order].cumsum()
        shift = self.starts[order] - (ends - sizes[order])
        return self.documents[np.arange(len(self.documents)) + shift.repeat(sizes[order])], ends

    def _in_chunk(self, epoch, chunk):
        """The documents of a chunk, in order."""
        documents, ends = self._order(epoch)
        first, last = chunk * self.per_chunk, min((chunk + 1) * self.per_chunk, len(ends))
        return documents[ends[first - 1] if first else 0:ends[last - 1]]

    def _packed_chunk(self, epoch, chunk):
        """-> pieces (P, 3), batches: list of lists of rows."""
        documents = self._in_chunk(epoch, chunk)
        begin, end = self.cache.bounds(documents)
        pieces = cut(np.maximum(end - begin - 1, 1), self.width, self.truncate)
        pieces[:, 0] = documents[pieces[:, 0]]
        rows = best_fit(pieces[:, 2], self.width)
        if self.shuffle:
            rows = [rows[i] for i in shuffled(len(rows), self.seed, epoch, chunk + 1)]
        return pieces, [rows[i:i + self.batch_size] for i in range(0, len(rows), self.batch_size)]

    def batches_in(self, epoch, chunk):
        return len(self._plan(epoch, chunk)[1])

    def places(self, epoch=0):
        """The Positions of all batches of an epoch, in order."""
        return [Position(epoch, chunk, n) for chunk in range(self.chunks) for n in range(self.batches_in(epoch, chunk))]

    def batch(self, position):
        pieces, batches = self._plan(position.epoch, position.chunk)
        rows = batches[max(0, position.batch)]
        made = make_batch(self.cache, pieces, rows, len(rows), self.width, self.counted, self.teacher)
        made.position = position
        if self.shuffle and self.second_every > 1:
            thin(made, self.second_every, position)
        return made.blank() if position.batch == NOTHING else made

    def __getitem__(self, positions):
        return [self.batch(p) for p in positions]

    def source_rows(self, position):
        """Zero-based data rows that one micro-batch holds: what to look at when its loss is strange."""
        pieces, batches = self._plan(position.epoch, position.chunk)
        numbers = pieces[[p for row in batches[position.batch] for p in row], 0]
        return sorted({int(r) for r in self.cache.rows[numbers]})

    def groups(self, start, accumulation, rank=0, world=1):
        """Endless-safe walk from `start`: (this rank's Positions of one optimizer step, Position after it, batches in
        chunk).

        A step never crosses a chunk's end: the last group of a chunk is what is left.
        """
        take = accumulation * world
        for epoch in range(start.epoch, self.epochs):
            for chunk in range(start.chunk if epoch == start.epoch else 0, self.chunks):
                count = self.batches_in(epoch, chunk)
                first = start.batch if (epoch, chunk) == (start.epoch, start.chunk) else 0
                for at in range(first, count, take):
                    stop = min(at + take, count)
                    mine = [Position(epoch, chunk, b) for b in range(at + rank, stop, world)]
                    # After a chunk comes the next one, even where this run has none: a prolonged run may.
                    after = Position(epoch, chunk, stop) if stop < count else Position(epoch, chunk + 1, 0)
                    # As many on every rank: a sharded model's passes are steps that all take together.
                    idle = -(-(stop - at) // world) - len(mine)
                    yield mine + [Position(epoch, chunk, NOTHING)] * idle, after, count

    def settled(self, position):
        """The same place; the end of an epoch is written as the beginning of the next."""
        return Position(position.epoch + 1) if position.chunk >= self.chunks else position

    def is_end(self, position):
        """Whether nothing is left to train on from `position` on."""
        return self.settled(position).epoch >= self.epochs

    def steps(self, accumulation, world=1):
        """Optimizer steps of the whole run: counted where that is quick, else estimated from the first and the last
        chunk."""
        take = accumulation * world
        if len(self.documents) * self.epochs <= EXACT_UP_TO:
            return sum(-(-self.batches_in(e, c) // take) for e in range(self.epochs) for c in range(self.chunks))
        first, last = (-(-self.batches_in(0, c) // take) for c in (0, self.chunks - 1))
        return self.epochs * ((self.chunks - 1) * first + last)

    def tokens(self):
        """Inputs in one epoch over all documents, before cutting."""
        total = 0
        for part in np.array_split(self.documents, max(1, len(self.documents) // 1_000_000)):
            begin, end = self.cache.bounds(part)
            total += int((end - begin - 1).sum())
        return total


class ItemData(PackedData):
    """Items that are never packed together with others: batch_size of them in a batch, walked through like packed
    documents."""

    def _packed_chunk(self, epoch, chunk):
        items = self._in_chunk(epoch, chunk)
        return None, [items[i:i + self.batch_size] for i in range(0, len(items), self.batch_size)]

    def steps(self, accumulation, world=1):
        """Counted: nothing has to be packed for that."""
        sizes = [len(self._in_chunk(0, chunk)) for chunk in range(self.chunks)]
        batches = [-(-size // self.batch_size) for size in sizes]
        return self.epochs * sum(-(-count // (accumulation * world)) for count in batches)

    def items(self, position):
        """The numbers of the documents (of the items) in one batch."""
        return self._plan(position.epoch, position.chunk)[1][max(0, position.batch)]

    def source_rows(self, position):
        return sorted({int(r) for r in self.cache.rows[self.items(position)]})


def loader(data, start, options, device, rank=0, world=1):
    """-> iterator over (list of Batches of one optimizer step, Position after it, batches in this chunk) from `start`
    on. Close it where it is left early."""
    groups = data.groups(start, options["accumulation_steps"], rank, world)
    if options["num_workers"]:
        return ahead.by_workers(data, groups, options, device)
    steps = ((data[positions], after, count) for positions, after, count in groups)
    return ahead.ahead(ahead.on_device(steps, device)) if ahead.pays(device) else steps
