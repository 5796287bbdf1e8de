"""What a model learned from and what was held out from it: read from the `run` that its checkpoint keeps."""

import filecmp
import os
from pathlib import Path

from chat_agent.evaluation.rows import left_out
from tools.demo.adapters import write_adapters
from tools.demo_data import demo_home, write_demo
from tools.errors import UserError
from tools.reading.hub import local_files
from tools.formats import expand_paths, fields_of

HUB = {"hf_subset": None, "hf_split": "train", "hf_streaming": False}


def is_built_in(runs):
    """Whether the model knows the built-in world: True, False, or None where no run says what it learned from."""
    data = [path for run in runs for path in _listed(run.get("json_data_path"))]
    return any(Path(path).name.startswith("demo_") for path in data) if data else None


def held_rows(run, cache_dir):
    """(files, every): the rows that this run did not learn from; all, every = 1, where it held none out. UserError 2 if
    gone."""
    if not run.get("json_data_path"):
        raise UserError("这个检查点没有记下训练数据，找不到留出的行。请用 --data 给出文件。")
    if run.get("eval_data_path"):
        return _files(run["eval_data_path"], run, cache_dir), 1
    files = _files(run["json_data_path"], run, cache_dir)
    return files, _every(run, files) or 1


def learned(runs, files, every, cache_dir):
    """Those of `files` whose rows (each `every`-th) one of the runs learned from, under whatever name."""
    found = []
    for run in runs:
        try:
            own = _files(run.get("json_data_path"), run, cache_dir) if run.get("json_data_path") else []
        except UserError:                                   # gone: nothing to compare with
            continue
        if own and every == _every(run, own) and len(own) == len(files) and all(map(_same, sorted(own), sorted(files))):
            continue
        found += [file for file in files if file not in found and any(_same(file, one) for one in own)]
    return found


def _every(run, files):
    """Every how many-th row of its own files the run left out, 0 = none."""
    return 0 if run.get("eval_data_path") else left_out(files, run.get("eval_share"), fields_of(run))


def _same(one, other):
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)


def _listed(paths):
    return [str(p) for p in (paths if isinstance(paths, (list, tuple)) else [paths] if paths else [])]


def _files(paths, run, cache_dir):
    """The files of a key of `run`; built-in data is written where it is missing, and found in a folder that was
    moved."""
    paths = _listed(local_files(_listed(paths), {**HUB, **run, "cache_dir": cache_dir}))
    demo = [Path(p).name.startswith("demo_") and not Path(p).exists() for p in paths]
    home = demo_home(Path(cache_dir).parent)
    if any(demo):
        write_demo(home)
        write_adapters(home)
    return expand_paths([str(home / Path(p).name) if moved else p for p, moved in zip(paths, demo)])
