"""What a pipeline of several trainings has done already, in progress.json. A second start skips it, as long as the
files that were made then are still there, unchanged: scores never stand beside another model than the one they were
taken on.
"""
import contextlib
import os
import sys
import time
from pathlib import Path

from tools.config.compare import compare
from tools.errors import UserError
from tools.process.signals import leave_if_heard
from tools.saving.archive import verify_torch
from tools.saving.atomic import CheckpointError, finite, read_json, write_json
from tools.saving.plan import in_words, left_of, pace_of, why


class Progress:
    """key: what all results hang on, e.g. {stage: fingerprint of its configuration}; with another key everything is
    done anew. plan: (name, title, about how many seconds or None) of all that `once` and `step` will be asked for, of
    which those named in `fixed` last as planned on any machine; it and the `now` of the work under way are for those
    who watch. clock: seconds since 1970."""

    def __init__(self, out_dir, key, afresh=False, plan=(), fixed=(), clock=time.time):
        self.path, self.fixed, self.clock, self.took = Path(out_dir) / "progress.json", fixed, clock, {}
        self.data = {"key": key, "results": {}, "seconds": {}, "before": {}}
        found = None if afresh else self._read()
        if found and found.keys() >= self.data.keys() and same_key(found["key"], key):
            self.data = {**found, "key": key}
        self.data |= {"plan": [list(step) for step in plan], "now": None, "failed": None, "passed": [], "notes": {},
                      "pid": os.getpid()}

    def _read(self):
        try:
            return read_json(self.path) if self.path.exists() else None
        except CheckpointError as error:
            print(f"警告：{error}；已完成的步骤会重做。", file=sys.stderr)

    def save(self):
        write_json(self.path, self.data)

    def once(self, name, title, work, made=None, needs=(), taken_over=None):
        """The result of work(), kept from an earlier start as long as the checkpoint `made` by it and those it `needs`
        are the same.

        taken_over(made) -> the result for a checkpoint that somebody else made in the meantime; without it the work is
        done anew.
        """
        results, needed, mine = self.data["results"], [digest(path) for path in needs], digest(made)
        known = results.get(name)
        if known and known["needs"] == needed and known["made"] == mine and (made is None or mine):
            print(f"✓ {title}：上次已完成，跳过。")
            return known["result"]
        began_with = known["made"] if known else self.data["before"].get(name, mine)
        if taken_over and mine not in (None, began_with):
            return self._note(name, needed, made, self._told(made, known) or taken_over(made))
        if known and made and mine is None:
            print(f"{Path(made).name} 不在了或已损坏，重做这一步。")
        if not known:
            self.data["before"].setdefault(name, mine)
        result = self._worked(name, title, work)
        self._note(name, needed, made, result)
        leave_if_heard()
        return results[name]["result"]

    def step(self, name, title, work):
        """The result of work(), which is done at every start."""
        result = self._worked(name, title, work)
        self.data["passed"].append(name)
        return result

    def say(self, name, text):
        """Leave a line about a step for those who watch."""
        self.data["notes"][name] = text
        self.save()

    def _worked(self, name, title, work):
        start, left = self.clock(), self._left(name)
        print(f"▶ {title}{self._place(name, left)}", flush=True)
        self.data |= {"now": name, "left": left, "since": start}
        self.save()
        try:
            result = work()
        except BaseException as error:
            self.data |= {"now": None, "failed": name}
            self.data["notes"][name] = why(error)
            with contextlib.suppress(UserError, OSError):          # what ended the work is what matters
                self.save()
            raise
        took = self.data["seconds"][name] = round(self.clock() - start, 1)
        self.data["now"] = None
        if name not in self.fixed:
            self.took[name] = took
        return result

    def _left(self, name):
        plan = self.data["plan"]
        return left_of(plan, name, self.data["results"], pace_of(plan, self.took), self.fixed)

    def _place(self, name, left):
        """Which step of the plan it is, and about how long all that is left will take."""
        names = [step[0] for step in self.data["plan"]]
        if name not in names:
            return ""
        rest = f"，到全部做完约还要 {in_words(sum(left))}" if left else ""
        return f"　第 {names.index(name) + 1}/{len(names)} 步{rest}"

    def _note(self, name, needed, made, result):
        result = finite(result)
        self.data["results"][name] = {"result": result, "needs": needed, "made": digest(made)}
        self.save()
        return result

    @staticmethod
    def _told(made, known):
        if known:
            print(f"{made} 后来换成了另一个模型：就用它，分数重新打。要这里重新训练，请加 --resume none（它会移到 backup 文件夹，不会丢）。")
        else:
            print(f"✓ {made} 已经训练完，就用它。")


def digest(path):
    """SHA-256 of a whole checkpoint; None for no path, no file, or a damaged one."""
    try:
        return verify_torch(path) if path and Path(path).is_file() else None
    except CheckpointError:
        return None


def same_key(one, other):
    """Configurations are compared as a resume compares them: folders may move."""
    if not isinstance(one, dict) or not isinstance(other, dict) or one.keys() != other.keys():
        return one == other
    return all(not compare(value, other[name]) if isinstance(value, dict) else value == other[name]
               for name, value in one.items())
