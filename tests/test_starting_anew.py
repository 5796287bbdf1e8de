"""A run that begins anew says what is different and how to go on all the same; every way it names is taken here, and
works."""
import re
from pathlib import Path

import pytest

import toy
from toy import build_stage, same_tensors, text_rows, train
from tools.checkpoint import read_checkpoint
from tools.errors import UserError

LONG = dict(max_steps=9, save_steps=4)


def ways(said):
    """{name of a key: its word} for each way that was named."""
    found = [line for line in said.splitlines() if line.startswith("　要")]
    return [{key: value for key, value in re.findall(r"--(\w+)(?: ([^-\s，]\S*))?", line)} for line in found]


def with_words(options, words):
    numbers = {key: int(value) if value.isdigit() else float(value) if re.fullmatch(r"[\d.e-]+", value) else value
               or True
               for key, value in words.items()}
    return {**options, **numbers}


CHANGES = [("max_len", 20, "max_len 40 → 20"), ("init_lr", 1e-3, "init_lr 0.005 → 0.001"), ("seed", 7, "seed 0 → 7"),
           ("batch_size", 1, "batch_size 2 → 1"), ("rows", 31, "数据变了"),
           ("optimizer", "adamw", "optimizer adam → adamw")]


@pytest.mark.parametrize("key, value, why", CHANGES)
@pytest.mark.parametrize("finished", [False, True])
def test_the_reason_is_named_and_both_ways_on_work(options, capsys, key, value, why, finished):
    before = options(**LONG)
    first = train(before, **({} if finished else {"stop_after": 5}))
    changed = options(**{**LONG, key: value})
    capsys.readouterr()
    assert train(changed, stop_after=2).history[0]["step"] == 1
    said = capsys.readouterr().err
    assert why in said and "backup_" in said, said
    back, onward = ways(said)
    # its weights, under what is asked for now
    stage = build_stage(with_words(changed, onward))
    assert same_tensors(dict(stage.model.state_dict()), dict(first.model.state_dict()))
    going_back = with_words({**before, "max_steps": 12} if key == "rows" else {**changed, "max_steps": 12}, back)
    if key == "rows":
        options(**LONG)                                                            # the rows are what they were
    assert train(going_back, stop_after=11).history[0]["step"] == (10 if finished else 6)
    # and the same command once more goes on from there
    assert train(going_back).history[0]["step"] == 12


def test_data_appended_to_a_finished_run_the_way_on_trains_on_all_of_it(options, capsys):
    rows = text_rows(20)
    first = train(options(rows=rows, **LONG))
    appended = options(rows=rows + text_rows(20, 5), **LONG)
    train(appended, kill_after=1)
    _, onward = ways(capsys.readouterr().err)
    last = train(with_words(appended, onward))
    assert last.exit == 0 and len(last.stage.train.documents) > len(first.stage.train.documents)


def test_a_finished_run_started_again_says_that_it_was_complete(options, capsys):
    chosen = options(**LONG)
    train(chosen)
    capsys.readouterr()
    train(chosen, stop_after=1)
    said = capsys.readouterr().err
    assert "已经完成（第 9 步）" in said and [list(way) for way in ways(said)] == [["init_from"]]


def test_another_shape_offers_only_the_way_back(options, capsys):
    train(options(**LONG), stop_after=5)
    capsys.readouterr()
    train(options(**LONG, n_layer=1), stop_after=1)
    said = capsys.readouterr().err
    assert "n_layer 2 → 1" in said and [list(way) for way in ways(said)] == [["n_layer", "resume"]]


def test_from_nothing_is_said_as_it_was_asked(options, capsys):
    train(options(**LONG), stop_after=5)
    train({**options(**LONG), "resume": "none"}, stop_after=1)
    assert "--resume none" in capsys.readouterr().err


def test_a_resume_says_from_where(options, capsys):
    train(options(**LONG), stop_after=5)
    train(options(**LONG))
    assert "Pre 从第 5 步接着训" in capsys.readouterr().err


# ---- --resume PATH and --last_index, the same command again ----

def test_a_named_checkpoint_is_not_returned_to_once_the_run_has_got_further(options):
    chosen = options(dropout=0.1, save_steps=2, max_steps=12)
    whole = train(chosen)
    asked = {**options(dropout=0.1, save_steps=2, max_steps=12, save_total_limit=None, name="again")}
    train(asked, stop_after=9)
    again = {**asked, "resume": "TinySeek_Pre1_1_s4", "save_total_limit": 1}
    assert train(again, kill_after=7).history[0]["step"] == 5
    # retention spares what the command names
    assert (Path(asked["out_dir"]) / "again" / "TinySeek_Pre1_1_s4.pkl").exists()
    assert train(again, stop_after=11).history[0]["step"] == 7
    last = train(again)
    assert last.history[0]["step"] == 12 and same_tensors(last.model.state_dict(), whole.model.state_dict())


