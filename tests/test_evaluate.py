"""Scores that cannot flatter: likelihoods against plain computations, and the command."""
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
from test_evaluate_answers import QUESTIONS, choices
from toy import model_for, plain_nats
from chat_agent import evaluate
from chat_agent.evaluation import scoring
from tools import template
from tools.cli import guarded
from tools.errors import UserError
from tools.saving.archive import write_torch
from tools.vocab import Vocab

TEXTS = [{"text": "苹果很好看，书放在桌上。" * 3}, {"text": "月亮 \n 是圆的🙂<|im_end|>茶要三元。"}, {"text": "船"}]
TALKS = [{"conversations": [{"role": "system", "content": "你是小船"}, {"role": "user", "content": "书呢？"},
                            {"role": "assistant", "content": "书放在桌上。"}, {"role": "user", "content": "茶呢？"},
                            {"role": "assistant", "content": "茶 B😀"}, {"role": "user", "content": "好的"}]}]
PAIR = {"prompt": "雨伞呢？", "chosen": "雨伞在河边。", "rejected": "面包不见了，面包不见了。"}


def plain_bits(model, vocab, rows):
    """-> bits per character, bits per byte, by the simplest means there are."""
    nats, contents = 0.0, []
    for row in rows:
        if "text" in row:
            units = [u for u in row["text"].split("<|im_end|>") if u.strip()]
            documents, contents = [template.render_text(u, vocab) for u in units], contents + units
        else:
            documents = [template.render(row["conversations"], vocab)]
            contents += [m["content"] for m in row["conversations"] if m["role"] == "assistant"]
        nats += sum(plain_nats(model, *d) for d in documents)
    bits = nats / math.log(2)
    return bits / len("".join(contents)), bits / len("".join(contents).encode())


# ---------------------------------------------------------------- windows

@pytest.mark.parametrize("window", [1, 2, 3, 4, 7, 50])
def test_every_position_is_scored_once_with_half_a_window_before_it(window):
    for inputs in (1, 2, 3, 4, 5, 9, 10, 31, 50, 51):
        scored = []
        for start, size, skip in scoring.windows(inputs, window):
            assert 0 <= skip < size <= window and start + size <= inputs
            assert start == 0 or skip >= window // 2
            scored += range(start + skip, start + size)
        assert scored == list(range(inputs))


def test_windows_compute_what_each_window_alone_gives(vocab):
    model = model_for(vocab)
    ids, learn = template.render_text("苹果很好看，书放在桌上。" * 4, vocab)
    expected = 0.0
    for start, size, skip in scoring.windows(len(ids) - 1, 16):
        part = ids[start:start + size + 1]
        expected += plain_nats(model, part, np.arange(len(part)) > skip)
    got, counts = scoring.document_losses(model, [(ids, learn)], window=16)
    assert abs(got[0] - expected) < 1e-9 and counts[0] == len(ids) - 1
    whole, _ = scoring.document_losses(model, [(ids, learn)], window=len(ids))
    assert abs(whole[0] - plain_nats(model, ids, learn)) < 1e-9 and abs(whole[0] - got[0]) > 1e-6


# ---------------------------------------------------------------- bits per character

@pytest.mark.parametrize("variant", ["default", "gqa_learned", "window", "dense", "one_head", "tied"])
@pytest.mark.parametrize("rows", [TEXTS, TALKS, TEXTS + TALKS])
def test_bits_equal_a_plain_computation(vocab, variant, rows):
    model = model_for(vocab, **{**toy.VARIANTS[variant], **({"max_position": 256} if "learned" in variant else {})})
    found = scoring.bits_per_char(model, vocab, rows)
    assert np.allclose((found["bits_per_char"], found["bits_per_byte"]), plain_bits(model, vocab, rows), rtol=0,
                       atol=1e-9)


def test_a_uniform_model_costs_log_v_per_token(vocab):
    model = model_for(vocab)
    torch.nn.init.zeros_(model.fc1.weight)
    found = scoring.bits_per_char(model, vocab, TEXTS, window=16)
    units = [u for row in TEXTS for u in row["text"].split("<|im_end|>")]
    assert found["characters"] == len("".join(units)) and found["bytes"] == len("".join(units).encode())
    assert found["tokens"] == sum(len(vocab.encode(u)) + 1 for u in units)
    assert found["bits_per_char"] == pytest.approx(math.log2(len(vocab)) * found["tokens"] / found["characters"],
                                                   abs=1e-9)


