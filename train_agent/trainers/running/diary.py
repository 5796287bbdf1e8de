"""What every training tells about itself: a short check-up of its data, the preflight, which code and machine made it,
and now and then what it answers to a few questions of its own data. All of it is kept in the run's log, for page and
report."""

import gc
import os
import time
from dataclasses import replace

import torch

from tools import check_data
from tools.process.version import code_version
from tools.errors import UserError
from tools.formats import fields_of
from tools.checkup.aim import aim_of
from tools.checkup.vocabulary import stage_vocabulary
from tools.config.keys import stage_of
from tools.reading.hub import is_hf, local_files
from train_agent.trainers import parallel, preflight
from train_agent.trainers.hardware import machine
from train_agent.trainers.loop import Loop
from train_agent.trainers.data.split import announced
from train_agent.trainers.running.shown import answers

SECONDS, SHARE = 5.0, 0.05      # a preflight of this length at most, and of at most this share of the run's steps
PAUSE = 100                     # answers that took t seconds are followed by others after PAUSE * t at the earliest


class OpenedLoop(Loop):
    """A Loop that keeps a diary. checked: result of `check_up`; ahead: whether to measure what lies ahead;
    closing(): called when all is saved."""

    def __init__(self, stage, checked=None, ahead=True, closing=None):
        super().__init__(stage)
        self.closing = closing or self.closing
        self.checked, self.ahead, self.next_samples = checked, ahead, 0.0
        stage.notes |= {"code": code_version(), "identity": stage.identity, "machine": machine.describe(self.device)}

    def prepare(self):
        super().prepare()
        if self.checked:
            self.journal.event("data_check", **check_data.brief(self.checked))
        elif parallel.is_main():
            print("数据体检：没有做，可以运行 python tools/check_data.py 补做。")
        if self.ahead and parallel.world() == 1 and not self.over():        # over several processes: --dry_run
            self.look_ahead()
        elif parallel.is_main() and announced(self.stage):                  # the preflight says it, too
            print(f"{announced(self.stage)}。", flush=True)

    def log(self, place, in_chunk):
        super().log(place, in_chunk)
        if time.perf_counter() > self.next_samples:
            self.show()

    def save(self, stem, final=False):
        super().save(stem, final)
        if final:
            self.show()

    def show(self):
        """What it answers by now."""
        if parallel.world() > 1 or self.signals.asked or self.stage.about["kind"] == "gate":
            return
        begin = time.perf_counter()
        try:
            said, exam = answers(self.stage)
            for prompt, reply in said:
                self.journal.event("sample", prompt=prompt, reply=reply)
            if exam:
                self.journal.event("exam", **exam)
        except Exception as error:                        # no room, no kernel, too long: no reason to end a training
            self.journal.event("warning", text=f"样例没能生成：{(str(error) or repr(error)).splitlines()[0][:120]}")
        took = time.perf_counter() - begin
        self.next_samples = begin + PAUSE * took
        self.since += took                                                  # not training speed

    def look_ahead(self):
        settled = replace(self.stage, options={**self.stage.options, "mixed_precision": self.precision})
        try:
            found = preflight.preflight(settled, SECONDS, self.step, share=SHARE)
        # no room for a second model says nothing about one
        except RuntimeError as error:
            if "out of memory" not in str(error).lower():
                raise
            found = None
        if found is None:
            gc.collect()                                                    # the second model, which the error held
            torch.cuda.empty_cache()
            print("，".join(filter(None, ["训练前检查：内存放不下第二份模型，跳过实测", announced(self.stage)])) + "。")
            return
        self.journal.event("preflight", **preflight.brief(found))


def check_up(options):
    """The short check-up of a stage's training data, by one process -> dict or None. What it cannot read the stage
    itself will name."""
    paths, held, stage = options["json_data_path"], options.get("eval_data_path"), stage_of(options)
    if not paths or int(os.environ.get("RANK", 0)) or is_hf_among(paths) and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        return None                                                         # who fetches is settled later
    try:
        vocab, origin = stage_vocabulary(options, stage)
        return check_data.quick_check(local_files(paths, options), local_files(held, options), vocab,
                                      text_field=fields_of(options),
                                      max_bad_share=options["max_bad_share"], eval_share=options["eval_share"],
                                      aim=aim_of(stage, options), origin=origin)
    except (UserError, OSError):
        return None


def is_hf_among(paths):
    return any(map(is_hf, [paths] if isinstance(paths, str) else paths))
