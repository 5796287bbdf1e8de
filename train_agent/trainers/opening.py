"""What opens every training: a short check-up of the data, then the preflight. Both are said and kept in the run's log."""

import os
from dataclasses import replace
from pathlib import Path

from tools import check_data
from tools.errors import UserError
from tools.hf_data import is_hf
from tools.vocab import Vocab
from train_agent.trainers import parallel, preflight
from train_agent.trainers.loop import Loop

SECONDS, SHARE = 3.0, 0.02      # a preflight of this length at most, and of at most this share of the run's steps


class OpenedLoop(Loop):
    """A Loop that says what it found before its first step. checked: result of `check_up`."""

    def __init__(self, stage, checked=None):
        super().__init__(stage)
        self.checked = checked

    def prepare(self):
        super().prepare()
        if self.checked:
            self.journal.event("data_check", **check_data.brief(self.checked))
        if parallel.world() == 1 and not self.over():                       # over several processes: --dry_run
            self.look_ahead()

    def look_ahead(self):
        settled = replace(self.stage, options={**self.stage.options, "mixed_precision": self.precision})
        try:
            found = preflight.preflight(settled, SECONDS, self.step, share=SHARE)
        except RuntimeError as error:                                       # no room for a second model says nothing about one
            if "out of memory" not in str(error).lower():
                raise
            print("训练前检查：内存放不下第二份模型，跳过实测。")
            return
        self.journal.event("preflight", **preflight.brief(found))


def check_up(options):
    """The short check-up of a stage's training data, by one process -> dict or None. What it cannot read the stage itself will name."""
    paths = options["json_data_path"]
    paths = [paths] if isinstance(paths, str) else paths or []
    if not paths or any(map(is_hf, paths)) or int(os.environ.get("RANK", 0)):
        return None
    known = options.get("vocab_trg_path")
    try:
        vocab = Vocab.load_vocab(known) if known and Path(known).is_file() else None
        return check_data.quick_check(paths, None, vocab, options["max_len"], options.get("text_field"), options["max_bad_share"],
                                      0.0 if options.get("eval_data_path") else options.get("eval_share") or 0.0)
    except (UserError, OSError):
        return None