def test_replies_alone_are_counted(vocab):
    model = model_for(vocab)
    found = scoring.bits_per_char(model, vocab, TALKS)
    assert found["characters"] == len("书放在桌上。" + "茶 B😀")
    assert found["tokens"] == len(vocab.encode("书放在桌上。")) + len(vocab.encode("茶 B😀")) + 2
    other = json.loads(json.dumps(TALKS).replace(json.dumps("书呢？")[1:-1], json.dumps("船呢？")[1:-1]))
    assert scoring.bits_per_char(model, vocab, other)["bits_per_char"] != found["bits_per_char"]       # context matters


def test_a_preference_pair_counts_its_chosen_reply(vocab):
    model = model_for(vocab)
    same = {"prompt": PAIR["prompt"], "response": PAIR["chosen"]}
    assert scoring.bits_per_char(model, vocab, [PAIR]) == scoring.bits_per_char(model, vocab, [same])


def test_vocabularies_are_compared_on_the_same_characters(vocab):
    other = Vocab.create_vocab(["木"], vocab_size=500, texts=True, progress=False)      # nearly everything becomes bytes
    a, b = (scoring.bits_per_char(model_for(v), v, TEXTS) for v in (vocab, other))
    assert (a["characters"], a["bytes"]) == (b["characters"], b["bytes"]) and b["tokens"] > 1.5 * a["tokens"]


def test_batches_and_blocks_change_nothing(vocab, monkeypatch):
    model = model_for(vocab)
    rows = toy.text_rows(40) + toy.dialogue_rows(20)
    whole = scoring.bits_per_char(model, vocab, rows)
    monkeypatch.setattr(scoring, "BLOCK_ROWS", 7)
    split = scoring.bits_per_char(model, vocab, rows, batch_tokens=64)
    assert split.pop("bits_per_char") == pytest.approx(whole.pop("bits_per_char"), abs=1e-9)
    assert split.pop("bits_per_byte") == pytest.approx(whole.pop("bits_per_byte"), abs=1e-9) and split == whole


def test_head_two_and_training_mode_do_not_matter(vocab):
    model = model_for(vocab, dropout=0.5, router_noise=1.0).train()
    before = scoring.bits_per_char(model, vocab, TEXTS)
    torch.nn.init.zeros_(model.fc2.weight)
    assert scoring.bits_per_char(model, vocab, TEXTS) == before and model.training


def test_float32_is_close_and_bf16_near(vocab):
    exact = scoring.bits_per_char(model_for(vocab), vocab, TEXTS)["bits_per_char"]
    single = model_for(vocab, dtype=torch.float32)
    single.load_state_dict(model_for(vocab).state_dict())
    assert scoring.bits_per_char(single, vocab, TEXTS)["bits_per_char"] == pytest.approx(exact, rel=1e-5)
    half = scoring.bits_per_char(single, vocab, TEXTS, precision="bf16")["bits_per_char"]
    assert half != exact and half == pytest.approx(exact, rel=0.02)


def test_numbers_that_are_not_finite_end_it(vocab):
    model = model_for(vocab)
    model.fc1.weight.data[5] = math.nan
    with pytest.raises(UserError) as error:
        scoring.bits_per_char(model, vocab, TEXTS)
    assert error.value.code == 5


# ---------------------------------------------------------------- the command

@pytest.fixture
def saved(vocab, ram_path, monkeypatch):
    """saved("名字", stage) -> a checkpoint of a random toy model; the current folder is empty and not the project's."""
    monkeypatch.chdir(ram_path)

    def save(name, stage="SFT", seed=0, max_len=64, **run):
        model = model_for(vocab, seed, torch.float32)
        write_torch(ram_path / name, {
            "format": 1, "kind": "model", "stage": stage, "config": model.config.to_dict(), "vocab_hash": vocab.hash,
            "vocab": vocab.state(),
            "weights": dict(model.state_dict()), "adapter": None, "base": None, "step": 7, "metrics": {},
            "run": {"max_len": max_len, **run}})
        return str(ram_path / name)
    return save


