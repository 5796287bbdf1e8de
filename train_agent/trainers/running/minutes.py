"""A training that is to take so long: its steps are measured at the first start, so that the schedule ends with the
time, and are kept for every resume, so that this ends with the same bits.
"""

import time
from pathlib import Path

from tools.config.compare import compare, fingerprint
from tools.checkpoint import read_checkpoint
from tools.saving.atomic import CheckpointError
from tools.saving.run_folder import RunFolder
from train_agent.trainers import parallel, schedules
from train_agent.trainers.trying.step_time import measure

EPOCHS = 1000        # to build the data with; how many are needed is known when the steps are
MEASURED = 6.0       # seconds of real steps, and at most this share of the time:
SHARE = 0.1
FEWEST = 4


def timed_stage(build_stage, options, seconds=None, chosen=lambda steps: steps):
    """build_stage(options), its steps fixed by `seconds` of training, or by options["minutes"] from now on. Without
    either, as it is. chosen(steps that fit) -> steps to take; not asked where an earlier start has settled on them."""
    begun = time.perf_counter()
    if seconds is None and not options["minutes"]:
        return build_stage(options)
    stage = build_stage({**options, "max_epochs": EPOCHS, "max_steps": None})
    steps = parallel.from_main(lambda: kept_steps(stage))
    if steps is None:
        left = seconds if seconds is not None else options["minutes"] * 60 - (time.perf_counter() - begun)
        found = measure(stage, min(MEASURED, SHARE * left))
        steps = parallel.from_main(lambda: chosen(steps_within(left, found, stage.options)))
    in_one = stage.train.steps(options["accumulation_steps"], parallel.world()) / EPOCHS
    # some to spare: it is an estimate
    stage.train.epochs = stage.options["max_epochs"] = int(1.02 * steps / in_one) + 2
    stage.options["max_steps"] = steps
    return stage


def steps_within(seconds, found, options):
    """found: what `measure` said about a step and about a look at the held-out data, which is taken after the last
    step, too."""
    every = schedules.every("eval_steps", options["eval_steps"], int(seconds / found["step"]))
    each = found["step"] + (found["forward"] / every if every else 0)
    return max(FEWEST, int((seconds - found["forward"]) / each))


def kept_steps(stage):
    """The steps that an earlier start of the same training settled on; None where there was none that left a
    checkpoint."""
    options = stage.options
    for path in earlier(options, stage.label):
        try:
            run = read_checkpoint(path)["run"]
        except CheckpointError:
            continue
        wanted = {**options, "max_steps": run.get("max_steps"), "max_epochs": run.get("max_epochs")}
        same = run.get("minutes") == options["minutes"] and not compare(fingerprint(run), fingerprint(wanted))
        return run.get("max_steps") if same else None


def earlier(options, label):
    """Checkpoints that this run may go on from, newest first."""
    if options["resume"] == "none":
        return []
    named = Path(options["resume"]).with_suffix(".pkl")
    folder = RunFolder(options["out_dir"], label, options["name"], warn=lambda text: None)
    return [named] if named.is_file() else [folder.path / f"{entry['stem']}.pkl"
                                            for entry in reversed(folder.entries())]
