"""Every stage may start from a file of its own kind in its own folder, be stopped at any moment, and go on with the
same command."""
import shutil
from pathlib import Path

import pytest

import toy
from test_dpo import pair_rows
from toy import build_stage, same_tensors, train
from tools.checkpoint import load_chain, read_checkpoint, read_pair, weights_hash
from tools.errors import UserError

LABELS = {"pre": "Pre", "sft": "SFT", "dpo": "DPO", "lora": "Lora", "prefix": "Prefix", "memory": "Memory",
          "gate": "gate"}
OWN = {"lora": {"rank": 2}, "prefix": {"prefix_len": 3}, "memory": {"memory_tokens": 12, "memory_chapters": 4}}
BASE = "pretraining_model_path"
# (stage, the key that names the file, which of the stage's own files)
CASES = [("pre", "init_from", "_final"), ("pre", BASE, "_best"), ("pre", BASE, "1_1_s4"), ("pre", BASE, "1_1"),
         ("sft", BASE, "_final"), ("sft", BASE, "_best"),
         ("sft", "init_from", "1_1_s4"), ("dpo", BASE, "_final"), ("dpo", "init_from", "_best"),
         ("lora", BASE, "_final"), ("lora", "init_from", "_final"),
         ("lora", "init_from", "1_1_s4"), ("prefix", BASE, "_best"), ("prefix", "init_from", "_final"),
         ("memory", BASE, "1_1_s4"),
         ("memory", "init_from", "_best")]


def rows_of(stage, seed):
    return toy.text_rows(12, seed) if stage == "pre" else pair_rows(12,
                                                                    seed) if stage == "dpo" else toy.dialogue_rows(12,
                                                                        seed)


