"""Watching a model grow: what a training says of itself on the way, and the page that shows it."""
import asyncio
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from toy import events, train

from tools.errors import UserError
from tools.process import page
from tools.saving.plan import DEAD, steps_of
from tools.saving.progress import Progress
from train_agent.trainers.data.own_questions import own_questions
from train_agent.trainers.pre_training import build_stage
from train_agent.trainers.run_stage import start
from train_agent.trainers.running import diary
from train_agent.trainers.running.shown import marked


def talk_file(path, task=False):
    rows = [{"conversations": [{"role": "user", "content": f"第{n}问？"}, {"role": "assistant", "content": f"{n}。"}],
             **({"task": "sum" if n % 2 else "reverse"} if task else {})} for n in range(60)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def growing(options, tmp_path, **more):
    folder = tmp_path / "data"
    folder.mkdir()
    data = talk_file(folder / "demo_sft.jsonl")
    talk_file(folder / "demo_eval.jsonl", task=True)
    chosen = options(json_data_path=str(data), eval_share=0.25, max_steps=6, logging_steps=1,
                     training_mode="instruction_finetuning", **more)
    start(build_stage, chosen)
    return chosen


def test_a_training_answers_the_same_questions_again_and_again_and_sits_an_exam(options, tmp_path, monkeypatch):
    monkeypatch.setattr(diary, "PAUSE", 0)
    chosen = growing(options, tmp_path)
    steps = {}
    for one in events(chosen, "sample"):
        steps.setdefault(one["step"], []).append(one["prompt"])
    assert list(steps) == [1, 2, 3, 4, 5, 6] and len({tuple(dict.fromkeys(asked)) for asked in steps.values()}) == 1
    exams = events(chosen, "exam")
    assert [e["step"] for e in exams[:3]] == [1, 2, 3] and sorted(exams[0]["tasks"]) == ["reverse", "sum"]
    assert exams[0]["asked"] == [2, 2] and all(0 <= right <= 2 for e in exams for right in e["right"])


def test_answers_take_little_of_a_trainings_time(options, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(diary.time, "perf_counter", lambda: clock.__setitem__(0, clock[0] + 1.0) or clock[0])
    monkeypatch.setattr(diary, "answers", lambda stage: ([("问", "答")], {}))
    assert [one["step"] for one in events(growing(options, tmp_path), "sample")] == [1, 6]     # then the pause, the end


def test_the_answers_change_nothing_of_the_training(options, tmp_path, monkeypatch):
    monkeypatch.setattr(diary, "PAUSE", 0)
    chosen = options(rows=40, max_steps=5, logging_steps=1, dropout=0.1)
    plain = train({**chosen, "out_dir": str(tmp_path / "plain")})
    start(build_stage, {**chosen, "out_dir": str(tmp_path / "shown")})
    saved = torch.load(tmp_path / "shown" / "TinySeek_Pre_final.pkl", weights_only=True)["weights"]
    assert all(torch.equal(saved[name], tensor) for name, tensor in plain.model.state_dict().items())


def test_the_checkpoint_keeps_an_exam_of_held_out_questions(options, tmp_path):
    chosen = growing(options, tmp_path)
    saved = torch.load(Path(chosen["out_dir"], "TinySeek_Pre_final.pkl"), weights_only=True)["talk"]["exam"]
    assert len(saved) == 4 and {row["task"] for row in saved} == {"sum", "reverse"}
    own = talk_file(tmp_path / "mine.jsonl")
    start(build_stage, {**chosen, "json_data_path": str(own), "out_dir": str(tmp_path / "mine")})
    rows = torch.load(tmp_path / "mine" / "TinySeek_Pre_final.pkl", weights_only=True)["talk"]["exam"]
    assert rows and all(int(re.search(r"\d+", r["messages"][0]["content"])[0]) % 4 == 0 for r in rows)
    assert all(r["answer"] == re.search(r"\d+", r["messages"][0]["content"])[0] + "。" and not r["task"] for r in rows)


def test_a_model_of_the_built_in_world_is_asked_plain_questions_of_several_tasks(options, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"conversations": [{"role": "user", "content": f"第{task}类{n}"}, {"role": "assistant", "content": "好"}],
             "task": f"t{task}"} for task in range(11) for n in range(3)]
    (folder / "demo_eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, found in (("demo_sft", ["第0类0", "第10类0", "第2类0", "第8类0", "第4类0", "第6类0"]), ("demo_identity", [])):
        chosen = options(json_data_path=str(talk_file(folder / f"{name}.jsonl")), name=name, eval_share=0.25,
                         training_mode="instruction_finetuning")
        asked = own_questions(build_stage(chosen))
        assert asked == found if found else len(asked) == 6 and all("问？" in text for text in asked)


def test_marks_are_exact_answers():
    exam = [{"task": "a", "answer": "好"}, {"task": "a", "answer": "不"}, {"task": "b", "answer": "是"}]
    assert marked(exam, [" 好", "好", "是的"]) == {"tasks": ["a", "b"], "right": [1, 0], "asked": [2, 1]}
    assert marked([], []) == {}


def states(folder, now=0.0):
    return [step["state"] for step in steps_of(folder, now)]


def test_a_pipeline_says_what_it_has_done_does_and_will_do(tmp_path):
    plan, seen = [("a", "甲"), ("b", "乙"), ("c", "丙")], []
    assert states(tmp_path) == []
    progress = Progress(tmp_path, {}, plan=plan)
    progress.step("a", "甲", lambda: 1)
    progress.once("b", "乙", lambda: seen.append(states(tmp_path)))
    assert seen == [["done", "now", "next"]] and steps_of(tmp_path, 0)[0]["seconds"] is not None
    with pytest.raises(KeyboardInterrupt):
        progress.once("c", "丙", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    assert states(tmp_path) == ["done", "done", "failed"] and "停在这里" in steps_of(tmp_path, 0)[2]["note"]
    Progress(tmp_path, {}, plan=plan).step("a", "甲", lambda: seen.append(states(tmp_path)))
    assert seen[1] == ["now", "done", "next"]            # what is done at every start is done again
    (tmp_path / "progress.json").write_text("{")
    assert states(tmp_path) == []


@pytest.mark.parametrize("error, said", [
    (UserError("数据里坏行太多。", 8), "数据里坏行太多。"), (SystemExit(143), "停在这里"), (OSError(28, "full", "x.pkl"), "磁盘已满"),
    (ZeroDivisionError("0"), "ZeroDivisionError")])
def test_what_ended_a_pipeline_is_kept_for_who_watches(tmp_path, error, said):
    def fails():
        raise error
    with pytest.raises(type(error)):
        Progress(tmp_path, {}, plan=[("a", "甲")]).once("a", "甲", fails)
    (step,) = steps_of(tmp_path, 0)
    assert step["state"] == "failed" and said in step["note"] and step["left"] is None


@pytest.mark.skipif(os.name == "nt", reason="Windows 上不去问别的进程")
def test_a_pipeline_that_was_killed_is_not_shown_as_going_on(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    data = {"plan": [["a", "甲", 9]], "now": "a", "left": [9, 0], "since": 5.0, "results": {}, "seconds": {}}
    for pid, state, note in ((os.getpid(), "now", None), (gone.pid, "failed", DEAD)):
        (tmp_path / "progress.json").write_text(json.dumps({**data, "pid": pid}))
        (step,) = steps_of(tmp_path, 7.0)
        assert (step["state"], step["note"]) == (state, note) and step["left"] == (7 if note is None else None)


def test_a_run_that_failed_says_why_and_one_that_is_done_says_so(options, tmp_path, monkeypatch):
    pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
    from chat_agent.server.curves import Curves
    from chat_agent.server.limits import Limits
    chosen = options(rows=40, max_steps=6, logging_steps=1)
    real, failing = diary.OpenedLoop.optimize, [True]

    def optimize(self, *rest):
        if failing and self.step == 3:
            raise UserError("损失不是有限的数。", 5)
        return real(self, *rest)
    monkeypatch.setattr(diary.OpenedLoop, "optimize", optimize)

    def stands():
        curves = Curves(Path(chosen["log_dir"]), Limits())
        newest = json.loads(asyncio.run(curves.listing()))["runs"][0]["name"]
        return {k: v for k, v in json.loads(asyncio.run(curves.read(newest))).items() if k in ("state", "live", "why")}
    with pytest.raises(UserError):
        start(build_stage, chosen)
    assert stands() == {"state": "stopped", "live": False, "why": "损失不是有限的数。"}
    failing.clear()
    start(build_stage, {**chosen, "resume": "none"})
    assert stands() == {"state": "done", "live": False, "why": None}


# ---------------------------------------------------------------- the page beside a training

def asked(tmp_path, **more):
    return {"page": True, "open": False, "out_dir": str(tmp_path), "log_dir": str(tmp_path / "logs"), **more}


def test_the_page_is_there_while_the_training_runs_and_ends_after_it(tmp_path, capfd):
    pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
    pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")
    with page.page_beside(asked(tmp_path)) as process:
        with page.page_beside(asked(tmp_path)) as second:
            assert second is None                        # a stage of a pipeline opens no page of its own
        said, end = "", time.monotonic() + 300
        while not (found := re.search(r"训练的网页：(http://127\.0\.0\.1:\d+)/#curves", said)):
            assert process.poll() is None and time.monotonic() < end, said
            time.sleep(0.1)
            said += capfd.readouterr().out
        with urllib.request.urlopen(found[1] + "/curves", timeout=60) as answer:
            assert json.load(answer) == {"runs": [], "plan": []}
    with urllib.request.urlopen(found[1] + "/health", timeout=60) as answer:
        assert answer.status == 200                      # who looks sees the end
    assert process.wait(120) == 0


def test_without_being_asked_nothing_listens(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(page.subprocess, "Popen", lambda *_, **__: pytest.fail("a server was started"))
    with page.page_beside(asked(tmp_path, page=False)) as process:
        assert process is None and "--open" in capsys.readouterr().out


def test_a_page_without_its_packages_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(page.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="requirements-serve.txt"), page.page_beside(asked(tmp_path)):
        pytest.fail("never")


def test_open_opens_the_browser(tmp_path, monkeypatch, capsys):
    class Process:
        stdout = ["加载\n", "已就绪：http://127.0.0.1:8123　（接口 …）\n", "别的\n"]
    opened = []
    monkeypatch.setattr(page.webbrowser, "open", opened.append)
    page._listen(Process, True)
    assert opened == ["http://127.0.0.1:8123/#curves"] and capsys.readouterr().out.count("8123") == 1
    Process.stdout = ["错误：没有那个包\n"]
    page._listen(Process, True)
    assert "没有那个包" in capsys.readouterr().err and len(opened) == 1
