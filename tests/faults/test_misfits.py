"""Vocabulary, checkpoint, base or configuration that do not fit: exit 4 before the first step, with what differs."""
import json
import shutil

import pytest

import toy
from file_faults import report
from tools import cli
from tools.checkpoint import read_checkpoint
from tools.vocab import Vocab
from train_agent import lora_train, pre_train, sft_train
from whole_runs import World

SCRIPTS = {"pre": pre_train, "sft": sft_train, "lora": lora_train}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("misfits"))
    for stage, steps in (("pre", 6), ("sft", 6), ("lora", 6)):            # unfinished runs, to be gone on from
        loop = toy.ToyLoop(toy.build_stage(_options(made, stage), stage), stop_after=steps - 2)
        with pytest.raises(SystemExit):
            loop.run()
    return made


def _options(world, stage):
    return _manager(world, stage, world.folder / f"run_{stage}").stage(stage)


def _manager(world, stage, out, **keys):
    return cli.parse(world.argv(stage, out, **keys), stage=stage)[0]


def vocabulary(world, path, how):
    """The world's vocabulary, spoiled: still JSON, or another good one of the same size."""
    good = json.loads((world.folder / "vocab.json").read_text(encoding="utf-8"))
    if how == "other":
        Vocab.create_vocab([row["text"] for row in toy.text_rows(80, 9)], vocab_size=len(good["words"]) + 272,
                           texts=True, progress=False).save(path)
        return path
    words, scores = good["words"], good["scores"]
    if how == "swapped":
        words[5], words[6] = words[6], words[5]
    # the hash fits again: only the base knows better
    elif how == "swapped and sealed":
        equal = next(i for i in range(len(words) - 1) if scores[i] != scores[i + 1])
        scores[equal] = scores[equal + 1]
        order = sorted(range(len(words)), key=lambda i: (-scores[i], words[i]))
        Vocab.from_words([words[i] for i in order], [scores[i] for i in order], good["token_kind"]).save(path)
        return path
    elif how == "shortened":
        words.pop(), scores.pop()
    raw = json.dumps(good, ensure_ascii=False)
    path.write_text(raw[:-40] if how == "cut off" else raw.replace("0", "1", 1) if how == "flipped" else raw,
                    encoding="utf-8")
    return path


VOCABULARIES = ("swapped", "swapped and sealed", "shortened", "cut off", "flipped", "other")


def exit_of(world, stage, out, capsys, **keys):
    """(exit code of the script, what it said); no step may have been taken."""
    log = out / "log.txt"
    before = log.read_text(encoding="utf-8").count("Epoch ") if log.exists() else 0
    code = cli._run(lambda: SCRIPTS[stage].main(world.argv(stage, out, **keys)))
    assert not log.exists() or log.read_text(encoding="utf-8").count("Epoch ") == before
    return code, capsys.readouterr().err


@pytest.mark.parametrize("how", VOCABULARIES)
@pytest.mark.parametrize("stage", ["pre", "sft", "lora"])
def test_V_a_wrong_vocabulary_is_4(world, ram_path, capsys, stage, how):
    out = ram_path / "run"
    shutil.copytree(world.folder / f"run_{stage}", out)
    keys = {"resume": newest(out, stage)} if stage == "pre" else {}
    code, said = exit_of(world, stage, out, capsys, vocab_trg_path=vocabulary(world, ram_path / "vocab.json", how),
                         **keys)
    assert code == 4 and "词表" in said and "Traceback" not in said


def newest(out, stage):
    label = {"pre": "Pre", "sft": "SFT", "lora": "Lora"}[stage]
    return max((p for p in (out / "out").glob(f"TinySeek_{label}*_s*.pkl")), key=lambda p: p.stat().st_mtime).stem


SHAPES = {"n_layer": 3, "n_head": 4, "d_model": 24, "d_c": 6, "d_r": 2, "hidden": 20, "other_experts": 6,
          "shared_experts": 2, "keep": 1, "use_moe": "false",
          "use_fc2": "false", "attention": "gqa", "norm": "layer", "activation": "geglu", "position": "alibi"}


