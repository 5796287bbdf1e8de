"""The three steps of docs/code-map.md make a new stage: a file, a line in the table, a wrapper. Nothing else is
touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import toy
from tools.checkpoint import read_checkpoint
from tools.config_manager import ROOT

FILE = '''"""Echo: a toy stage with a loss of its own, the tokens' loss times echo_weight."""

from functools import partial

from train_agent.trainers.build_stage import full_model_stage
from train_agent.trainers.losses import next_tokens_loss
from train_agent.trainers.run_stage import start


def echo_loss(weight, model, batch, totals):
    loss, sums = next_tokens_loss(model, batch, totals)
    return weight * loss, sums


def build_stage(options):
    stage = full_model_stage("echo", options, "请检查 pretraining_model_path。")
    stage.loss = partial(echo_loss, options["echo_weight"])
    return stage


def echo_train(config, **parameters):
    return start(build_stage, {**config, **parameters})
'''
LINE = ('    "echo": Row("Echo", "复述训练", "复述模型", "echo_tuning", {"init_lr": 2e-3, "scheduler": "constant"}, '
        'own("ask", key("echo_weight", "float", 0.5, "复述的权重", above=0))),\n')
CALLS = '''import json, sys
from train_agent.echo_train import main
from train_agent.trainers.trainer import Trainer
from tools import report
from tools.config.stages import made_by
for words in json.loads(sys.argv[1]):
    try:
        main(words)
    except SystemExit as left:
        print("exit", left.code)
report.main(json.loads(sys.argv[2]))
print(made_by("Echo"))
'''


@pytest.fixture(scope="module")
def house(tmp_path_factory):
    """A copy of the project after the three steps."""
    home = tmp_path_factory.mktemp("house")
    for room in ("tools", "model", "train_agent", "chat_agent"):
        shutil.copytree(ROOT / room, home / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "model_config.json", home)
    trainers = home / "train_agent" / "trainers"
    (trainers / "echo_tuning.py").write_text(FILE, encoding="utf-8")
    table = home / "tools" / "config" / "stages.py"
    before, rest = table.read_text(encoding="utf-8").split("TABLE = {\n")
    rows, after = rest.split("\n}\n", 1)
    table.write_text(f"{before}TABLE = {{\n{rows}\n{LINE}}}\n{after}", encoding="utf-8")
    wrapper = (home / "train_agent" / "sft_train.py").read_text(encoding="utf-8")
    wrapper = wrapper.replace("sft_training", "echo_tuning").replace("sft_train", "echo_train").replace('"sft"',
        '"echo"')
    (home / "train_agent" / "echo_train.py").write_text(wrapper, encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def outcome(house, tmp_path_factory):
    """What the wrapper says to --help, to a training, to more steps of it, and to a training of as many steps at
    once."""
    work = tmp_path_factory.mktemp("work")
    data = toy.write_rows(work / "rows.jsonl", toy.dialogue_rows(30))
    shape = [word for name, value in toy.SHAPE.items() for word in (f"--{name}", str(value))]
    places = {
        run: ["--out_dir", str(work / run), "--log_dir", str(work / run / "logs"), "--log_file",
              str(work / run / "log.txt")]
              for run in ("a", "b")}

    def words(run, steps):
        return [*places[run], *shape, "--json_data_path", str(data), "--vocab_data_path", str(data), "--token_kind",
                "char",
                "--batch_size", "2", "--max_len", "40", "--eval_share", "0.1", "--max_steps", str(steps), "--device",
                "cpu",
                "--mixed_precision", "no", "--max_epochs", "9"]
    calls = [["--help"], words("a", 4), words("a", 7), words("b", 7)]
    done = subprocess.run([sys.executable, "-c", CALLS, json.dumps(calls), json.dumps(places["a"])], cwd=house,
                          env={**os.environ, "PYTHONPATH": str(house)}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return work, done


def test_the_new_stage_explains_itself(outcome):
    _, done = outcome
    assert "--echo_weight" in done.stdout and "echo 即复述训练阶段" in done.stdout and "复述的权重（0.5）" in done.stdout
    assert "训练前检查（复述训练）" in done.stdout
    assert done.stdout.rstrip().endswith("复述模型")


def test_it_trains_and_a_resume_is_the_training_at_once(outcome):
    work, done = outcome
    assert "Echo 从第 4 步接着训" in done.stderr
    one, other = (read_checkpoint(work / run / "TinySeek_Echo_final.pkl") for run in ("a", "b"))
    assert one["stage"] == "Echo" and one["step"] == 7 and one["run"]["echo_weight"] == 0.5
    assert toy.same_tensors(one["weights"], other["weights"])


def test_its_log_its_curves_and_its_report_carry_its_name(outcome):
    work, _ = outcome
    names = [path.name for path in (work / "a" / "logs").iterdir()]
    assert any(name.startswith("echo_") and name.endswith(".jsonl") for name in names)
    assert any(name.startswith("echo") and name.endswith(".png") for name in names), names
    assert "复述训练" in Path(work, "a", "report.html").read_text(encoding="utf-8")
