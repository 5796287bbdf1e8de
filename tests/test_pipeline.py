"""The scripts as people run them: one process each, from another folder, with paths of spaces and Chinese."""
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import run
import toy
from tools.checkpoint import read_checkpoint
from tools.cli import guarded
from tools.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
TINY = ["--n_layer", 1, "--n_head", 2, "--d_model", 32, "--d_c", 16, "--d_r", 4, "--hidden", 16, "--other_experts", 4,
        "--shared_experts", 1,
        "--keep", 2, "--vocab_size", 500, "--dropout", 0.1, "--device", "cpu", "--mixed_precision", "no", "--threads",
        1]
RUN = ["--max_len", 48, "--batch_size", 2, "--max_steps", 6, "--logging_steps", 1, "--save_steps", 2, "--eval_steps",
       3, "--eval_share", 0.1]
# Sends itself SIGTERM while the third step is under way, then runs the script as usual.
STOPPED = """
import os, runpy, signal, sys
from train_agent.trainers.loop import Loop
from train_agent.trainers.running.diary import OpenedLoop
real = Loop.optimize
def optimize(self, *args):
    if isinstance(self, OpenedLoop) and self.step == 2:      # not the preflight's
        os.kill(os.getpid(), signal.SIGTERM)
    return real(self, *args)
Loop.optimize = optimize
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Place:
    """A folder with data for a toy run; `run` starts a script in it and says how it ended."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(parents=True)
        self.text = toy.write_rows(folder / "文 本.jsonl", toy.text_rows(60))
        self.talk = toy.write_rows(folder / "对 话.jsonl", toy.dialogue_rows(60))

    @property
    def out(self):
        return self.folder / "输 出"

    def run(self, script, *words, code=0, prefix=()):
        """-> stdout; fails with everything the script said when it did not end with `code`."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
        if not prefix:
            del environment["PYTHONPATH"]               # a script finds its own project
        done = subprocess.run([sys.executable, *prefix, str(ROOT / script), *map(str, words)], cwd=self.folder,
                              env=environment,
                              capture_output=True, text=True, encoding="utf-8", timeout=900)
        assert done.returncode == code and "Traceback" not in done.stderr, (
            f"{done.returncode}\n{done.stdout}\n{done.stderr}")
        self.said = done.stderr
        return done.stdout

    def train(self, stage, *words, **how):
        script = {"pre": "train_agent/pre_train.py", "sft": "train_agent/sft_train.py"}[stage]
        return self.run(script, *self.words(stage, Path(), *words), **how)

    def words(self, stage, folder, *more):
        """The command line of a toy run whose files lie in `folder`; `more` comes last and replaces."""
        usual = [*TINY, *RUN, "--json_data_path", {"pre": self.text, "sft": self.talk}[stage], "--vocab_data_path",
                 self.text,
                 "--out_dir", folder / "输 出", "--log_dir", folder / "日 志", "--log_file", folder / "日 志.txt"]
        kept = [pair for pair in zip(usual[::2], usual[1::2]) if pair[0] not in more]
        return [str(word) for pair in kept for word in pair] + [str(word) for word in more]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pre-trained and fine-tuned once, for all tests here that look at the result."""
    made = Place(tmp_path_factory.mktemp("run") / "小 寻 的家")
    made.train("pre")
    made.train("sft")
    return made


def weights(path):
    return read_checkpoint(path)["weights"]


def test_training_leaves_checkpoints_logs_and_nothing_beside_the_data(place):
    assert {"TinySeek_Pre_final.pkl", "TinySeek_SFT_final.pkl", "vocab.json"} <= {p.name for p in place.out.iterdir()}
    assert {p.name for p in place.folder.iterdir()} == {"文 本.jsonl", "对 话.jsonl", "输 出", "日 志", "日 志.txt"}
    lines = (place.folder / "日 志.txt").read_text(encoding="utf-8").splitlines()
    assert sum(line.startswith("Epoch ") for line in lines) == 12
    assert all(" | Ppx_1: " in line and " | LR: " in line for line in lines if line.startswith("Epoch "))
    payload = read_checkpoint(place.out / "TinySeek_SFT_final.pkl")
    assert payload["stage"] == "SFT" and payload["step"] == 6 and payload["run"]["d_model"] == 32
    assert all(torch.isfinite(t).all() for t in payload["weights"].values())
    before = weights(place.out / "TinySeek_Pre_final.pkl")
    assert any(not torch.equal(before[k], t) for k, t in payload["weights"].items())