@pytest.mark.parametrize("key", SHAPES)
@pytest.mark.parametrize("stage", ["sft", "lora"])
def test_M_a_base_of_another_shape_is_4(world, ram_path, capsys, stage, key):
    code, said = exit_of(world, stage, ram_path / "run", capsys, **{key: SHAPES[key]})
    assert code == 4 and key in said


CHANGED = {"init_lr": 1e-3, "seed": 9, "batch_size": 4, "max_len": 30, "optimizer": "sgd", "decay": 0.5,
           "accumulation_steps": 1, "dropout": 0.3, "max_steps": 5}


@pytest.mark.parametrize("key", CHANGED)
def test_C_a_changed_configuration_is_4_with_old_and_new(world, ram_path, capsys, key):
    out = ram_path / "run"
    shutil.copytree(world.folder / "run_pre", out)
    code, said = exit_of(world, "pre", out, capsys, resume=newest(out, "pre"), **{key: CHANGED[key]})
    assert code == 4 and key in said and str(CHANGED[key]) in said and "→" in said


def test_C_more_steps_and_other_cadences_are_allowed(world, ram_path, capsys):
    out = ram_path / "run"
    shutil.copytree(world.folder / "run_pre", out)
    first = read_checkpoint(out / "out" / f"{newest(out, 'pre')}.pkl")["step"]
    keys = {"max_steps": first + 2, "logging_steps": 2, "save_steps": 1, "eval_steps": 50, "resume": newest(out, "pre")}
    assert cli._run(
        lambda: SCRIPTS["pre"].main(
            world.argv("pre", out, **{**keys, "max_steps": first + 1, "allow_change": "true"}))) is None
    assert cli._run(lambda: SCRIPTS["pre"].main(world.argv("pre", out, **{**keys, "resume": "auto"}))) is None
    assert read_checkpoint(out / "out" / "TinySeek_Pre_final.pkl")["step"] == first + 2


def test_A_adapters_on_a_wrong_base_are_4(world, ram_path, capsys):
    """The base behind an unfinished LoRA run is another one now: nothing is trained on it."""
    out = ram_path / "run"
    shutil.copytree(world.folder / "run_lora", out)
    code, said = exit_of(world, "lora", out, capsys, resume=newest(out, "lora"),
                         pretraining_model_path=world.folder / "out/base/TinySeek_Pre_final.pkl")
    assert code == 4 and "底座" in said
    lonely = ram_path / "lonely"
    lonely.mkdir()
    adapter = out / "out" / f"{newest(out, 'lora')}.pkl"
    shutil.copy(adapter, lonely / "adapter.pkl")
    # other weights under the base's name
    shutil.copy(world.folder / "out/base/TinySeek_Pre_final.pkl", lonely / "TinySeek_SFT_final.pkl")
    code, said = exit_of(world, "lora", ram_path / "upper", capsys, pretraining_model_path=lonely / "adapter.pkl")
    assert code == 4 and "权重和当时不同" in said
    original = world.folder / "run_lora" / "out" / adapter.name
    code, said = exit_of(world, "sft", ram_path / "full", capsys, pretraining_model_path=original)
    assert code == 4 and "适配器" in said
    whole = (world.folder / "out/base/TinySeek_SFT_final.pkl").read_bytes()
    (lonely / "cut.pkl").write_bytes(whole[:-100])
    code, said = exit_of(world, "lora", ram_path / "cut", capsys, pretraining_model_path=lonely / "cut.pkl")
    assert code == 3 and "截断" in said


def test_control_without_the_checks_a_wrong_base_is_trained_on(world, ram_path, monkeypatch):
    """Control arm: nobody compares the vocabularies; the run goes through on ids that mean something else."""
    path = vocabulary(world, ram_path / "vocab.json", "swapped and sealed")
    wrong = Vocab.load_vocab(path).hash
    own = Vocab.from_state(read_checkpoint(world.folder / "out/base/TinySeek_Pre_final.pkl")["vocab"])
    monkeypatch.setattr(Vocab, "load_vocab", lambda path: own)
    code = cli._run(lambda: SCRIPTS["sft"].main(world.argv("sft", ram_path / "run", vocab_trg_path=path, max_steps=2)))
    report(control_wrong_vocabulary_trained=code is None)
    assert code is None and wrong != read_checkpoint(ram_path / "run/out/TinySeek_SFT_final.pkl")["vocab_hash"]
