"""LoRA, prefix and memory as stages of the one loop: files, resumption, forgetting, replay, and what users get
wrong."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import toy

from model import ModelConfig, TinySeek
from model.build import attach, build, own_weights
from tools import plot
from tools.checkpoint import load_chain, read_checkpoint, weights_hash
from tools.errors import UserError
from tools.logs.reader import read_log
from tools.pictures.style import Page
from train_agent import lora_train, memory_train, prefix_train, train_gate
from train_agent.trainers import memory_tuning
from train_agent.trainers.dataset import Position
from train_agent.trainers.data.replay import JoinedCache, ReplayData

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"lora": ("lora", {"rank": 2, "lora_dropout": 0.1}),
            "lora_all": ("lora", {"rank": 2, "lora_targets": "all"}),
            "prefix": ("prefix", {"prefix_len": 3}), "role": ("prefix", {"prefix_kind": "role"}),
            "memory": ("memory", {"memory_tokens": 12, "memory_chapters": 4, "memory_topk": 2}),
            "memory_lora": ("memory", {"memory_tokens": 12, "memory_chapters": 4, "rank": 2, "auxiliary_coef": 0.1}),
            "memory_base": ("memory", {"memory_tokens": 12, "memory_chapters": 4, "base_model_lr": 1e-4})}


@pytest.fixture(scope="module")
def world(tmp_path_factory, vocab):
    folder = tmp_path_factory.mktemp("adapters")
    toy.train(toy.toy_options(folder, vocab, "sft", 40, name="base", logging_steps=None), "sft")
    toy.write_rows(folder / "general.jsonl", toy.dialogue_rows(50, 9))
    return folder


def adapter_options(world, vocab, case, **keys):
    stage, own = SETTINGS[case]
    values = {"pretraining_model_path": str(world / "out/base/TinySeek_SFT_final.pkl"),
              "replay_data_path": str(world / "general.jsonl"),
              "name": case, "eval_share": 0.1, **own, **keys}
    return stage, toy.toy_options(world, vocab, stage, toy.dialogue_rows(24, 3), **values)


def final(loop):
    return Path(loop.stage.options["out_dir"], loop.stage.options["name"], f"TinySeek_{loop.stage.label}_final.pkl")


@pytest.mark.parametrize("case", SETTINGS)
def test_a_stage_runs_and_leaves_the_base_alone(world, vocab, case):
    stage, options = adapter_options(world, vocab, case, eval_steps=4)
    base = read_checkpoint(options["pretraining_model_path"])
    loop = toy.train(options, stage)
    assert loop.exit == 0
    chain = load_chain(final(loop))
    assert chain[1]["kind"] == "adapter" and chain[1]["base"] == {"path": "../base/TinySeek_SFT_final.pkl",
                                                                  "hash": weights_hash(base["weights"])}
    if case != "memory_base":
        inside = {n.replace(".base.", "."): t for n, t in loop.model.state_dict().items()}
        assert all(torch.equal(inside[n], t) for n, t in base["weights"].items()), "a base tensor moved"
        assert not set(chain[1]["weights"]) & set(base["weights"])
    else:
        assert not torch.equal(chain[1]["weights"]["fc1.weight"], base["weights"]["fc1.weight"])
    ids = torch.randint(9, 300, (2, 9))
    ids[:, 1], ids[:, 4] = 9, 10
    with torch.no_grad():
        assert torch.equal(build(chain)(ids).logits_1, loop.model.eval()(ids).logits_1)
        assert not torch.equal(build(chain[:1])(ids).logits_1, loop.model(ids).logits_1)
    names = {row["eval_name"] for row in toy.events(options, "eval")}
    assert names == {"held", "general"} and {"general_first", "general_loss"} <= set(chain[1]["metrics"])
    if stage == "memory":
        assert loop.metrics["router_aux"] > 0


@pytest.mark.parametrize("case", ["lora", "prefix", "memory_lora"])
def test_resume_is_bit_identical(world, vocab, case):
    stage, options = adapter_options(world, vocab, case, name=f"whole_{case}", save_steps=2, eval_steps=3,
                                     replay_share=0.3)
    whole = toy.train(options, stage)
    lines = toy.log_lines(options)
    stage, options = adapter_options(world, vocab, case, name=f"torn_{case}", save_steps=2, eval_steps=3,
                                     replay_share=0.3)
    assert toy.train(options, stage, stop_after=3).exit == 143
    assert toy.train(options, stage, kill_after=5).exit == -9
    again = toy.train(options, stage)
    assert again.exit == 0 and again.step == whole.step
    assert toy.same_tensors(read_checkpoint(final(whole))["weights"], read_checkpoint(final(again))["weights"])
    evals = [[r for r in rows if r.get("event") == "eval"] for rows in (lines, toy.log_lines(options))]
    assert evals[0] == evals[1] and evals[0][0]["step"] == 0
    assert again.held == whole.held and again.held["general_first"] == evals[0][1]["eval_loss"]


def test_an_adapter_may_stand_on_an_adapter(world, vocab):
    stage, options = adapter_options(world, vocab, "lora_all", name="lower", max_steps=2)
    lower = final(toy.train(options, stage))
    stage, options = adapter_options(world, vocab, "prefix", name="upper", max_steps=2,
                                     pretraining_model_path=str(lower))
    upper = toy.train(options, stage)
    chain = load_chain(final(upper))
    assert [p["stage"] for p in chain] == ["SFT", "Lora", "Prefix"]
    ids = torch.randint(16, 300, (2, 9))
    with torch.no_grad():
        assert torch.equal(build(chain)(ids).logits_1, upper.model.eval()(ids).logits_1)


def test_size_of_a_rank_8_file(tmp_path, vocab):
    from tools.saving.archive import write_torch
    model = TinySeek(ModelConfig(vocab_size=5000))
    base = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    adapter = {"type": "lora", "rank": 8, "alpha": 8.0, "targets": ["attention"], "scale": 0.02, "dropout": 0.0}
    attach(model, adapter)
    state = {**vocab.state(), "more": ["一二三四"] * 5000}
    write_torch(tmp_path / "a.pkl", {"adapter": adapter, "weights": own_weights(model), "vocab": state})
    assert (tmp_path / "a.pkl").stat().st_size < 0.05 * base


# ---------------------------------------------------------------- forgetting

def test_the_guard_warns(world, vocab, capsys):
    stage, options = adapter_options(world, vocab, "lora_all", name="forgets", init_lr=0.3, min_lr=0.3,
                                     forget_limit=0.05)
    toy.write_rows(world / "one.jsonl",
                   [
                       {
                           "conversations": [{"role": "user", "content": "月亮呢？"},
                                             {"role": "assistant", "content": "不不不不不"}]}] * 20)
    options = {**options, "json_data_path": str(world / "one.jsonl"), "eval_steps": 3}
    loop = toy.train(options, stage)
    assert loop.held["general_loss"] > loop.held["general_first"] + 0.05
    assert any("遗忘" in row["text"] for row in toy.events(options, "warning")) and "遗忘" in capsys.readouterr().err
    stage, options = adapter_options(world, vocab, "lora_all", name="keeps", init_lr=1e-6, min_lr=1e-6,
                                     forget_limit=0.05)
    toy.train(options, stage)
    assert not toy.events(options, "warning")


def test_both_curves_are_in_the_picture(world, vocab):
    """The new set's loss and the general one's, from before the first step to the end, in every adaptation's loss
    panel."""
    for case in ("lora", "prefix", "memory"):
        stage, options = adapter_options(world, vocab, case, name=f"drawn_{case}", eval_steps=2, max_steps=4)
        toy.train(options, stage)
        tracks = plot.tracks_of(
            [("log", [r for r in read_log(options["log_file"]) if r.header.get("stage") == stage][-1:])])
        axes = plot._single(Page(), tracks, "loss").axes[0]
        curves = [line for line in axes.get_lines() if line.get_linestyle() == "--" and len(line.get_xdata())]
        labels = " ".join(str(line.get_label()) for line in curves)
        assert len(curves) == 2 and all(Page().held_out(name) in labels for name in ("held", "general"))
        assert all(list(line.get_xdata()) == [0, 2, 4] for line in curves)


def test_no_guard_without_general_data(world, vocab):
    stage, options = adapter_options(world, vocab, "lora", name="alone", replay_data_path=str(world / "nothing.jsonl"))
    assert list(toy.build_stage(options, stage).held) == ["held"]
    with pytest.raises(UserError) as error:
        toy.build_stage({**options, "replay_share": 0.2}, stage)
    assert error.value.code == 2
    options["replay_data_path"] = options["json_data_path"]
    assert list(toy.build_stage(options, stage).held) == ["held"]
    with pytest.raises(UserError, match="replay_share"):
        toy.build_stage({**options, "replay_share": 0.2}, stage)


def test_without_a_held_out_set_the_general_one_decides_nothing(world, vocab):
    stage, options = adapter_options(world, vocab, "lora", name="only_general", eval_share=0.0, eval_steps=2)
    loop = toy.train(options, stage)
    assert loop.exit == 0 and "eval_loss" not in loop.held and loop.held["general_loss"] > 0
    assert not (final(loop).parent / "TinySeek_Lora_best.pkl").exists()


def test_replayed_rows(world, vocab):
    stage, options = adapter_options(world, vocab, "lora", name="replay", replay_share=0.25, max_epochs=3)
    train = toy.build_stage(options, stage).train
    assert isinstance(train, ReplayData) and isinstance(train.cache, JoinedCache)
    first, second = train.cache.parts
    own = len(train.own)
    assert train.replayed == round(own / 3) and len(train.cache) == len(first) + len(second)
    seen = []
    for epoch in range(3):
        documents = train._order(epoch)[0]
        assert sorted(documents[documents < len(first)]) == sorted(train.own), "every row of its own, once an epoch"
        seen += sorted(documents[documents >= len(first)])
    assert len(seen) == 3 * train.replayed and len(set(seen)) == len(seen), "other general rows in every epoch"
    for number in (0, len(first) - 1, len(first), len(train.cache) - 1):
        cache, inside = (first, number) if number < len(first) else (second, number - len(first))
        start, end = train.cache.bounds([number])
        assert np.array_equal(train.cache.tokens[np.arange(start[0], end[0])],
                              cache.tokens[slice(*(int(e[0]) for e in cache.bounds([inside])))])
    batch = train.batch(Position(0, 0, 0))
    assert batch.tokens == int(batch.valid.sum()) and train.source_rows(Position(0, 0, 0))


# ---------------------------------------------------------------- the scripts and what users get wrong

def arguments(world, case, **keys):
    stage, own = SETTINGS[case]
    values = {**toy.SHAPE, "device": "cpu", "mixed_precision": "no", "out_dir": world / "out",
              "log_dir": world / "logs", "log_file": world / "log.txt",
              "vocab_trg_path": world / "vocab.json", "json_data_path": world / f"{stage}.jsonl", "max_len": 40,
              "max_steps": 2, "name": f"script_{case}",
              "pretraining_model_path": world / "out/base/TinySeek_SFT_final.pkl",
              "replay_data_path": world / "general.jsonl", **own, **keys}
    return [f"--{key}={value}" for key, value in values.items()]


@pytest.mark.parametrize("case,script", [("lora", lora_train), ("prefix", prefix_train), ("memory", memory_train)])
def test_T1_wrappers_run(world, case, script):
    toy.write_rows(world / f"{SETTINGS[case][0]}.jsonl", toy.dialogue_rows(24, 3))
    script.main(arguments(world, case))
    assert list((world / f"out/script_{case}").glob("TinySeek_*_final.pkl"))
    with pytest.raises(SystemExit) as end:
        script.main(["--help"])
    assert end.value.code == 0


WRONG = {"a target that is not there": ("lora", {"lora_targets": "q_proj"}, 2, "可选：all attention"),
         "rank beyond the matrices": ("lora", {"rank": 500}, 2, "rank"),
         "layer that is not there": ("memory", {"memory_layers": 7}, 2, "memory_layers"),
         "no base": ("lora", {"pretraining_model_path": "none"}, 2, "底座"),
         "missing base": ("prefix", {"pretraining_model_path": "no/such.pkl"}, 3, "no"),
         "another shape": ("lora", {"hidden": 20}, 4, "hidden"),
         "init_from of another kind": ("lora", {"init_from": "{base}"}, 4, "init_from")}


@pytest.mark.parametrize("title", WRONG)
def test_bad_input(world, title):
    case, change, code, words = WRONG[title]
    toy.write_rows(world / f"{SETTINGS[case][0]}.jsonl", toy.dialogue_rows(24, 3))
    change = {k: str(v).format(base=world / "out/base/TinySeek_SFT_final.pkl") for k, v in change.items()}
    script = {"lora": lora_train, "prefix": prefix_train, "memory": memory_train}[SETTINGS[case][0]]
    with pytest.raises(UserError) as error:
        script.main(arguments(world, case, **{"name": "wrong", **change}))
    assert error.value.code == code and words in str(error.value).replace(", ", " ")


def test_a_wrong_or_missing_base_is_found_at_loading(world, vocab, tmp_path):
    stage, options = adapter_options(world, vocab, "lora", name="orphan", max_steps=1)
    path = final(toy.train(options, stage))
    lonely = tmp_path / "alone" / path.name
    lonely.parent.mkdir()
    lonely.write_bytes(path.read_bytes())
    with pytest.raises(UserError) as error:
        load_chain(lonely)
    assert error.value.code == 3
    other = tmp_path / "base" / "TinySeek_SFT_final.pkl"
    other.parent.mkdir()
    other.write_bytes(path.read_bytes())                 # something else under the base's name
    with pytest.raises(UserError) as error:
        load_chain(lonely)
    assert error.value.code == 4


def test_init_from_goes_on_with_an_adapters_weights(world, vocab):
    stage, options = adapter_options(world, vocab, "lora", name="first", max_steps=2)
    path = final(toy.train(options, stage))
    begun = toy.build_stage({**options, "init_from": str(path)}, stage)
    assert toy.same_tensors(begun.weights(), read_checkpoint(path)["weights"])
    with pytest.raises(UserError) as error:
        toy.build_stage({**options, "init_from": str(path), "rank": 3}, stage)
    assert error.value.code == 4


def test_memory_stage_uses_its_own_rates(world, vocab):
    stage, options = adapter_options(world, vocab, "memory_lora", memory_lr=3e-4, lora_lr=7e-5)
    built = memory_tuning.build_stage(options)
    assert {rate for _, _, rate in built.trainable()} == {3e-4, 7e-5}


@pytest.mark.slow
@pytest.mark.parametrize("script", ["lora_train.py", "prefix_train.py", "memory_train.py", "train_gate.py"])
def test_scripts_end_with_one_line(script, tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "train_agent" / script), "--pretraining_model_path", "no/such.pkl", "--experts",
         "no/a.pkl", "no/b.pkl"]
                          if script == "train_gate.py"
                          else [sys.executable, str(ROOT / "train_agent" / script), "--pretraining_model_path",
                                "no/such.pkl"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3 and done.stderr.startswith("错误：") and "Traceback" not in done.stderr
    assert train_gate.main
