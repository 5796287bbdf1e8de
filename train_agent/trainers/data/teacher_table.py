"""What a teacher says of every target of a run's training data, made once and kept beside the token cache.

A folder `teacher_<key>` holds places.npy (M,), the targets' places in the cache's tokens, ascending; ids.npy and
logs.npy (M, k), the teacher's likeliest words there and the logarithms of their probabilities at the temperature. The
teacher reads the same pieces of documents as the student, so that both know the same of what stood before.
"""

import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from model.segments import Segments
from tools.errors import UserError, explain
from tools.saving.atomic import PREFIX, CheckpointError, put_folder, read_json, write_json
from train_agent.trainers.data.packing import cut
from train_agent.trainers.dataset import Movable, labels_at
from train_agent.trainers.hardware.machine import autocast

VERSION = 1
FILES = ("places", "ids", "logs")
AT_ONCE = 4096          # tokens that the teacher reads together
ROWS = 1024             # and rows of its logits


@dataclass
class Taught(Movable):
    """What the teacher says of a batch: ids, logs (B, T, k); weight: what a nat of divergence costs."""
    ids: torch.Tensor
    logs: torch.Tensor
    temperature: float
    weight: float


class TeacherTable:
    """Read access; the files stay on the disk."""

    def __init__(self, folder, temperature, weight):
        self.folder, self.temperature, self.weight = Path(folder), temperature, weight
        self.places, self.ids, self.logs = (np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in FILES)

    def __reduce__(self):
        return TeacherTable, (self.folder, self.temperature, self.weight)      # data workers map the files themselves

    def lesson(self, targets, spots, labels):
        """targets (N,): places of tokens in the cache; spots (N,): where in the flat batch they are to be predicted;
        labels (B, T) of head 1 -> Taught; nothing stands where there is no label."""
        learned = labels.flatten().numpy()[spots] >= 0
        targets, spots = targets[learned], spots[learned]
        rows = np.searchsorted(self.places, targets)
        assert np.array_equal(self.places[rows], targets), "the teacher was asked about other data"
        found = []
        for table, dtype in ((self.ids, np.int64), (self.logs, self.logs.dtype)):
            flat = np.zeros((labels.numel(), table.shape[1]), dtype)
            flat[spots] = table[rows]
            found.append(torch.from_numpy(flat).view(*labels.shape, -1))
        return Taught(*found, self.temperature, self.weight)


class Lessons:
    """The targets of some documents of a cache, as a run with rows of `width` tokens learns them."""

    def __init__(self, cache, documents, width, truncate):
        documents = np.unique(documents)
        begin, end = cache.bounds(documents)
        self.cache, self.pieces = cache, cut(np.maximum(end - begin - 1, 1), width, truncate)
        self.pieces[:, 0] = documents[self.pieces[:, 0]]
        self.groups = np.split(self.pieces, self._edges(self.pieces[:, 2].cumsum()))
        self.places = np.concatenate([self.read(group)[-1] for group in self.groups])

    @staticmethod
    def _edges(ends):
        edges, last = [], 0
        while ends[-1] - last > AT_ONCE:
            edges.append(max(int(np.searchsorted(ends, last + AT_ONCE, "right")), (edges or [0])[-1] + 1))
            last = ends[edges[-1] - 1]
        return edges

    def read(self, pieces):
        """pieces (P, 3) -> ids, positions (N,), sizes (P,), which of the N places are to be learned, and the targets'
        places in the cache."""
        document, start, size = pieces.T
        begin, end = self.cache.bounds(document)
        offset = np.arange(size.sum()) - (size.cumsum() - size).repeat(size)
        source = (begin + start).repeat(size) + offset
        ids = self.cache.split(np.asarray(self.cache.tokens[source]))[0]
        learned = labels_at(self.cache, source + 1, end.repeat(size)) >= 0
        return ids, offset, size, learned, source[learned] + 1