def test_the_last_index_is_not_returned_to_either(options):
    keys = dict(rows=40, n_of_samples=10, save_frq=1, save_steps=2, save_total_limit=1, dropout=0.1)
    whole = train(options(name="whole", **keys))
    chosen = options(**keys)
    train({**chosen, "save_total_limit": None}, kill_after=len(whole.history) // 2)
    chosen["last_index"] = 1
    at = train(chosen, stop_after=len(whole.history) - 2)
    assert at.exit == 143
    last = train(chosen)
    assert last.history[0]["step"] == len(whole.history) - 1 and same_tensors(last.model.state_dict(),
        whole.model.state_dict())


def test_a_checkpoint_in_a_backup_is_gone_on_from_and_stays_there(options):
    chosen = options(dropout=0.1, **LONG)
    train(chosen, stop_after=5)
    train({**chosen, "resume": "none"}, stop_after=2)
    kept = next(Path(chosen["out_dir"]).glob("backup_*/TinySeek_Pre1_1_s5.pkl"))
    back = {**chosen, "resume": str(kept)}
    assert train(back, kill_after=6).history[0]["step"] == 6 and kept.exists()
    assert len(list(Path(chosen["out_dir"]).glob("backup_*/*.pkl"))) == 3          # s4, s5, and what lay in the way
    last = train(back)
    assert same_tensors(last.model.state_dict(), train(options(dropout=0.1, name="whole", **LONG)).model.state_dict())


# ---- a vocabulary that lies around ----

def test_an_unrelated_vocabulary_in_the_output_folder_does_not_matter(options, vocab):
    train(options(**LONG))
    chosen = options("sft", pretraining_model_path=str(Path(options(**LONG)["out_dir"]) / "TinySeek_Pre_final.pkl"),
                     max_steps=2)
    other = toy.Vocab.create_vocab(["木"], vocab_size=500, texts=True, progress=False)
    lying = Path(chosen["out_dir"]) / "vocab.json"
    other.save(lying)
    assert train({**chosen, "vocab_trg_path": str(lying)}, "sft").exit == 0
    assert read_checkpoint(Path(chosen["out_dir"]) / "TinySeek_SFT_final.pkl")["vocab_hash"] == vocab.hash
    brought = Path(chosen["out_dir"]).parent / "brought.json"
    other.save(brought)
    with pytest.raises(UserError, match="词表"):
        train({**chosen, "vocab_trg_path": str(brought)}, "sft")


def test_files_named_for_a_vocabulary_that_is_there_already_are_told(options, ram_path, capsys):
    """Built from the text alone; then dialogues are named for it, in pre-training and in the stage after it."""
    text, talk = (str(toy.write_rows(ram_path / name, rows))
                  for name, rows in (("text.jsonl", text_rows(30)), ("talk.jsonl", toy.dialogue_rows(30))))
    place = {"vocab_trg_path": str(ram_path / "out" / "vocab.json"), "vocab_size": 500, "max_steps": 2}
    pre = {**options(**place), "json_data_path": text}
    for named, told in ((text, False), (text, False), ([text, talk], True)):
        train({**pre, "vocab_data_path": named})
        said = capsys.readouterr().err
        assert ("talk.jsonl 没有用上" in said) == told and (not told or "由 text.jsonl 建成" in said
                                                        and "--vocab_trg_path" in said)
    base = str(ram_path / "out" / "TinySeek_Pre_final.pkl")
    sft = {**options("sft", pretraining_model_path=base, **place), "json_data_path": talk}
    train({**sft, "vocab_data_path": [talk]}, "sft")                               # filled in, not named
    assert "没有用上" not in capsys.readouterr().err
    train({**sft, "vocab_data_path": [text, talk]}, "sft")
    assert "talk.jsonl 没有用上" in capsys.readouterr().err
    both = {**pre, "vocab_data_path": [text, talk], "vocab_trg_path": str(ram_path / "out" / "vocab_2.json")}
    train(both)                                                                    # the cure, as it was named
    assert toy.Vocab.load_vocab(both["vocab_trg_path"]).built_from == ["text.jsonl", "talk.jsonl"]