def command(*words):
    """Exit code of the script with these arguments."""
    with pytest.raises(SystemExit) as left:
        guarded(
            lambda: evaluate.main(
                [str(w) for w in [*words, "--device", "cpu", "--log_dir", "logs", "--log_file", "log.txt"]]))
    return left.value.code


def test_two_models_in_one_table_and_one_json_line(saved, ram_path, capsys, vocab):
    a, b = saved("TinySeek_甲.pkl", "Pre"), saved("TinySeek_乙.pkl", seed=1)
    text, exam = toy.write_rows(ram_path / "文 字.jsonl", TEXTS * 4), toy.write_rows(ram_path / "题.jsonl", QUESTIONS)
    quiz = toy.write_rows(ram_path / "quiz.jsonl",
                          [{"question": c.question, **dict(zip("ABCD", c.options)), "answer": "ABCD"[c.answer],
                                                    "subject": c.subject} for c in choices(12)])
    assert command("--model", a, "--model", b, "--data", text, exam, quiz, "--every", 2) == 0
    out = capsys.readouterr().out
    lines, found = out.strip().splitlines(), json.loads(out.strip().splitlines()[-1])
    assert [m["model"] for m in found["models"]] == [a, b] and [m["stage"] for m in found["models"]] == ["Pre", "SFT"]
    rows = (TEXTS * 4)[::2] + QUESTIONS[::2]
    from chat_agent.load import load
    for path, m in zip((a, b), found["models"]):
        assert m["bpc"]["bits_per_char"] == pytest.approx(plain_bits(load(path)[0], vocab, rows)[0], rel=1e-5)
        assert m["exact"]["n"] == 4 and m["mcq"]["n"] == 6 and m["window"] == 64
    table = lines[:-1]
    assert "甲" in table[0] and "乙" in table[0] and "随机猜测" in table[0]
    assert {evaluate.width(line) for line in table[:2]} == {evaluate.width(table[0])}
    for word in ("每字比特", "每字节比特", "考题全对（4 题）", "选择题（6 题）", "95% 区间"):
        assert any(word in line for line in table), word


def test_one_task_alone_and_the_built_in_questions(saved, capsys, monkeypatch, ram_path):
    monkeypatch.setattr(evaluate, "write_demo",
                        lambda folder: {"eval": toy.write_rows(ram_path / "demo_eval.jsonl", QUESTIONS)})
    assert command("--model", saved("a.pkl"), "--task", "exact", "--failures") == 0
    out = capsys.readouterr().out
    found = json.loads(out.strip().splitlines()[-1])
    assert found["models"][0]["exact"]["n"] == 8 and "bpc" not in found["models"][0] and "应为 很好看。" in out


def told(capsys, *words):
    """(the JSON line, everything else on stdout) of a run that must succeed."""
    assert command(*words) == 0
    *table, last = capsys.readouterr().out.strip().splitlines()
    return json.loads(last), "\n".join(table)


def test_bpc_takes_the_held_out_rows_of_the_models_own_training_data(saved, capsys, ram_path, monkeypatch):
    """Whatever the configuration of the moment says about data, and without a word about having seen them."""
    data = str(toy.write_rows(ram_path / "我的.jsonl", toy.dialogue_rows(60)))
    found, table = told(capsys, "--model", saved("a.pkl", json_data_path=data, eval_share=0.02))
    # rows 0 and 50
    assert found["data"] == {"bpc": {"files": [data], "every": 50}} and found["models"][0]["bpc"]["rows"] == 2
    assert "内置考题不适用于 a" in table and "0.0%" not in table and "见过" not in table
    assert found["models"][0]["bpc"]["seen"] == []
    # unasked: rows 0, 50, 100; of a small file nothing was held out
    for count, rows in ((120, 3), (60, 60)):
        file = str(toy.write_rows(ram_path / f"{count}.jsonl", toy.dialogue_rows(count)))
        found, table = told(capsys, "--model", saved("d.pkl", json_data_path=file, eval_share=None), "--task", "bpc")
        assert found["models"][0]["bpc"]["rows"] == rows and ("见过" in table) == (rows == 60)
    other = str(toy.write_rows(ram_path / "留出.jsonl", toy.dialogue_rows(7, seed=5)))
    found, _ = told(capsys, "--model", saved("b.pkl", json_data_path=data, eval_share=0.02, eval_data_path=other),
                    "--task", "bpc")
    assert found["data"]["bpc"] == {"files": [other], "every": 1} and found["models"][0]["bpc"]["rows"] == 7


