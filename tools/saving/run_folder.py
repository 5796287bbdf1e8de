"""The output folder of one stage: who owns it, which checkpoints in it are finished, which to go on from, which may go.

The manifest decides. A save writes both files under temporary names, checks them, and renames; only then are they
listed. Where a name (best, final) is used again, the manifest first notes what is about to happen, and `lock` after a
kill finishes it, so that the .pkl and the .state of one name always belong together.
"""
import math
import sys
import time
from pathlib import Path

import torch

from tools.checkpoint import read_checkpoint
from tools.errors import UserError
from tools.saving.folder_lock import FolderLock
# fingerprint: for whoever compares runs
from tools.saving.manifest import Manifest, fingerprint, new_entry  # noqa: F401
from tools.saving.archive import read_torch, stage_torch, verify_torch
from tools.saving.atomic import PREFIX, CheckpointError, commit, explain, replace, still_written, sync_folder
from tools.saving.start_files import backups, start_name


class RunFolder:
    """`out_dir` (or `out_dir/name`) as seen by one stage, e.g. RunFolder("out", "Pre"). Call lock() before anything
    else."""

    def __init__(self, out_dir, stage_label, name=None, warn=None):
        self.path = Path(out_dir, name) if name else Path(out_dir)
        self.label = stage_label
        self.warn = warn or (lambda text: print(f"警告：{text}", file=sys.stderr))
        self.manifest = Manifest(self.path, stage_label, self.warn)
        self._lock = FolderLock(self.path)
        self._bad = set()  # listed stems that newest_good() found damaged

    # ---- ownership ----

    def lock(self):
        """Own the folder until unlock() or the end of the process. Raises UserError 6 when it is taken."""
        self._lock.acquire()
        try:
            self._recover()
        except BaseException:
            self._lock.release()
            raise
        return self

    def unlock(self):
        self._lock.release()

    def __enter__(self):
        return self.lock()

    def __exit__(self, *_):
        self.unlock()

    def _recover(self):
        """Finish what a killed run had begun in this folder, and remove the temporary files of dead runs."""
        self.manifest.mend()
        for path in sorted(self.path.glob("manifest_*.json")):
            other = RunFolder(self.path, path.stem.removeprefix("manifest_"), warn=self.warn)
            body = other.manifest.load()
            if body["backup"]:
                other._move_to(self.path / body["backup"])
            else:
                other._finish(body)
        for path in self.path.glob(PREFIX + "*"):
            if not still_written(path.name):
                path.unlink(missing_ok=True)

    def entries(self):
        """What is listed, oldest first; the fields are explained in manifest.py."""
        return self.manifest.load()["entries"]

    # ---- saving ----

    def save(self, stem, payload, state=None, final=False, best=False):
        """Save `payload` as <stem>.pkl and `state` (a dict, or None) as <stem>.state. Returns the path of the .pkl.

        At every moment, a kill included, the folder offers the old pair of that name or the new one. Raises UserError
        7 (disk full), 2 (not writable), 5 (a weight is not finite: such a checkpoint is never written).
        """
        _refuse_non_finite(payload["weights"], state)
        stem = stem.removesuffix(".pkl")
        body = self.manifest.load()
        self._finish(body)  # of an earlier save that failed half-way
        self._spare(body, [stem + ".pkl", stem + ".state"])
        temporary, noted = {}, False
        try:
            files = self._stage(stem + ".pkl", payload, temporary)
            if state is not None:
                linked = {**state, "pkl_sha256": files[stem + ".pkl"]["sha256"]}
                files |= self._stage(stem + ".state", linked, temporary)
            number = 1 + max([e["number"] for e in body["entries"]], default=0)
            kind = "final" if final else "best" if best else ""
            entry = new_entry(number, stem, payload, files, kind, time.strftime("%Y-%m-%d %H:%M:%S"))
            body["ended"] = not final
            body["pending"] = {"entry": entry, "temporary": {n: t.name for n, t in temporary.items()}}
            if any((self.path / n).exists() for n in (stem + ".pkl", stem + ".state")):
                noted = True  # a name is used again: once this is on the disk the new pair counts
                self.manifest.write(body)
            self._finish(body)
        except BaseException:
            if not (noted and self._counted_on(temporary)):
                for path in temporary.values():
                    path.unlink(missing_ok=True)
            raise
        self._bad.discard(stem)
        return self.path / (stem + ".pkl")

    def end(self):
        """Note that the run has ended after its final checkpoint: the next one begins anew instead of going on from
        there."""
        self.manifest.write({**self.manifest.load(), "ended": True})

    def ended(self):
        """False when a run was killed between its final checkpoint and its end."""
        return self.manifest.load().get("ended", True)

    def _stage(self, name, payload, temporary):
        """Write one file under a temporary name and read it back. Adds to `temporary`; returns its line for the
        manifest."""
        path, digest = stage_torch(self.path / name, payload)
        temporary[name] = path
        if verify_torch(path) != digest:
            raise CheckpointError(f"{path} 写完后读回来不一致，磁盘可能有故障。已有的检查点没有动。")
        return {name: {"sha256": digest, "size": path.stat().st_size}}

    def _counted_on(self, temporary):
        """Whether the manifest on the disk names these temporary files: then they are not ours to remove any more."""
        try:
            pending = self.manifest.read()["pending"]
        except CheckpointError:
            return True  # cannot tell: keep them
        return bool(pending) and set(pending["temporary"].values()) == {t.name for t in temporary.values()}

    def _finish(self, body):
        """Give the pending files their names and list them, delete what may go. `body` is the manifest, changed in
        place."""
        if body["pending"]:
            entry, temporary = body["pending"]["entry"], body["pending"]["temporary"]
            # .state before .pkl: a .pkl alone would look like lone weights
            for name in sorted(temporary, reverse=True):
                if (self.path / temporary[name]).exists():
                    commit(self.path / temporary[name], self.path / name)
            state = entry["stem"] + ".state"
            if state not in entry["files"] and (self.path / state).exists():
                body["drop"].append(state)
            body["entries"] = [e for e in body["entries"] if e["stem"] != entry["stem"]] + [entry]
            body["pending"] = None
            self.manifest.write(body)
        if body["drop"]:
            self._drop(body)

    def _spare(self, body, names):
        """Files of these names that this run did not write (somebody put them there) go to a backup folder before they
        are replaced."""
        listed = {name: line["sha256"] for e in body["entries"] for name, line in e["files"].items()}
        strangers = [n for n in names if (self.path / n).exists()
                     and _digest(self.path / n) not in (None, listed.get(n))]
        if strangers:
            target = self._new_backup()
            target.mkdir()
            for name in strangers:
                replace(self.path / name, target / name)
            self.warn(f"{'、'.join(strangers)} 不是这次训练写的，已移到 {target}。")

    def _new_backup(self):
        target = self.path / time.strftime("backup_%Y%m%d_%H%M%S")
        while target.exists():
            target = target.with_name(target.name + "x")
        return target

    # ---- retention ----

    def prune(self, limit, kept=None):
        """Keep the `limit` newest checkpoints, and best, final and the one called `kept` whatever their age. None keeps
        all."""
        check_limit(limit)
        body = self.manifest.load()
        regular = [e for e in body["entries"] if not e["kind"] and e["stem"] != kept]
        regular.sort(key=lambda e: (e["stem"] not in self._bad, e["number"]))
        old = regular[:-limit] if limit else []
        if old:
            body["entries"] = [e for e in body["entries"] if e not in old]
            body["drop"] += [name for e in old for name in e["files"]]
            self.manifest.write(body)  # first unlisted, then deleted: after a kill nothing is listed that is not there
            self._drop(body)

    def _drop(self, body):
        """Delete what the manifest allows. What cannot be deleted now (open on Windows) stays on the list for later."""
        listed = {name for e in body["entries"] for name in e["files"]}
        left = []
        for name in set(body["drop"]) - listed:
            try:
                (self.path / name).unlink(missing_ok=True)
            except OSError as error:
                self.warn(f"旧检查点 {name} 删不掉（{error.strerror}），下次再删。")
                left.append(name)
        sync_folder(self.path)
        body["drop"] = sorted(left)
        self.manifest.write(body)

    # ---- going on ----

    def newest_good(self):
        """(payload, state) of the newest undamaged checkpoint, or None when there is no checkpoint at all.

        Damaged ones are passed over with a warning. Files that are not listed come from a save that never finished and
        are passed over, unless there is no readable list at all: then pairs that prove themselves count. Weights
        without a state, (payload, None), are only offered where no checkpoint has one (a .pkl that somebody put there).
        Raises CheckpointError 3 when checkpoints exist but none is good.
        """
        entries, files = self.entries()[::-1], self.manifest.files()
        pickles = [n for n in files if n.endswith(".pkl")]
        if entries:
            unlisted = set(files) - {name for e in entries for name in e["files"]}
            if unlisted:
                self.warn(f"{'、'.join(sorted(unlisted))} 不在清单里（没有保存完，或是别处来的），不使用。")
        elif not any(n.endswith(".state") and n[:-6] + ".pkl" in files for n in files):
            entries = [{"stem": n[:-4], "files": {n: {}}}
                       for n in sorted(pickles, key=lambda n: -files[n].stat().st_mtime)]
        with_state = [e for e in entries if e["stem"] + ".state" in e["files"]]
        for entry in with_state or entries:
            try:
                return self.load(entry)
            except CheckpointError as error:
                self._bad.add(entry["stem"])
                self.warn(f"{error}。改用更早的检查点。")
        if entries or pickles:
            raise CheckpointError(f"{self.path} 里有 {self.label} 的检查点，但没有一个完好。为了不覆盖它们，训练没有开始；"
                                  f"请从备份恢复，或加 --resume none 重新训练（旧文件会移到 backup 文件夹）。")
        return None

    def started_from(self, path):
        """(weights hash, unfinished): what the newest run here began from under this file's name, or None; whether it
        has not ended."""
        body = self.manifest.load()
        entries = body["entries"]
        if entries:
            starts, unfinished = entries[-1].get("starts", {}), entries[-1]["kind"] != "final" or not body.get("ended",
                True)
        else:                                                   # stopped before its first save: only the move tells
            starts, unfinished = self._moved_for(), True
        same_name = [digest for name, digest in starts.items() if name.rpartition("/")[2] == path.name]
        return starts.get(start_name(path)) or (same_name[0] if len(same_name) == 1 else None), unfinished

    def _moved_for(self):
        for folder in backups(self.path):
            listed = Manifest(folder, self.label, self.warn)
            if listed.path.exists():
                return listed.load().get("moved_for", {})
        return {}

    def wrote(self, path):
        """Whether the run here wrote the file, and nobody has put another in its place."""
        listed = {name: line["sha256"] for e in self.entries() for name, line in e["files"].items()}
        return path.parent.resolve() == self.path.resolve() and path.name in listed and _digest(
            path) == listed[path.name]

    def owns(self, path):
        """Whether a fresh start of this stage would move the file to a backup folder."""
        return path.parent.resolve() == self.path.resolve() and bool(self.manifest.pattern.fullmatch(path.name))

    def load(self, entry):
        """(payload, state) of one entry: both as they were listed, and of the same save."""
        stem, files = entry["stem"], entry["files"]
        pkl, state = stem + ".pkl", None
        digest = files[pkl].get("sha256")  # None for a lone .pkl that no list knows
        if stem + ".state" in files:
            state = read_torch(self.path / (stem + ".state"), ("pkl_sha256",), files[stem + ".state"]["sha256"])
            digest = state.pop("pkl_sha256")  # each listed, and the .state says which .pkl it belongs to
        return read_checkpoint(self.path / pkl, digest), state

    # ---- a clean start ----

    def backup(self, starts=None):
        """Move every checkpoint of this stage to backup_<time>/. Returns that folder, or None when there was nothing.

        starts: {"folder/name": weights hash} of the files that the run begins from which needs the place; they may be
        among them.
        """
        if not self.manifest.files() and not self.manifest.path.exists():
            return None
        target = self._new_backup()
        body = {**self.manifest.load(), "backup": target.name, "moved_for": starts or {}}
        self.manifest.write(body)                               # so that `lock` can finish it after a kill
        self._move_to(target)
        return target

    def _move_to(self, target):
        try:
            target.mkdir(exist_ok=True)
            for name, path in self.manifest.files().items():
                replace(path, target / name)
            moved = Manifest(target, self.label, self.warn)
            replace(self.manifest.path, moved.path)  # last: as long as it is here, the move is not finished
            moved.write({**moved.read(), "backup": None})
            sync_folder(self.path)
        except OSError as error:
            raise explain(error, target) from error


def check_limit(limit):
    """save_total_limit is a count of at least 1, or null. Raises UserError 2."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit <= 0):
        raise UserError(f"save_total_limit 必须是大于 0 的整数，或 null（全部保留），不能是 {limit!r}。")


def _digest(path):
    """SHA-256 of a whole file of ours, None for one that is damaged or no archive."""
    try:
        return verify_torch(path)
    except CheckpointError:
        return None


def _refuse_non_finite(weights, state):
    bad = [n for n, t in weights.items() if not _is_finite(t)]
    if bad:
        raise UserError(f"权重 {'、'.join(bad[:3])} 里有 NaN 或无穷大，不保存。请从上一个检查点用更小的 init_lr 继续。", 5)
    bad = [name for name, value in (state or {}).items() if not _is_finite(value)]
    if bad:
        raise UserError(f"训练状态 {'、'.join(bad[:3])} 里有 NaN 或无穷大，不保存。请从上一个检查点继续，并检查 init_lr 和那几步的数据。", 5)


def _is_finite(value):
    """No NaN and no infinity in a tensor, a number, or whatever nests them."""
    if isinstance(value, torch.Tensor):
        return not value.is_floating_point() or bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
