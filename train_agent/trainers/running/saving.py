"""Which checkpoint a run goes on from, and what it leaves behind."""

import re
import sys
from pathlib import Path

from tools.checkpoint import cast_weights
from tools.config.compare import compare, fingerprint, older
from tools.errors import UserError
from tools.saving.run_folder import RunFolder
from train_agent.trainers import parallel
from train_agent.trainers.running import anew
from train_agent.trainers.dataset import Position


class Saver:
    """The output folder of one run of `stage`."""

    def __init__(self, stage):
        self.stage, self.options = stage, stage.options
        self.folder = RunFolder(self.options["out_dir"], stage.label, self.options["name"])
        # what --resume or --last_index asked for, and the checkpoint that answers it
        self.request, self.kept = None, None

    def __enter__(self):
        parallel.from_main(self._lock)
        return self

    def _lock(self):
        self.folder.lock()                          # what it returns is of this process alone

    def __exit__(self, *_):
        if parallel.is_main():
            self.folder.unlock()

    # ---- going on ----

    def find(self):
        """The state to go on from, its weights already in the model; None for a fresh start.

        The main process alone looks and loads; the others get its state without "optimizers", which travel tensor by
        tensor.
        """
        optimizers = None

        def look():
            nonlocal optimizers
            state = self._look()
            if state:
                optimizers = state.pop("optimizers")
            return state
        state = parallel.from_main(look)
        return state and {**state, "optimizers": optimizers}

    def _look(self):
        """resume auto: an unfinished run of this configuration goes on, anything else is moved aside, and why is said.
        A path or --last_index must fit: UserError 4 names each key that differs.
        """
        resume, index = self.options["resume"], self.options["last_index"]
        if index >= 0 or resume not in ("auto", "none"):
            payload, state = self._requested(index, resume)
        else:
            found = self.folder.newest_good() if resume == "auto" else None
            why = self._why_anew(found)
            if why:
                self._set_aside(why, found)
                return None
            payload, state = found
        again = "上次已经训完，这次只收尾" if state.get("complete") else "接着训"
        print(f"{self.stage.label} 从第 {state['step']} 步{again}。", file=sys.stderr)
        self.options.update({k: v for k, v in older(state["fingerprint"]).items() if k in self.options})
        self.stage.load(state.pop("weights", None) or payload["weights"])
        return state

    def _why_anew(self, found):
        """Why a run does not go on (Chinese), None where it does: it has not reached its final checkpoint, was killed
        before it could say so, or was given more to do since."""
        if found is None:
            return "加了 --resume none" if self.options["resume"] == "none" else "没有可接着训的检查点"
        state = found[1]
        if state is None:
            return "那里的检查点没有 .state 文件，不能接着训"
        changes = self._changes(state)
        if changes:
            return anew.told(changes)
        limit, at = self.options["max_steps"], Position(*state["position"])
        done = state["finished"] or limit is not None and state["step"] >= limit or self.stage.train.is_end(at)
        if not state["final"] or not done:
            return None
        state["complete"] = not self.folder.ended()
        return None if state["complete"] else f"上次的训练已经完成（第 {state['step']} 步）"

    def _set_aside(self, why, found):
        moved = self.folder.backup(self.stage.about.get("starts"))
        if moved:
            print(f"{self.stage.label} 从头开始：{why}。先前的检查点已移到 {moved}。", file=sys.stderr)
            changes = self._changes(found[1]) if found and found[1] else []
            print("".join(f"　{way}\n" for way in anew.ways_on(self.stage, moved, found, changes)), end="",
                  file=sys.stderr)

    def changed(self, state, key):
        """Whether the run of `state` had another value of a key."""
        return key in [change.key for change in self._compared(state)]

    def _compared(self, state):
        return compare(state["fingerprint"], fingerprint(self.options))

    def _requested(self, index, resume):
        """The checkpoint that was asked for; where the same command has got further since, the one it got to."""
        self.request = f"--last_index {index}" if index >= 0 else f"--resume {Path(resume).stem}"
        entry, home = self._by_index(index) if index >= 0 else self._by_path(resume)
        newest = self.folder.entries()[-1:]
        if newest and newest[0]["stem"] + ".state" in newest[0]["files"]:
            payload, state = self.folder.load(newest[0])
            unfinished = not state["final"] or not self.folder.ended()
            if unfinished and state.get("request") == self.request and not self._changes(state):
                state["complete"] = state["final"]
                return payload, state
        if entry is None:
            raise UserError(f"{home.path} 的清单里没有这个 {self.stage.label} 检查点（{self.request}）。只取权重请用 --init_from。", 3)
        payload, state = home.load(entry)
        self._refuse_changes(state)
        if home is self.folder:
            self.kept = entry["stem"]
        else:                                                   # from a backup: what lies here makes room
            self.folder.backup(self.stage.about.get("starts"))
        return payload, state

    def _by_index(self, index):
        pattern = re.compile(rf"TinySeek_{self.stage.label}{index}_\d+(_\d+)?(_s\d+)?$")
        fitting = [e for e in self.folder.entries() if pattern.match(e["stem"])]
        return fitting[-1] if fitting else None, self.folder

    def _by_path(self, path):
        """(entry or None, the folder that lists it): this run's own, or one of its backups."""
        home, own = self.folder, self.folder.path.resolve()
        for file in (Path(path), Path(f"{path}.pkl")):
            place = file.resolve().parent
            if file.is_file() and place.parent == own and place.name.startswith("backup_"):
                home = RunFolder(file.parent, self.stage.label)
            elif file.is_file() and place != own:
                raise UserError(f"{file} 不在这次训练的文件夹 {self.folder.path} 里，不能从它接着训练。"
                                "请用 --out_dir、--name 指到它那里；只取权重请用 --init_from。", 3)
        stem = re.sub(r"\.(pkl|state)$", "", str(path).replace("\\", "/").rsplit("/", 1)[-1])
        fitting = [e for e in home.entries() if e["stem"] == stem]
        return fitting[-1] if fitting else None, home

    def _changes(self, state):
        """Keys that differ from the checkpoint's run and may not differ in silence: [(key, old, new)]."""
        found = [(c.key, c.old, c.new) for c in self._compared(state)
                 if c.verdict == "never" or (c.verdict == "ask" and not self.options["allow_change"])]
        return found + [(k, state["identity"].get(k), v) for k, v in self.stage.identity.items()
                        if state["identity"].get(k) != v]

    def _refuse_changes(self, state):
        if state is None:
            raise UserError("这个检查点没有 .state 文件，不能接着训练；若只想取它的权重，请用 --init_from。", 4)
        changed = self._changes(state)
        if changed:
            listed = "；".join(f"{k}: {old} → {new}" for k, old, new in changed[:6])
            raise UserError(f"配置或数据和检查点不同，不能接着训练：{listed}。改回原值，或用 --resume none 重新开始。", 4)

    # ---- leaving behind ----

    def save(self, stem, step, metrics, state=None, best=False, final=False):
        """Write one checkpoint, then let the oldest beyond save_total_limit go. All processes call it, the main one
        writes."""
        payload = self.stage.payload(step, {k: v for k, v in metrics.items() if isinstance(v, (int, float, str))})
        parallel.from_main(lambda: self._write(stem, payload, state, best, final))

    def end(self):
        """The run is over, and nothing can be lost any more."""
        parallel.from_main(lambda: self.folder.end())

    def _write(self, stem, payload, state, best, final):
        if self.options["save_precision"] != "fp32":
            if state is not None:
                state = {**state, "weights": payload["weights"]}       # what is resumed stays exact
            payload["weights"] = cast_weights(payload["weights"], self.options["save_precision"])
        if state is not None:
            state = {**state, "final": final, "fingerprint": fingerprint(self.options), "identity": self.stage.identity,
                     "request": self.request}
        self.folder.save(stem, payload, state, best=best, final=final)
        self.folder.prune(self.options["save_total_limit"], self.kept)
