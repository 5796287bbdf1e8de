"""The penalty on forgetting: what it measures, that it is free at step 0, keeps the base, resumes exactly and leaves
rehearsals alone."""
import pytest
import torch

import toy
from model.lora import LoraLinear, apply_lora
from tools.checkpoint import read_checkpoint
from train_agent.trainers.data import replay
from train_agent.trainers.running.forget_penalty import adapted, drift, general_moments
from train_agent.trainers.trying.dry_loop import Rehearsal


@pytest.fixture(scope="module")
def world(tmp_path_factory, vocab):
    folder = tmp_path_factory.mktemp("keeping")
    toy.train(toy.toy_options(folder, vocab, "sft", 40, name="base", logging_steps=None), "sft")
    toy.write_rows(folder / "general.jsonl", toy.dialogue_rows(50, 9))
    return folder


def options_for(world, vocab, name, **keys):
    one = [{"conversations": [{"role": "user", "content": "月亮呢？"}, {"role": "assistant", "content": "不不不不不"}]}] * 20
    values = {"pretraining_model_path": str(world / "out/base/TinySeek_SFT_final.pkl"),
              "replay_data_path": str(world / "general.jsonl"),
              "name": name, "eval_share": 0.1, "rank": 4, "lora_targets": ["attention", "heads"],
              "forget_penalty": 30.0, **keys}
    return toy.toy_options(world, vocab, "lora", one, **values)


def filled(model, seed=0):
    torch.manual_seed(seed)
    for module in adapted(model).values():
        module.lora.b.data.normal_()
    return model


def test_drift_is_the_mean_square_of_what_the_adapter_adds(world, vocab):
    """Against the outputs themselves, on the very rows: one projection at a time, then all of them."""
    stage = toy.build_stage(options_for(world, vocab, "formula", lora_alpha=2.0), "lora")
    data = stage.held["general"]
    moments = general_moments(stage.model, data)
    assert set(moments) == set(adapted(stage.model)) and "fc1" in moments and "blocks.1.attention.out" in moments
    assert drift(stage.model, moments) == 0, "a new adapter changes nothing"
    seen = {}
    for name in ("blocks.0.attention.q_down", "blocks.1.attention.out"):
        adapted(stage.model)[name].register_forward_pre_hook(
            lambda _, args, n=name: seen.setdefault(n, []).append(args[0][batch.valid.flatten()]))
    with torch.no_grad():
        stage.model.eval()
        for number in range(data.batches_in(0, 0)):
            batch = data.batch(data_place(number))
            stage.model.encode(batch.ids, batch.positions, batch.layout)
    filled(stage.model)
    for name, inputs in seen.items():
        module, x = adapted(stage.model)[name], torch.cat(inputs)
        direct = module.lora(x).pow(2).sum() / module.base(x).pow(2).sum()
        assert float(drift(stage.model, {name: moments[name]})) == pytest.approx(float(direct), rel=1e-4)
    parts = sum(float(drift(stage.model, {n: c})) for n, c in moments.items())
    assert float(drift(stage.model, moments)) == pytest.approx(parts, rel=1e-5)


def data_place(number):
    from train_agent.trainers.dataset import Position
    return Position(0, 0, number)


def test_padding_is_no_general_data(world, vocab):
    """Wider rows hold the same documents and more padding: the moments of every part, heads and projections, stay."""
    found = []
    for width in (40, 71):
        stage = toy.build_stage(options_for(world, vocab, "padded", max_len=width), "lora")
        found.append(general_moments(stage.model, stage.held["general"]))
    assert found[0].keys() == found[1].keys() and "fc1" in found[0]
    for name, moments in found[0].items():
        torch.testing.assert_close(found[1][name], moments, rtol=1e-3, atol=1e-6)


def test_only_what_learns_is_penalised():
    model = apply_lora(apply_lora(toy.toy_model(dtype=torch.float32), 2), 2)
    lower = {n for n, m in model.named_modules() if isinstance(m, LoraLinear)} - set(adapted(model))
    assert len(lower) == len(adapted(model)) and all(name.endswith(".base") for name in lower)


