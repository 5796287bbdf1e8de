"""Graders of answers: exact ones and multiple choice, against scorers that know nothing or everything."""
import json
import random

import numpy as np
import torch

import toy
from toy import model_for, plain_nats
from chat_agent import samples
from chat_agent.evaluation import scoring
from chat_agent.evaluation.rows import Choice
from tools import template


# ---------------------------------------------------------------- exact answers

def fit(model, documents, steps, rate=1e-2):
    """Overfit on rendered documents, plainly."""
    optimizer = torch.optim.Adam(model.parameters(), rate)
    longest = max(len(ids) for ids, _ in documents)
    ids, labels = torch.zeros(len(documents), longest, dtype=torch.long), torch.full((len(documents), longest), -100)
    for i, (document, learn) in enumerate(documents):
        document = torch.from_numpy(np.asarray(document, dtype=np.int64))
        ids[i, :len(document)] = document
        labels[i, :len(document)] = torch.where(torch.from_numpy(learn), document, -100)
    for _ in range(steps):
        model.zero_grad()
        model(ids, labels=labels).loss.backward()
        optimizer.step()
    return model


QUESTIONS = [
    {
        "task": task, "conversations": [{"role": "user", "content": f"{thing}呢？"},
                                        {"role": "assistant", "content": doing + "。"}]}
             for task, thing, doing in zip(["甲", "乙"] * 4, toy.THINGS, toy.DOINGS)]


def test_exact_scores_of_a_model_that_knows_and_of_one_that_does_not(vocab, tmp_path):
    path = toy.write_rows(tmp_path / "eval.jsonl", QUESTIONS)
    model = model_for(vocab, dtype=torch.float32, init_std=0.05)
    nothing = scoring.exact_scores(model, vocab, path)
    assert nothing["overall"] == 0 and nothing["n"] == 8 and len(nothing["failures"]) == 6
    assert nothing["chance"] == {"甲": 1 / 4, "乙": 1 / 4}
    fit(model, [template.render(q["conversations"], vocab) for q in QUESTIONS], 120)
    all_right = scoring.exact_scores(model, vocab, path)
    assert all_right["overall"] == 1 and all_right["by_task"] == {"甲": 1, "乙": 1} and all_right["failures"] == []
    wrong = json.loads(json.dumps(QUESTIONS))
    wrong[1]["conversations"][1]["content"] = "别的"
    found = scoring.exact_scores(model, vocab, wrong)
    assert found["overall"] == 7 / 8 and found["by_task"]["乙"] == 3 / 4
    assert found["failures"] == [{"task": "乙", "question": "书呢？", "expected": "别的", "reply": "放在桌上。"}]
    said = samples.sample_conversation(model, vocab, ["苹果呢？"])
    assert said == [("苹果呢？", "很好看。")]


def test_sample_conversation_keeps_the_history(vocab, monkeypatch):
    seen = []
    monkeypatch.setattr(samples, "generate",
                        lambda model, ids, n, prepared, marks: seen.append(list(ids)) or vocab.encode("好"))
    assert samples.sample_conversation(None, vocab, ["茶", "书"]) == [("茶", "好"), ("书", "好")]
    turns = [{"role": r, "content": c} for r, c in (("user", "茶"), ("assistant", "好"), ("user", "书"))]
    assert seen[1] == template.render_prompt(turns, vocab)


def test_questions_too_long_for_the_positions_are_wrong_not_fatal(vocab):
    model = model_for(vocab, position="learned", max_position=12)
    long = [
        {"task": "甲", "conversations": [{"role": "user", "content": "书" * 30}, {"role": "assistant", "content": "茶"}]}]
    assert scoring.exact_scores(model, vocab, QUESTIONS + long)["n"] == 9