def test_rows_that_a_model_has_seen_are_named(saved, capsys, ram_path):
    data = str(toy.write_rows(ram_path / "我的.jsonl", toy.dialogue_rows(60)))
    copy = str(toy.write_rows(ram_path / "副本.jsonl", toy.dialogue_rows(60)))
    own, strange = saved("a.pkl", json_data_path=data, eval_share=0.02), saved("b.pkl", json_data_path=copy + "没有",
        eval_share=0.02)
    for file in (data, copy):
        found, table = told(capsys, "--model", own, "--model", strange, "--task", "bpc", "--data", file)
        assert [m["bpc"]["seen"] for m in found["models"]] == [[file],
                                                               []] and "a 训练时见过" in table and "b 训练时见过" not in table
    assert "见过" not in told(capsys, "--model", own, "--task", "bpc", "--data", data, "--every", 50)[1]
    all_of_it = saved("c.pkl", json_data_path=data, eval_share=0.0)
    assert "c 训练时见过" in told(capsys, "--model", all_of_it, "--task", "bpc")[1]
    # the same rows for both
    found, table = told(capsys, "--model", own, "--model", all_of_it, "--task", "bpc")
    assert {m["bpc"]["rows"] for m in found["models"]} == {2} and "c 训练时见过" in table and "a 训练时见过" not in table


def test_the_built_in_exam_is_for_models_that_learned_the_built_in_data(saved, capsys, ram_path, monkeypatch):
    rows = [{**q, "task": "sum"} for q in QUESTIONS]
    monkeypatch.setattr(evaluate, "write_demo",
                        lambda folder: {"eval": toy.write_rows(ram_path / "demo_eval.jsonl", rows)})
    mine = str(toy.write_rows(ram_path / "我的.jsonl", toy.dialogue_rows(60)))
    demo = str(toy.write_rows(ram_path / "demo_sft.jsonl", toy.dialogue_rows(60)))
    a, b = saved("a.pkl", json_data_path=mine, eval_share=0.02), saved("b.pkl", json_data_path=demo, eval_share=0.02)
    found, table = told(capsys, "--model", a, "--task", "exact")
    assert "exact" not in found["models"][0] and "内置考题不适用于 a" in table and "%" not in table
    found, table = told(capsys, "--model", b, "--task", "exact")
    assert found["models"][0]["exact"]["by_task"] == {"sum": 0} and "两位数加法" in table and "sum" not in table
    found, table = told(capsys, "--model", a, "--model", b, "--task", "exact")
    assert "exact" not in found["models"][0] and "内置考题不适用于 a" in table and "不适用" in table.splitlines()[3]
    assert told(capsys, "--model", a, "--task", "exact", "--data",
                toy.write_rows(ram_path / "题.jsonl", QUESTIONS))[0]["models"][0]["exact"]


def test_the_table_has_all_three_scores_of_the_built_in_world(saved, capsys, ram_path, monkeypatch):
    rows = [{**q, "task": "sum"} for q in QUESTIONS]
    names = ("eval", "phrasings", "outside")
    monkeypatch.setattr(evaluate, "write_demo", lambda folder: {
        name: toy.write_rows(ram_path / f"demo_{name}.jsonl", rows) for name in names})
    demo = str(toy.write_rows(ram_path / "demo_sft.jsonl", toy.dialogue_rows(60)))
    mine = str(toy.write_rows(ram_path / "我的.jsonl", toy.dialogue_rows(60)))
    of_demo, of_mine = saved("b.pkl", json_data_path=demo), saved("a.pkl", json_data_path=mine)
    found, table = told(capsys, "--model", of_demo, "--model", of_mine, "--task", "exact")
    exact = found["models"][0]["exact"]
    assert exact["phrasings"]["n"] == exact["n_outside"] == exact["n"] == 8 and exact["outside"] == 0
    assert "换一种问法（8 题）" in table and "题外话答得体（8 题）" in table and "不适用" in table
    assert [Path(file).name for file in found["data"]["exact"]["files"]] == [f"demo_{name}.jsonl" for name in names]