def test_the_base_is_kept_without_replay(world, vocab):
    losses = {}
    for name, weight in (("free", 0.0), ("kept", 100.0)):
        options = options_for(world, vocab, name, forget_penalty=weight, init_lr=3e-2, min_lr=3e-2, max_epochs=30,
                              max_steps=30, eval_steps=10)
        loop = toy.train(options, "lora")
        losses[name] = loop.held["general_loss"] - loop.held["general_first"], loop.metrics
    assert losses["free"][0] > 0.2 and losses["kept"][0] < losses["free"][0] / 3
    metrics = losses["kept"][1]
    assert "drift" not in losses["free"][1] and metrics["drift"] > 0
    assert metrics["loss"] > metrics["ce_1"] + metrics["ce_2"] + metrics["drift"] - 1e-6, "what is logged is what was optimised"


def test_without_general_data_there_is_nothing_to_keep(world, vocab):
    stage = toy.build_stage(options_for(world, vocab, "alone", replay_data_path=str(world / "none.jsonl")), "lora")
    assert "general" not in stage.held and stage.loss.__name__ == "next_tokens_loss"


def test_a_large_base_reads_fewer_general_rows_and_the_same_ones_again(world, vocab, monkeypatch, capsys):
    monkeypatch.setattr(replay, "LEAST_DOCUMENTS", 2)
    usual = toy.build_stage(options_for(world, vocab, "large"), "lora")
    assert "通用数据" not in capsys.readouterr().err
    seen, guard = (replay.general_to_learn_from(usual), usual.held["general"])
    monkeypatch.setattr(replay, "CPU_WORK", seen.tokens() * sum(p.numel() for p in usual.model.parameters()) / 3)
    few = replay.general_to_learn_from(usual)
    assert f"forget_penalty 只看 {len(few.documents)} 行通用数据" in capsys.readouterr().err
    assert len(few.documents) == len(seen.documents) // 3 and few.documents[-1] > seen.documents[-8]
    assert few.tokens() < seen.tokens() / 2 and set(few.documents) < set(seen.documents)
    monkeypatch.setattr(replay, "CPU_WORK", 1)
    stages = [toy.build_stage(options_for(world, vocab, "large"), "lora") for _ in range(2)]
    assert capsys.readouterr().err.count("遗忘只看 2 行通用数据") == 2 < len(guard.documents)
    first, again = (list(stage.held["general"].documents) for stage in stages)
    assert first == again and set(first) < set(guard.documents)
    monkeypatch.setattr(replay.machine, "choose_device", lambda name: torch.device("cuda"))      # it reads quickly
    kept = replay.add_general(usual.options, usual.train, {}, usual.model, lambda paths: guard.cache)[1]["general"]
    assert list(kept.documents) == list(guard.documents)


def test_resume_is_bit_identical(world, vocab):
    whole = toy.train(options_for(world, vocab, "whole", save_steps=2, max_epochs=4, max_steps=6), "lora")
    torn = options_for(world, vocab, "torn", save_steps=2, max_epochs=4, max_steps=6)
    assert toy.train(torn, "lora", stop_after=3).exit == 143
    again = toy.train(torn, "lora")
    assert again.exit == 0 and again.step == whole.step
    files = [world / f"out/{name}/TinySeek_Lora_final.pkl" for name in ("whole", "torn")]
    assert toy.same_tensors(*(read_checkpoint(path)["weights"] for path in files))


def test_a_rehearsal_leaves_no_trace(world, vocab):
    stage = toy.build_stage(options_for(world, vocab, "rehearsed"), "lora")
    with Rehearsal(stage) as loop:
        loop.optimize(next(loop.groups()), 1)
    assert all(p.grad is None for p in stage.model.parameters()) and drift(stage.model,
        general_moments(stage.model, stage.held["general"])) == 0