@torch.no_grad()
def likeliest(teacher, lessons, k, temperature, device, precision, words):
    """Generator over the groups: ids (n, k), logs (n, k) of each target. words: of the student's vocabulary."""
    dtype = torch.promote_types(teacher.embed.weight.dtype, torch.float32)
    for group in tqdm(lessons.groups, desc="老师在读训练数据", delay=2, leave=False):
        ids, positions, sizes, learned, _ = lessons.read(group)
        ids, positions, learned = (torch.from_numpy(one).to(device) for one in (ids, positions, learned))
        with autocast(device, precision):
            hidden, *_ = teacher.encode(ids[None], positions[None], Segments.from_lengths(sizes).to(device))
            hidden = hidden[learned]
            logits = [teacher.fc1(hidden[i:i + ROWS])[:, :words] for i in range(0, len(hidden), ROWS)]
        best = [(rows.to(dtype) / temperature).log_softmax(-1).topk(k, -1) for rows in logits]
        if best:
            yield (torch.cat([one.indices for one in best]).cpu().numpy(),
                   torch.cat([one.values for one in best]).cpu().numpy())


def open_table(teacher, key, lessons, words, options, device, precision, verify=True, say=print):
    """The TeacherTable for these lessons, made where it is not there or damaged. key: what it depends on beside them,
    anything JSON can hold; words: of the student's vocabulary. Raises UserError 7 where the disk has no room for it."""
    words = min(words, teacher.config.vocab_size)
    k, temperature = min(options["kd_topk"] or words, words), options["kd_temperature"]
    asked = hashlib.sha256(lessons.pieces.tobytes()).hexdigest()
    whole = json.dumps([VERSION, lessons.cache.name, asked, k, temperature, precision, device.type, words, key])
    root = Path(options["cache_dir"])
    folder = root / f"teacher_{hashlib.sha256(whole.encode()).hexdigest()[:24]}"
    if not _is_sound(folder, verify):
        kinds = (np.uint16 if words <= 1 << 16 else np.int32,
                 np.float64 if teacher.embed.weight.dtype == torch.float64 else np.float32)
        size = len(lessons.places) * (8 + k * sum(np.dtype(kind).itemsize for kind in kinds))
        say(f"老师要说的：{len(lessons.places):,} 个词元，各记 {k} 个最可能的，共 {size / 1e6:,.1f} MB，放在 {folder}。"
            "只算一次；太大可减小 --kd_topk。")
        _check_room(root, size)
        teacher.to(device).eval()
        _write(folder, lessons.places, k, kinds,
               likeliest(teacher, lessons, k, temperature, device, precision, words))
    return TeacherTable(folder, temperature, options["kd_alpha"] * temperature ** 2)


def _check_room(root, size):
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if size > 0.95 * free:
        raise UserError(f"磁盘放不下老师要说的：要 {size / 1e9:.1f} GB，{root} 只剩 {free / 1e9:.1f} GB。"
                        "请减小 --kd_topk，或用 --cache_dir 换一个地方。", 7)


def _write(folder, places, k, kinds, parts):
    work = folder.with_name(f"{PREFIX}{folder.name}-{os.getpid()}-{os.urandom(4).hex()}")
    try:
        work.mkdir(parents=True)
        np.save(work / "places.npy", places)
        tables = [np.lib.format.open_memmap(work / f"{name}.npy", "w+", kind, (len(places), k))
                  for name, kind in zip(FILES[1:], kinds)]
        at = 0
        for found in parts:
            for table, values in zip(tables, found):
                table[at:at + len(values)] = values
            at += len(found[0])
        assert at == len(places)
        for table in tables:
            table.flush()
        del table, tables
        write_json(work / "meta.json", _content(work))
        put_folder(work, folder)
    except OSError as error:
        raise explain(error, folder) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _content(folder):
    found = {}
    for name in FILES:
        with open(folder / f"{name}.npy", "rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _is_sound(folder, verify):
    if not (folder / "meta.json").exists():
        return False
    try:
        known = read_json(folder / "meta.json")
        if not verify or known == _content(folder):
            return True
    except (CheckpointError, OSError):
        pass
    print(f"{folder} 已损坏，重新请老师来说。", file=sys.stderr)
    shutil.rmtree(folder, ignore_errors=True)
    return False