def test_data_of_the_hub_can_be_evaluated(saved, capsys, ram_path, monkeypatch):
    file = str(toy.write_rows(ram_path / "fetched.jsonl", toy.dialogue_rows(9)))
    asked = []
    monkeypatch.setattr(evaluate, "local_files",
                        lambda paths, options: asked.append((paths, options["hf_split"])) or [file])
    assert told(capsys, "--model", saved("a.pkl"), "--task", "bpc", "--data",
                "hf:me/set")[0]["models"][0]["bpc"]["rows"] == 9
    assert asked == [(["hf:me/set"], "train")]


def test_chance_is_that_of_the_whole_set(saved, capsys, ram_path):
    rows = [
        {
            "task": "甲", "conversations": [{"role": "user", "content": f"{i}？"},
                                           {"role": "assistant", "content": f"答{i % 10}"}]}
            for i in range(40)]
    file = toy.write_rows(ram_path / "题.jsonl", rows)
    found, _ = told(capsys, "--model", saved("a.pkl"), "--task", "exact", "--data", file, "--every", 20)
    assert found["models"][0]["exact"]["n"] == 2 and found["models"][0]["exact"]["chance"] == {"甲": 0.1}


def test_every_answer_can_be_kept_and_two_models_compared(saved, capsys, ram_path):
    exam, kept = toy.write_rows(ram_path / "题.jsonl", QUESTIONS), ram_path / "回答" / "a.jsonl"
    words = ["--model", saved("a.pkl"), "--model", saved("b.pkl", seed=1), "--task", "exact", "--data", exam, "--save",
             kept]
    found, table = told(capsys, *words)
    rows = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    assert [row["model"] for row in rows] == ["a"] * 8 + ["b"] * 8 and all(row["right"] is False and row["reply"]
        for row in rows)
    assert rows[1]["question"] == "书呢？" and rows[1]["expected"] == "放在桌上。" and rows[1]["messages"][0]["role"] == "user"
    assert found["paired"]["exact"] == {"both": 0, "first": 0, "second": 0, "neither": 8,
                                        "p": 1.0} and "可能只是偶然" in table
    before = kept.read_bytes()
    assert command(*words) == 2 and kept.read_bytes() == before


def test_the_sign_test():
    assert scoring.paired([True] * 6 + [False], [False] * 6 + [True]) == {"both": 0, "first": 6, "second": 1,
        "neither": 0, "p": 0.125}
    assert scoring.paired([True, False], [True, False])["p"] == 1


@pytest.mark.parametrize("code, words", [
    (3, ["--model", "没有.pkl"]), (2, ["--model", "a.pkl", "--task", "bpc", "--data", "没有.jsonl"]),
    (2, ["--model", "a.pkl", "--task", "mcq"]),
    (2, ["--model", "a.pkl", "--task", "bpb"]), (2, ["--model", "a.pkl", "--every", "0"]),
    (2, ["--model", "a.pkl", "--n_layer", "3"]),
    (2, ["--model", "a.pkl", "--task", "bpc", "--data", "空.jsonl"]),
    (8, ["--model", "a.pkl", "--task", "bpc", "--data", "坏.jsonl"]),
    (8, ["--model", "a.pkl", "--task", "mcq", "--data", "字.jsonl"]),
    (8, ["--model", "a.pkl", "--task", "exact", "--data", "字.jsonl"]),
    (2, ["--model", "a.pkl", "--devise", "cuda"])])
def test_mistakes_are_explained_in_chinese(saved, capsys, ram_path, code, words):
    saved("a.pkl")
    (ram_path / "空.jsonl").touch()
    toy.write_rows(ram_path / "字.jsonl", TEXTS)
    (ram_path / "坏.jsonl").write_text("坏\n" * 20, encoding="utf-8")
    assert command(*words) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("错误：") and "Traceback" not in said


def test_the_table_lines_up():
    lines = evaluate.table([["指标", "随机", "a"], ["每字比特", "", "1.25"], ["x", "25.0%", "分不出高低"]]).splitlines()
    assert evaluate.width(lines[1]) == max(map(evaluate.width, lines)) and lines[2].endswith("1.25")
    assert evaluate.width(lines[2]) == evaluate.width(lines[3]) == evaluate.width(lines[0])
    assert evaluate.short_names(["x/a.pkl", "y/a.pkl", "TinySeek_SFT_final.pkl"]) == ["x/a", "y/a", "SFT_final"]
