"""Which checkpoint a run goes on from, which stay, and what a changed configuration makes of them."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
from toy import build_stage, checkpoint, events, names, same_tensors, train
from model.sampling import DEFAULTS
from tools.checkpoint import read_pair, weights_hash
from tools.errors import UserError
from tools.vocab import Vocab
from train_agent.trainers import loop as loop_file
from train_agent.trainers.data.own_questions import opening, spread
from train_agent.trainers.hardware import machine


def refused(options, *says, code=4, stage="pre"):
    """The run must end with this UserError, and its message must hold these words."""
    with pytest.raises(UserError) as error:
        train(options, stage)
    assert error.value.code == code
    assert all(str(word) in str(error.value) for word in says), str(error.value)


def backups(options):
    return sorted(Path(options["out_dir"]).glob("backup_*"))


# ---- retention and the best ----

@pytest.mark.parametrize("limit, kept",
                         [(3, ["s6", "s8", "s10"]), (1, ["s10"]), (None, ["s2", "s4", "s6", "s8", "s10"])])
def test_C5_the_newest_stay_and_best_and_final_always(options, limit, kept):
    chosen = options(save_steps=2, max_steps=11, save_total_limit=limit, eval_share=0.1, eval_steps=3)
    train(chosen)
    expected = {f"TinySeek_Pre1_1_{k}" for k in kept} | {"TinySeek_Pre_best", "TinySeek_Pre_final"}
    assert set(names(chosen)) == expected and set(names(chosen, ".state")) == expected - {"TinySeek_Pre_best"}


def test_C5_the_default_is_3_and_zero_is_an_error(options):
    assert options()["save_total_limit"] == 3
    for value in (0, -2):
        with pytest.raises(UserError) as error:
            options(save_total_limit=value)
        assert error.value.code == 2


def scripted(monkeypatch, losses):
    left = list(losses)
    monkeypatch.setattr(loop_file, "evaluate",
                        lambda *_: {"loss": left[0], "ce_1": left.pop(0) if len(left) > 1 else left[0]})


def test_C6_best_is_the_argmin_of_the_held_out_loss(options, monkeypatch):
    scripted(monkeypatch, [5, 4, 4.5, 3.5, 3.6, 3.5])
    chosen = options(max_steps=12, eval_share=0.1, eval_steps=2)
    weights = {}
    stage = build_stage(chosen)
    loop = toy.ToyLoop(stage)
    real = loop.evaluate
    loop.evaluate = lambda: (weights.update({loop.step: {n: t.clone() for n, t in stage.weights().items()}}), real())
    loop.run()
    best = checkpoint(chosen, "TinySeek_Pre_best")
    assert best["step"] == 8 and best["metrics"]["eval_loss"] == 3.5               # the first of equals
    assert same_tensors(best["weights"], weights[8]) and not same_tensors(best["weights"], weights[10])


def test_C6_best_survives_a_resume_and_can_be_switched_off(options, monkeypatch):
    scripted(monkeypatch, [2, 3])
    chosen = options(max_steps=8, eval_share=0.1, eval_steps=2)
    train(chosen, stop_after=5)
    train(chosen)
    assert checkpoint(chosen, "TinySeek_Pre_best")["step"] == 2
    off = options(max_steps=4, eval_share=0.1, eval_steps=2, save_best_model=False, name="off")
    train(off)
    assert "TinySeek_Pre_best.pkl" not in [p.name for p in (Path(off["out_dir"]) / "off").iterdir()]


def test_C8_a_checkpoint_says_what_it_is(options, vocab):
    chosen = options(eval_share=0.1)
    loop = train(chosen)
    payload, state = read_pair(Path(chosen["out_dir"]) / "TinySeek_Pre_final.pkl")
    assert (payload["kind"], payload["stage"], payload["vocab_hash"]) == ("model", "Pre", vocab.hash)
    assert payload["config"]["n_layer"] == 2 and payload["config"]["vocab_size"] == len(vocab)
    assert payload["run"]["init_lr"] == 5e-3 and payload["step"] == len(loop.history) == state["step"]
    assert payload["metrics"]["loss"] == loop.history[-1]["loss"] and "eval_loss" in payload["metrics"]
    assert same_tensors(payload["weights"], dict(loop.model.state_dict())) and state["optimizers"]
    assert payload["talk"]["sampling"] == DEFAULTS


def test_a_checkpoint_keeps_sentences_of_its_held_out_data(options, tmp_path):
    data = tmp_path / "talk.jsonl"
    asked = [f"第{n}问{'甲乙丙丁戊'[n % 5]}？" for n in range(40)]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": "好。"}]} for q in asked]
    data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    chosen = options(json_data_path=str(data), eval_share=0.25, max_steps=2)
    chosen["training_mode"] = "sft"
    train(chosen)
    prompts = read_pair(Path(chosen["out_dir"]) / "TinySeek_Pre_final.pkl")[0]["talk"]["prompts"]
    # every fourth row is held out
    assert len(prompts) == 6 == len(set(prompts)) and set(prompts) <= set(asked[::4])
    assert all(one["prompt"] in prompts for one in events(chosen, "sample"))


def test_a_base_model_keeps_openings_of_texts():
    vocab = Vocab.from_words([], [], "char")
    ids = vocab.encode("今天下雨了，我们不出门。")
    assert opening(np.array([vocab.id("<|im_end|>"), *ids, vocab.id("<|im_end|>")]), vocab) == "今天下雨了"
    assert spread(["今天一", "今天二", "明天三", "后天一", "四"]) == ["今天一", "明天三", "后天一", "四", "今天二"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_P3_what_is_kept_is_narrow_what_is_resumed_is_exact(options, precision):
    keys = dict(save_precision=precision, dropout=0.1)
    whole = train(options(dropout=0.1, name="whole"))
    chosen = options(**keys)
    train(chosen, stop_after=5)
    weights = checkpoint(chosen, "TinySeek_Pre1_1_s5")["weights"]
    assert {t.dtype for t in weights.values()} == {getattr(torch, {"fp16": "float16", "bf16": "bfloat16"}[precision])}
    again = train(chosen)
    assert same_tensors(again.model.state_dict(), whole.model.state_dict())


# ---- going on or not ----

CHANGES = [({"init_lr": 1e-3}, "init_lr", "0.005", "0.001"), ({"n_layer": 1}, "n_layer", "2", "1"),
           ({"seed": 7}, "seed", "0", "7"),
           ({"max_len": 20}, "max_len", "40", "20"), ({"optimizer": "adamw"}, "optimizer", "adam", "adamw"),
           ({"batch_size": 1}, "batch_size", "2", "1"), ({"max_steps": 6}, "max_steps", "9", "6")]


@pytest.mark.parametrize("change, key, old, new", CHANGES, ids=lambda v: v if isinstance(v, str) else "")
def test_a_changed_configuration_is_moved_aside_by_auto_and_refused_by_a_path(options, change, key, old, new):
    """auto: the earlier run lies untouched in backup_<time>; an explicit checkpoint: exit 4 with the old and the new
    value."""
    keys = dict(max_steps=9, save_steps=4)
    chosen = options(**keys)
    train(chosen, stop_after=5)
    digest = weights_hash(checkpoint(chosen, "TinySeek_Pre1_1_s5")["weights"])
    other = options(**{**keys, **change})
    refused({**other, "resume": "TinySeek_Pre1_1_s5.pkl"}, key, old, new)
    refused({**other, "last_index": 1}, key, old, new)
    assert names(chosen) == ["TinySeek_Pre1_1_s4", "TinySeek_Pre1_1_s5"] and not backups(chosen)
    assert train(other).history[0]["step"] == 1
    folder, = backups(chosen)
    moved = read_pair(folder / "TinySeek_Pre1_1_s5.pkl")
    assert weights_hash(moved[0]["weights"]) == digest and moved[1]["step"] == 5


def test_what_does_not_matter_may_change(options):
    """Cadences, workers, raising max_steps: the run goes on; so does a change that --allow_change lets through."""
    train(options(max_steps=9, dropout=0.1), stop_after=5)
    free = options(max_steps=12, dropout=0.1, logging_steps=3, save_steps=4, save_total_limit=None, num_workers=1)
    assert train(free, stop_after=7).history[0]["step"] == 6
    allowed = options(max_steps=12, dropout=0.1, init_lr=1e-3, allow_change=True)
    assert train(allowed).history[0]["step"] == 8


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_allowed_change_takes_effect(options, optimizer):
    """Rate 0.001 -> 1e-12 and no decay: the weights stand still from there on. Precision: the one asked for now, fp16's
    scale included."""
    keys = dict(max_steps=9, optimizer=optimizer, mixed_precision="bf16")
    stopped = train(options(**keys), stop_after=5)
    before = {k: v.clone() for k, v in stopped.model.state_dict().items()}
    chosen = options(
        **{**keys, "init_lr": 1e-12, "min_lr": 0.0, "weight_decay": 0.0, "mixed_precision": "no", "allow_change": True})
    again = train(chosen)
    assert again.history[0]["step"] == 6 and again.precision == "no"
    for name, value in again.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=1e-9, msg=name)


def test_auto_stays_what_it_was_settled_to(options, monkeypatch):
    monkeypatch.setattr(machine, "choose_precision", lambda wanted, device: "bf16" if wanted == "auto" else wanted)
    train(options(max_steps=9, mixed_precision="auto"), stop_after=5)
    monkeypatch.setattr(machine, "choose_precision", lambda wanted, device: "no")
    assert train(options(max_steps=9, mixed_precision="auto")).precision == "bf16"


def test_changed_data_or_vocabulary_is_refused_by_name(options, ram_path):
    chosen = options(max_steps=9)
    train(chosen, stop_after=5)
    resume = {"resume": "TinySeek_Pre1_1_s5"}
    other = options(max_steps=9, rows=31)
    refused({**other, **resume}, "数据")
    options(max_steps=9)                                                           # the old rows again
    from tools.vocab import Vocab
    Vocab.create_vocab(["书", "茶"], vocab_size=len(toy.toy_vocab()), texts=True,
                       progress=False).save(ram_path / "vocab.json")
    refused({**chosen, **resume}, "词表")


def test_an_explicit_checkpoint_goes_on_exactly(options):
    chosen = options(dropout=0.1, save_steps=3, max_steps=11, save_total_limit=None)
    whole = train(chosen)
    for given in ("TinySeek_Pre1_1_s6", str(Path(chosen["out_dir"]) / "TinySeek_Pre1_1_s3.pkl")):
        again = train({**chosen, "resume": given})
        assert again.history[0]["step"] == int(given.removesuffix(".pkl")[-1]) + 1
        assert same_tensors(again.model.state_dict(), whole.model.state_dict())


def test_what_cannot_be_gone_on_from(options):
    chosen = options(eval_share=0.1, eval_steps=2)
    train(chosen)
    refused({**chosen, "resume": "TinySeek_Pre7_1"}, "TinySeek_Pre7_1", code=3)
    refused({**chosen, "resume": "TinySeek_Pre_best"}, "init_from")                # weights without a state
    refused({**chosen, "last_index": 9}, 9, code=3)


def test_resume_none_starts_afresh_and_keeps_the_old(options):
    chosen = options()
    train(chosen, stop_after=4)
    again = train({**chosen, "resume": "none"})
    assert again.history[0]["step"] == 1 and (backups(chosen)[0] / "TinySeek_Pre1_1_s4.pkl").exists()


def test_damaged_newest_falls_back_to_the_one_before(options):
    chosen = options(save_steps=2, dropout=0.1)
    train(chosen, kill_after=7)
    path = Path(chosen["out_dir"]) / "TinySeek_Pre1_1_s6.pkl"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    again = train(chosen)
    assert again.history[0]["step"] == 5
    assert same_tensors(again.model.state_dict(), train(options(dropout=0.1, name="whole")).model.state_dict())


def test_the_folder_belongs_to_one_run(options):
    chosen = options()
    inner = []

    class Nested(toy.ToyLoop):
        def train(self):
            refused(chosen, code=6)
            inner.append(1)
            super().train()
    Nested(build_stage(chosen)).run()
    assert inner and train(chosen).exit == 0                                      # and is free again


def test_another_stage_in_the_same_folder_is_left_alone(options):
    pre = options()
    train(pre)
    path = Path(pre["out_dir"]) / "TinySeek_Pre_final.pkl"
    sft = options("sft", pretraining_model_path=str(path))
    before = path.read_bytes()
    train(sft, "sft"), train(sft, "sft")
    assert path.read_bytes() == before
    assert [p.name for p in backups(sft)[0].glob("*.pkl")] == ["TinySeek_SFT_final.pkl"]


# ---- starting from weights ----

def test_C9_init_from_takes_weights_only(options):
    first = options(name="first")
    train(first)
    path = Path(first["out_dir"]) / "first" / "TinySeek_Pre_final.pkl"
    chosen = options(init_from=str(path), max_steps=3, init_lr=1e-3)
    stage = build_stage(chosen)
    assert same_tensors(dict(stage.model.state_dict()), read_pair(path)[0]["weights"])
    loop = toy.ToyLoop(stage)
    loop.run()
    assert [h["step"] for h in loop.history] == [1, 2, 3] and loop.history[0]["lr"] == pytest.approx(1e-3)
    with pytest.raises(UserError) as error:
        options(init_from=str(path), resume=str(path))
    assert error.value.code == 2


def test_another_base_is_another_run(options):
    pre = options(max_steps=3)
    train(pre)
    base = str(Path(pre["out_dir"]) / "TinySeek_Pre_final.pkl")
    sft = options("sft", pretraining_model_path=base)
    train(sft, "sft", stop_after=2)
    train(options(max_steps=4), "pre")                                             # a new base under the old name
    refused({**options("sft", pretraining_model_path=base), "resume": "TinySeek_SFT1_1_s2"}, "起点模型", stage="sft")


def test_missing_and_misfitting_bases(options, ram_path):
    refused(options("sft", pretraining_model_path=str(ram_path / "none.pkl")), "pre_train.py", "none", code=3,
            stage="sft")
    pre = options()
    train(pre)
    base = str(Path(pre["out_dir"]) / "TinySeek_Pre_final.pkl")
    refused(options("sft", pretraining_model_path=base, n_layer=1), "n_layer", 2, 1, stage="sft")
    from tools.vocab import Vocab
    Vocab.create_vocab(["书", "茶"], vocab_size=460, texts=True, progress=False).save(ram_path / "vocab.json")
    refused(options("sft", pretraining_model_path=base), "词表", stage="sft")
    assert events(pre, "save")


def test_a_checkpoint_of_another_folder_is_not_taken_for_ours(options):
    """A file of that name lies here too: the one that was named is meant, and refused."""
    train(options(max_steps=9), stop_after=5)
    chosen = options(max_steps=9, name="other")
    train(chosen, stop_after=5)
    refused({**chosen, "resume": str(Path(chosen["out_dir"]) / "TinySeek_Pre1_1_s5.pkl")}, "不在这次训练的文件夹", code=3)


def test_C6_the_best_is_the_lowest_whatever_early_stopping_calls_progress(options, monkeypatch):
    losses = iter([3.0, 2.95, 2.97, 2.99])
    monkeypatch.setattr(loop_file, "evaluate", lambda *_: {"loss": (loss := next(losses)), "ce_1": loss})
    chosen = options(eval_share=0.1, eval_steps=1, max_steps=4, early_stopping_threshold=0.1)
    train(chosen)
    assert checkpoint(chosen, "TinySeek_Pre_best")["step"] == 2