def test_three_scores_of_the_built_in_world(vocab, tmp_path):
    """Contents, other phrasings, and what lies outside: admitted, or fitting; a false refusal is an error and
    counted."""
    def ask(question, reply, **rule):
        return {"task": rule.pop("task", "甲"), **rule, "conversations": [
            {"role": "user", "content": question}, {"role": "assistant", "content": reply}]}
    model = model_for(vocab, dtype=torch.float32, init_std=0.05)
    said = [ask("苹果呢？", "很好看。"), ask("书呢？", "不知道。"), ask("茶呢？", "不知道。"), ask("天呢？", "很好看。")]
    fit(model, [template.render(row["conversations"], vocab) for row in said], 150)
    paths = {"eval": toy.write_rows(tmp_path / "eval.jsonl", [said[0], ask("书呢？", "放在桌上。")]),
             "phrasings": toy.write_rows(tmp_path / "phrasings.jsonl", [ask("苹果呢？", "很好看。", task="乙")]),
             "outside": toy.write_rows(tmp_path / "outside.jsonl", [
                 ask("茶呢？", "这个我没学过", task="outside", outside=True), ask("苹果呢？", "没学过", task="outside", outside=True),
                 ask("天呢？", "很好看", task="outside", accept=["很好看"])])}
    found = scoring.world_scores(model, vocab, paths)
    assert found["overall"] == 0.5 and found["refusals"] == 0.5 and found["by_task"] == {"甲": 0.5}
    assert found["phrasings"] == {"overall": 1.0, "by_task": {"乙": 1.0}, "n": 1, "refusals": 0.0}
    assert found["outside"] == 2 / 3 and found["n_outside"] == 3
    assert {one["question"] for one in found["failures"]} == {"书呢？", "苹果呢？"}
    assert "phrasings" not in scoring.world_scores(model, vocab, {"eval": paths["eval"]})


def test_a_users_task_with_a_built_in_name_still_has_a_chance(vocab):
    rows = [{**q, "task": "ends"} for q in QUESTIONS]
    assert scoring._chance(rows) == {"ends": 1 / 8}


# ---------------------------------------------------------------- multiple choice

def choices(count, seed=0):
    rng = random.Random(seed)
    made = []
    for i in range(count):
        options = rng.sample(toy.DOINGS, 4)
        made.append(Choice(f"{toy.THINGS[i % 8]}第{i // 8}", options, rng.randrange(4), "甲" if i % 2 else "乙"))
    return made


def test_wilson_interval():
    # 10 of 40 and 0 of 20: figures of the textbook formula, worked out by hand to four places
    assert np.allclose(scoring.wilson(10, 40), (0.1419, 0.4019), atol=1e-4)
    assert np.allclose(scoring.wilson(0, 20), (0.0, 0.1611), atol=1e-4)


def test_a_scorer_that_knows_nothing_has_its_chance_inside_the_interval():
    rows, rng, inside = choices(200), np.random.default_rng(0), 0
    for _ in range(200):
        found = scoring.grade_choices(rows, rng.random((200, 4)))
        inside += found["low"] <= 0.25 <= found["high"]
    assert 180 <= inside < 200 and found["chance"] == 0.25
    uniform = scoring.grade_choices(rows, np.zeros((200, 4)))
    assert uniform["accuracy"] == 0.25 and uniform["by_subject"] == {"乙": 0.25, "甲": 0.25}


def test_a_uniform_model_favours_no_letter(vocab):
    model = model_for(vocab)
    torch.nn.init.zeros_(model.fc1.weight)
    rows = [Choice("茶？", ["苹果", "雨伞", "小船", "月亮"], 0), Choice("书？", ["很好看", "是圆的", "在河边", "要三元"], 3)]
    assert scoring.mcq_scores(model, vocab, rows)["accuracy"] == 0.25


def test_likelihood_is_per_character_and_given_the_question(vocab, monkeypatch):
    model = model_for(vocab)
    row = Choice("茶呢？", ["很好看", "放在桌上"], 0)
    prompt = template.render_prompt([{"role": "user", "content": row.question}], vocab)
    per_character = []
    for text in row.options:
        ids = prompt + vocab.encode(text)
        per_character.append(-plain_nats(model, ids, np.arange(len(ids)) >= len(prompt)) / len(text))
    asked = []
    monkeypatch.setattr(scoring, "grade_choices", lambda rows, scores: asked.extend(scores))
    scoring.mcq_scores(model, vocab, [row])
    assert np.allclose(asked[0], per_character, rtol=0, atol=1e-9)


def test_a_model_overfitted_on_the_items_scores_high(vocab):
    rows = choices(100)
    model = model_for(vocab, dtype=torch.float32, init_std=0.05)
    before = scoring.mcq_scores(model, vocab, rows)
    assert before["low"] <= 0.25 <= before["high"]
    turns = [[{"role": "user", "content": r.question}, {"role": "assistant", "content": r.options[r.answer]}]
             for r in rows]
    fit(model, [template.render(t, vocab) for t in turns], 150)
    assert scoring.mcq_scores(model, vocab, rows)["accuracy"] > 0.95
