"""Which checkpoint a run goes on from, and what it leaves behind."""

import re
import sys
from pathlib import Path

from tools.checkpoint import cast_weights
from tools.config.compare import compare, fingerprint
from tools.errors import UserError
from tools.saving.run_folder import RunFolder
from train_agent.trainers import parallel
from train_agent.trainers.dataset import Position


class Saver:
    """The output folder of one run of `stage`."""

    def __init__(self, stage):
        self.stage, self.options = stage, stage.options
        self.folder = RunFolder(self.options["out_dir"], stage.label, self.options["name"])

    def __enter__(self):
        parallel.from_main(lambda: self.folder.lock() and None)
        return self

    def __exit__(self, *_):
        if parallel.is_main():
            self.folder.unlock()

    # ---- going on ----

    def find(self):
        """The state to go on from, its weights already in the model; None for a fresh start.

        The main process alone looks and loads; the others get its state without "optimizers", which travel tensor by tensor.
        """
        kept = {}

        def look():
            state = self._look()
            kept.update(optimizers=state.pop("optimizers")) if state else None
            return state
        state = parallel.from_main(look)
        return state and {**state, "optimizers": kept.get("optimizers")}

    def _look(self):
        """resume auto: an unfinished run of this configuration goes on, anything else is moved aside. A path or --last_index
        must fit: UserError 4 names each key that differs.
        """
        resume, index = self.options["resume"], self.options["last_index"]
        if index >= 0 or resume not in ("auto", "none"):
            payload, state = self._by_index(index) if index >= 0 else self._by_path(resume)
            self._refuse_changes(state)
        else:
            found = self.folder.newest_good() if resume == "auto" else None
            if found is None or not self._goes_on(found[1]):
                self._set_aside()
                return None
            payload, state = found
        self.stage.load(state.pop("weights", None) or payload["weights"])
        return state

    def _goes_on(self, state):
        """Whether a run has not reached its final checkpoint, was killed before it could say so, or was given more to do since."""
        if state is None or self._changes(state):
            return False
        limit, at = self.options["max_steps"], Position(*state["position"])
        done = state["finished"] or limit is not None and state["step"] >= limit or self.stage.train.is_end(at)
        if not state["final"] or not done:
            return True
        state["complete"] = not self.folder.ended()
        return state["complete"]

    def _set_aside(self):
        moved = self.folder.backup()
        if moved:
            print(f"先前的 {self.stage.label} 检查点已移到 {moved}。", file=sys.stderr)

    def changed(self, state, key):
        """Whether the run of `state` had another value of a key."""
        return key in [change.key for change in self._compared(state)]

    def _compared(self, state):
        return compare(state["fingerprint"], fingerprint(self.options))

    def _by_index(self, index):
        pattern = re.compile(rf"TinySeek_{self.stage.label}{index}_\d+(_\d+)?(_s\d+)?$")
        fitting = [e for e in self.folder.entries() if pattern.match(e["stem"])]
        if not fitting:
            raise UserError(f"{self.folder.path} 里没有第 {index} 块的 {self.stage.label} 检查点（--last_index {index}）。", 3)
        return self.folder.load(fitting[-1])

    def _by_path(self, path):
        for file in (Path(path), Path(f"{path}.pkl")):
            if file.is_file() and file.resolve().parent != self.folder.path.resolve():
                raise UserError(f"{file} 不在这次训练的文件夹 {self.folder.path} 里，不能从它接着训练。"
                                "请用 --out_dir、--name 指到它那里；只取权重请用 --init_from。", 3)
        stem = re.sub(r"\.(pkl|state)$", "", str(path).replace("\\", "/").rsplit("/", 1)[-1])
        fitting = [e for e in self.folder.entries() if e["stem"] == stem]
        if not fitting:
            raise UserError(f"{self.folder.path} 的清单里没有检查点 {stem}（--resume {path}）。只取权重请用 --init_from。", 3)
        return self.folder.load(fitting[-1])

    def _changes(self, state):
        """Keys that differ from the checkpoint's run and may not differ in silence: [(key, old, new)]."""
        found = [(c.key, c.old, c.new) for c in self._compared(state)
                 if c.verdict == "never" or (c.verdict == "ask" and not self.options["allow_change"])]
        return found + [(k, state["identity"].get(k), v) for k, v in self.stage.identity.items() if state["identity"].get(k) != v]

    def _refuse_changes(self, state):
        if state is None:
            raise UserError("这个检查点没有 .state 文件，不能接着训练；若只想取它的权重，请用 --init_from。", 4)
        changed = self._changes(state)
        if changed:
            listed = "；".join(f"{k}: {old} → {new}" for k, old, new in changed[:6])
            raise UserError(f"配置或数据和检查点不同，不能接着训练：{listed}。改回原值，或用 --resume none 重新开始。", 4)

    # ---- leaving behind ----

    def save(self, stem, step, metrics, state=None, best=False, final=False):
        """Write one checkpoint, then let the oldest beyond save_total_limit go. All processes call it, the main one writes."""
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
            state = {**state, "final": final, "fingerprint": fingerprint(self.options), "identity": self.stage.identity}
        self.folder.save(stem, payload, state, best=best, final=final)
        self.folder.prune(self.options["save_total_limit"])