def test_chat_prints_one_reply_and_nothing_else(place):
    model = ["--model", place.out / "TinySeek_SFT_final.pkl", "--max_new_tokens", 8, "--device", "cpu"]
    first = place.run("chat_agent/chat.py", *model, "--prompt", "苹果呢？")
    assert first == place.run("chat_agent/chat.py", *model, "--prompt", "苹果呢？")
    assert len(first.rstrip("\n").splitlines()) <= 1 and "苹果呢" not in first


def test_evaluate_ends_with_one_json_object(place):
    out = place.run("chat_agent/evaluate.py", "--model", place.out / "TinySeek_Pre_final.pkl", "--model",
                    place.out / "TinySeek_SFT_final.pkl",
                    "--task", "bpc", "--data", place.text, "--every", 10, "--device", "cpu")
    pre, sft = json.loads(out.strip().splitlines()[-1])["models"]
    assert pre["bpc"]["rows"] == 6 and 0 < pre["bpc"]["bits_per_byte"] < pre["bpc"]["bits_per_char"] < 15
    assert sft["stage"] == "SFT"
    assert "每字比特" in out and "Pre_final" in out


def test_plot_draws_the_log(place):
    place.run("tools/plot.py", "日 志.txt", "--output", "曲 线.png")
    picture = place.folder / "曲 线.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()


def test_a_finished_run_started_again_begins_afresh_and_keeps_the_old(place):
    old = weights(place.out / "TinySeek_SFT_final.pkl")
    place.train("sft")
    moved = list(place.out.glob("backup_*/TinySeek_SFT_final.pkl"))
    assert len(moved) == 1 and toy.same_tensors(weights(moved[0]), old) and "backup_" in place.said
    assert toy.same_tensors(weights(place.out / "TinySeek_SFT_final.pkl"), old)        # same words, same bits
    assert (place.out / "TinySeek_Pre_final.pkl").exists()


def test_stopped_by_a_signal_and_resumed_gives_the_same_bits(place, tmp_path):
    other = Place(tmp_path / "停 过")
    other.train("pre", code=143, prefix=["-c", STOPPED])
    assert not (other.out / "TinySeek_Pre_final.pkl").exists()
    log = (other.folder / "日 志.txt").read_text(encoding="utf-8")
    assert len(re.findall("^Epoch ", log, re.M)) == 3
    other.train("pre")
    resumed, whole = (read_checkpoint(p.out / "TinySeek_Pre_final.pkl") for p in (other, place))
    assert toy.same_tensors(resumed["weights"], whole["weights"]) and resumed["step"] == whole["step"] == 6
    log = (other.folder / "日 志.txt").read_text(encoding="utf-8")
    assert len(re.findall("^Epoch ", log, re.M)) == 6


def test_the_scripts_run_as_modules_and_explain_themselves(place):
    done = subprocess.run([sys.executable, "-m", "train_agent.pre_train", "--help"], cwd=ROOT, capture_output=True,
                          text=True,
                          encoding="utf-8", env={**os.environ, "PYTHONIOENCODING": "utf-8"})
    assert done.returncode == 0 and "--json_data_path" in done.stdout and "用法" in done.stdout


# ---------------------------------------------------------------- mistakes

def test_sft_before_pretraining_names_both_ways_on(tmp_path):
    fresh = Place(tmp_path / "新 的")
    fresh.train("sft", code=3)
    last = fresh.said.strip().splitlines()[-1]
    assert "pre_train.py" in last and "run.py" in last and "--pretraining_model_path none" in last
    fresh.train("sft", "--pretraining_model_path", "none", "--max_steps", 2)
    assert read_checkpoint(fresh.out / "TinySeek_SFT_final.pkl")["step"] == 2