def chosen(folder, stage, seed=1, **keys):
    """Options of a run of ten steps or so that saves every kind of file."""
    if stage not in ("pre", "gate"):
        keys.setdefault(BASE, str(folder / "out/base/TinySeek_SFT_final.pkl"))
    usual = {"eval_share": 0.25, "eval_steps": 3, "save_steps": 4, "save_total_limit": None, "save_frq": 1,
             "max_epochs": 2, "dropout": 0.1,
             "logging_steps": None, "replay_data_path": str(folder / "none.jsonl"),
             "batch_size": 1 if stage != "gate" else 4}
    return toy.toy_options(folder, toy.toy_vocab(), stage, rows_of(stage, seed),
                           **{**usual, **OWN.get(stage, {}), **keys})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base, and of every stage one finished run; each test works on a copy."""
    folder = tmp_path_factory.mktemp("starts")
    train(toy.toy_options(folder, toy.toy_vocab(), "sft", 20, name="base", logging_steps=None), "sft")
    for stage in ("pre", "sft", "dpo", "lora", "prefix", "memory"):
        assert train(chosen(folder, stage, seed=0), stage).exit == 0
    return folder


@pytest.fixture
def copies(world, ram_path):
    """copies(name) -> the world once more, in a folder of that name."""
    def copy(name):
        shutil.copytree(world, ram_path / name, ignore=shutil.ignore_patterns("cache"))
        return ram_path / name
    return copy


def ending(folder, stage, name=""):
    """What a finished run leaves that hangs on no clock and no place."""
    payload, state = read_pair(folder / "out" / name / f"TinySeek_{LABELS[stage]}_final.pkl")
    for key in ("seconds", "run_id", "fingerprint"):
        state.pop(key)
    return payload["weights"], state


def interrupted(options, stage, places):
    """The same command again and again, cut off at each of `places` (kill or stop after that step), then to the end."""
    for kind, step in places:
        assert train(options, stage, **{kind: step}).exit == {"kill_after": -9, "stop_after": 143}[kind]
    last = train(options, stage)
    assert last.exit == 0
    return last


@pytest.mark.parametrize("stage, key, ends", CASES, ids=lambda value: str(value))
def test_C3_from_its_own_kind_of_file_interrupted_the_bits_are_the_same(copies, stage, key, ends):
    """Cut off before the first save, after it, after a best model and a numbered one of the same name were written."""
    left_alone, cut = copies("whole"), copies("cut")
    start = f"out/TinySeek_{LABELS[stage]}{ends}.pkl"
    began_from = weights_hash(read_checkpoint(cut / start)["weights"])
    assert train(chosen(left_alone, stage, **{key: str(left_alone / start)}), stage).exit == 0
    options = chosen(cut, stage, **{key: str(cut / start)})
    last = interrupted(options, stage, [("kill_after", 2), ("stop_after", 3), ("kill_after", 6), ("stop_after", 7)])
    assert last.history[0]["step"] == 8
    assert same_tensors(ending(cut, stage), ending(left_alone, stage))
    moved = next((cut / "out").glob("backup_*")) / Path(start).name
    assert weights_hash(read_checkpoint(moved)["weights"]) == began_from and len(
        list((cut / "out").glob("backup_*"))) == 1
    # an adapter finds the one it was trained on
    load_chain(cut / f"out/TinySeek_{LABELS[stage]}_final.pkl")


@pytest.mark.parametrize("stage, key", [("sft", BASE), ("lora", "init_from"), ("lora", BASE)])
def test_C3_through_a_link_to_the_file_that_the_run_moves(copies, stage, key):
    ends = []
    for name, cuts in (("whole", []), ("cut", [("kill_after", 2), ("stop_after", 6)])):
        folder = copies(name)
        link = folder / "my_start.pkl"
        link.symlink_to(folder / f"out/TinySeek_{LABELS[stage]}_final.pkl")
        interrupted(chosen(folder, stage, **{key: str(link)}), stage, cuts)
        load_chain(folder / f"out/TinySeek_{LABELS[stage]}_final.pkl")
        ends.append(ending(folder, stage))
    assert same_tensors(*ends)


def test_C3_in_a_folder_with_a_name(copies):
    folder = copies("named")
    shutil.copytree(folder / "out", folder / "out" / "mine", ignore=shutil.ignore_patterns("base", "mine"))
    whole = copies("whole")
    shutil.copytree(whole / "out", whole / "out" / "mine", ignore=shutil.ignore_patterns("base", "mine"))
    start = "out/mine/TinySeek_SFT_final.pkl"
    train(chosen(whole, "sft", name="mine", **{BASE: str(whole / start)}), "sft")
    interrupted(chosen(folder, "sft", name="mine", **{BASE: str(folder / start)}), "sft",
                [("kill_after", 2), ("kill_after", 6)])
    assert same_tensors(ending(folder, "sft", "mine"), ending(whole, "sft", "mine"))
    assert not list((folder / "out").glob("backup_*"))


def test_C3_killed_between_its_final_checkpoint_and_its_end(copies, monkeypatch):
    folder = copies("late")
    start = folder / "out/TinySeek_SFT_final.pkl"
    options = chosen(folder, "sft", **{BASE: str(start)})
    monkeypatch.setattr("train_agent.trainers.running.saving.Saver.end", lambda self: (_ for _ in ()).throw(toy.Killed))
    assert train(options, "sft").exit == -9
    made = start.read_bytes()
    monkeypatch.undo()
    again = train(options, "sft")
    assert again.exit == 0 and again.history == [] and start.read_bytes() == made


def test_a_finished_run_from_its_own_final_goes_on_from_what_it_made(copies):
    """The path names what lies there now: the second round begins where the first ended."""
    folder = copies("rounds")
    start = folder / "out/TinySeek_SFT_final.pkl"
    options = chosen(folder, "sft", **{BASE: str(start)})
    train(options, "sft")
    first = read_checkpoint(start)["weights"]
    stage = build_stage(options, "sft")
    assert same_tensors(dict(stage.model.state_dict()), first)


def test_a_file_that_somebody_put_there_is_the_one_that_is_meant(copies):
    """... and it is not overwritten by the run that goes on, either."""
    folder = copies("stranger")
    start = folder / "out/TinySeek_SFT_best.pkl"
    options = chosen(folder, "sft", **{BASE: str(start)})
    train(options, "sft", stop_after=4)
    other = folder / "out/base/TinySeek_SFT_final.pkl"
    shutil.copy(other, start)
    assert same_tensors(dict(build_stage(options, "sft").model.state_dict()), read_checkpoint(other)["weights"])
    run = chosen(folder, "pre")
    train(run, "pre", stop_after=4)
    mine = folder / "out/TinySeek_Pre_final.pkl"
    shutil.copy(other, mine)
    train(run, "pre")
    kept = [p for p in (folder / "out").glob("backup_*/TinySeek_Pre_final.pkl") if p.read_bytes() == other.read_bytes()]
    assert len(kept) == 1 and read_checkpoint(mine)["stage"] == "Pre"


@pytest.mark.parametrize("stage", ["lora", "prefix", "memory", "dpo"])
def test_C3_a_base_that_is_being_trained_anew_is_found_in_its_backup(copies, stage):
    """The adapter was interrupted, its base is moved away by a training in progress: the same command still goes on."""
    folder, whole = copies("anew"), copies("whole")
    keys = {BASE: "out/TinySeek_SFT_final.pkl"}
    train(chosen(whole, stage, seed=3, **{k: str(whole / v) for k, v in keys.items()}), stage)
    options = chosen(folder, stage, seed=3, **{k: str(folder / v) for k, v in keys.items()})
    train(options, stage, stop_after=5)
    train(chosen(folder, "sft", seed=5), "sft", stop_after=2)
    assert not (folder / "out/TinySeek_SFT_final.pkl").exists()
    assert train(options, stage).history[0]["step"] == 6
    assert same_tensors(ending(folder, stage), ending(whole, stage))
    assert len(load_chain(folder / f"out/TinySeek_{LABELS[stage]}_final.pkl")) == (1 if stage == "dpo" else 2)


def test_C3_a_base_that_was_trained_anew_is_told_and_the_way_back_works(copies, capsys):
    folder = copies("anew")
    base = folder / "out/TinySeek_SFT_final.pkl"
    options = chosen(folder, "lora", seed=3, **{BASE: str(base)})
    train(options, "lora", stop_after=5)
    train(chosen(folder, "sft", seed=5), "sft")
    capsys.readouterr()
    assert train(options, "lora").history[0]["step"] == 1
    said = capsys.readouterr().err
    words = said.split("同一条命令，", 1)[1].splitlines()[0].split()
    assert "底座变了" in said and f"--{BASE}" in words and "--resume" in words
    back = {**options, BASE: words[words.index(f"--{BASE}") + 1], "resume": words[words.index("--resume") + 1]}
    assert train(back, "lora").history[0]["step"] == 6


def test_C3_the_gates_experts_are_found_in_their_backups(copies):
    folder, whole = copies("gate"), copies("whole")

    def gate(at):
        return chosen(at, "gate", seed=3,
                      experts=[str(at / f"out/TinySeek_{word}_final.pkl") for word in ("Lora", "Prefix")])
    train(gate(whole), "gate")
    train(gate(folder), "gate", stop_after=2)
    train(chosen(folder, "lora", seed=5), "lora", stop_after=2)                    # one expert is being trained anew
    assert train(gate(folder), "gate").history[0]["step"] == 3
    assert same_tensors(ending(folder, "gate"), ending(whole, "gate"))
    load_chain(folder / "out/TinySeek_gate_final.pkl")


def test_a_missing_start_names_the_backup_it_lies_in(copies):
    folder = copies("missing")
    train(chosen(folder, "sft", seed=5), "sft", stop_after=2)
    with pytest.raises(UserError) as error:
        build_stage(chosen(folder, "dpo", seed=8, **{BASE: str(folder / "out/TinySeek_SFT_final.pkl")}), "dpo")
    assert error.value.code == 3 and str(next((folder / "out").glob("backup_*"))) in str(error.value)