def mistake(place, capsys, stage, code, *words):
    """Run a wrapper in this process (an interpreter per mistake would cost minutes); the last thing it says."""
    from train_agent import pre_train, sft_train
    script = {"pre": pre_train, "sft": sft_train}[stage]
    with pytest.raises(SystemExit) as left:
        guarded(lambda: script.main(place.words(stage, place.folder, *words)))
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert left.value.code == code and said.startswith("错误："), f"{left.value.code} {said}"
    return said


@pytest.mark.parametrize("words, said", [
    (["--json_data_path", "没有的.jsonl"], "没有的.jsonl"), (["--json_data_path", "空.jsonl"], "空"),
    (["--n_heads_", 4], "n_head"),
    (["--n_head", 3], "不能整除"), (["--keep", 5], "keep=5"), (["--max_steps", 0], "max_steps"),
    (["--config", "没有.json"], "没有.json")])
def test_wrong_words_and_files_are_exit_2(place, capsys, monkeypatch, words, said):
    monkeypatch.chdir(place.folder.parent)
    Path("空.jsonl").touch()
    assert said in mistake(place, capsys, "pre", 2, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there_is_said(place, capsys):
    assert "CUDA" in mistake(place, capsys, "pre", 2, "--device", "cuda")


def test_a_checkpoint_of_another_shape_or_vocabulary_is_exit_4(place, capsys, tmp_path):
    base = place.out / "TinySeek_Pre_final.pkl"
    apart = ["--out_dir", tmp_path, "--pretraining_model_path", base]
    assert "n_layer" in mistake(place, capsys, "sft", 4, *apart, "--n_layer", 2)
    toy.Vocab.create_vocab(["木"], vocab_size=500, texts=True, progress=False).save(tmp_path / "别的.json")
    assert "词表" in mistake(place, capsys, "sft", 4, *apart, "--vocab_trg_path", tmp_path / "别的.json")


def test_too_many_bad_lines_stop_before_training(place, capsys, tmp_path):
    data = tmp_path / "坏.jsonl"
    data.write_text('{"text": "苹果很好看。"}\n' * 50 + "{坏\n" * 11, encoding="utf-8")
    mistake(place, capsys, "pre", 8, "--json_data_path", data, "--out_dir", tmp_path)
    assert not list(tmp_path.glob("*.pkl"))


def test_two_runs_in_one_folder_are_exit_6(place, capsys, tmp_path):
    from tools.saving.folder_lock import FolderLock
    lock = FolderLock(tmp_path)
    lock.acquire()
    try:
        assert "占用" in mistake(place, capsys, "pre", 6, "--out_dir", tmp_path)
    finally:
        lock.release()


# ---- run.py's own answers ----

def test_run_refuses_what_only_a_stage_can_show():
    for key in ("--dry_run", "--find_lr"):
        with pytest.raises(UserError, match="只看一个阶段"):
            run.main([key])


@pytest.mark.parametrize("minutes", ["-5", "0", "nan", "inf"])
def test_run_refuses_a_time_that_is_none(tmp_path, minutes):
    with pytest.raises(UserError, match="--minutes"):
        run.main(["--minutes", minutes, "--out_dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_run_with_a_name_goes_on_from_its_own_model(tmp_path):
    options = {"out_dir": str(tmp_path), "pretraining_model_path": str(tmp_path / "TinySeek_Pre_final.pkl")}
    assert run.own_base(options, tmp_path / "甲") == str(tmp_path / "甲/TinySeek_Pre_final.pkl")
    assert run.own_base({**options, "pretraining_model_path": "/else/x.pkl"}, tmp_path / "甲") == "/else/x.pkl"
    assert run.own_base({**options, "pretraining_model_path": None}, tmp_path / "甲") is None


def test_run_from_nothing_forgets_what_was_done(tmp_path):
    run.Progress(tmp_path, "k").once("pre", "预训练", lambda: 1)
    assert run.Progress(tmp_path, "k").once("pre", "预训练", lambda: 2) == 1
    assert run.Progress(tmp_path, "k", afresh=True).once("pre", "预训练", lambda: 2) == 2
