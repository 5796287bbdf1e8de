"""Continuous batching, text and validation, without a socket in between."""
import asyncio
import copy
import json
import threading
import time

import pytest
import torch

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")

import toy_export
from chat_agent.server.engine import Engine, Job, Lane
from chat_agent.server.errors import ApiError
from chat_agent.server.limits import Limits
from chat_agent.server.models import Served
from chat_agent.server.writing import Writer
from model.generate import generate
from model.sampling import Sampling, stream_of
from toy_server import SMALL

LIMITS = Limits()


@pytest.fixture(scope="module")
def world():
    vocab = toy_export.toy_vocab(600, "char")
    model = toy_export.toy_payload(vocab, **SMALL)[1]
    return Served("one", model.requires_grad_(False), vocab, 128)


class Bell:
    def set(self):
        pass


def job_of(world, text, room=20, how=Sampling(), seed=None, **more):
    ids = world.chat_prompt([{"role": "user", "content": text}], room).ids
    return Job(world, ids, how, stream_of(seed), Writer(world.vocab, room), Bell(), **more)


def run(lane, steps=10_000):
    """All steps until the lane is empty -> {job: step at which it ended}, {job: step of its first news}."""
    ended, begun, step = {}, {}, 0
    with torch.inference_mode():
        while lane.busy and step < steps:
            for job, _, finish, error in lane.step(time.monotonic()):
                begun.setdefault(job, step)
                if finish or error:
                    ended[job] = step
            step += 1
    return ended, begun


TEXTS = ["你好", "今天吃什么？", "一", "妈妈说下雨了，快回家。" * 5, "小船", "书在桌上", "三加五", "再见，明天见。"]


def test_replies_side_by_side_are_as_alone_up_to_ties(world):
    alone = [generate(world.model, job_of(world, t).ids, 30) for t in TEXTS]
    lane, jobs = Lane(world.model, 5), [job_of(world, t, 30) for t in TEXTS]
    lane.waiting.extend(jobs)                          # five places for eight jobs: they come and go
    run(lane)
    for text, job, ids in zip(TEXTS, jobs, alone):
        if job.writer.ids != ids:
            assert toy_export.compare_greedy(toy_export.plain_step(world.model), job.writer.ids,
                                             job_of(world, text).ids) == "tie"
    assert not lane.jobs and sum(lane.cache.lengths) >= 0


def test_sampled_replies_depend_on_their_own_seed_only(world):
    how = Sampling(temperature=0.8, top_p=0.9, repetition_penalty=1.1)
    alone = generate(world.model, job_of(world, "小船").ids, 20, seed=5, speculate=False, temperature=0.8, top_p=0.9,
                     repetition_penalty=1.1)
    lane = Lane(world.model, 4)
    mixed = [job_of(world, "你好"), job_of(world, "小船", how=how, seed=5), job_of(world, "小船", how=how, seed=6)]
    lane.waiting.extend(mixed)
    run(lane)
    assert mixed[1].writer.ids == alone != mixed[2].writer.ids


@pytest.mark.parametrize("length", [3, 200, 500])
def test_a_newcomer_gets_its_first_token_within_three_steps(world, length):
    world = Served("long", world.model, world.vocab, 1024)
    lane, first = Lane(world.model, 4, 512), job_of(world, "你好", 400)
    lane.waiting.append(first)
    with torch.inference_mode():
        for _ in range(5):
            lane.step(0.0)
        late = job_of(world, "长" * length, 20)
        lane.waiting.append(late)
        before = len(first.writer.ids)
        for _ in range(3):
            lane.step(0.0)
    assert late.writer.ids and len(first.writer.ids) == before + 3      # and the other one has not waited


def test_a_client_that_leaves_frees_its_slot_at_the_next_step(world):
    lane = Lane(world.model, 2)
    jobs = [job_of(world, t, 200) for t in TEXTS[:3]]
    lane.waiting.extend(jobs)
    with torch.inference_mode():
        for _ in range(3):
            lane.step(0.0)
        count = len(jobs[0].writer.ids)
        jobs[0].gone = True
        lane.step(0.0)
    assert jobs[0] not in lane.jobs and len(jobs[0].writer.ids) == count and jobs[2] in lane.jobs and len(
        lane.jobs) == 2
    jobs[2].gone = jobs[1].gone = True
    lane.waiting.append(job_of(world, "一", 5))
    lane.waiting[0].gone = True                        # leaves while it waits
    with torch.inference_mode():
        lane.step(0.0)
    assert not lane.busy


def test_time_ends_a_reply_and_a_wait(world):
    lane, late = Lane(world.model, 1), job_of(world, "你好", 200, deadline=5.0)
    waiting = job_of(world, "你好", wait_until=5.0)
    lane.waiting.extend([late, waiting])
    with torch.inference_mode():
        lane.step(1.0)
        news = lane.step(6.0)
    assert [(j is late, f, e and e.status) for j, _, f, e in news] == [(True, "length", None),
                                                                       (False, None, 429)] and not lane.busy


# ---------------------------------------------------------------- the thread

def collect(world, limits=LIMITS):
    """An engine, and what it said as (job, finish, error)."""
    said = []
    engine = Engine(limits, lambda news: said.extend((j, f, e) for j, _, f, e in news))
    engine.start()
    return engine, said


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_queue_is_bounded_and_all_or_none(world):
    limits = Limits(batch=2, queue=3)
    engine = Engine(limits, lambda news: None)         # its thread does not run: nothing ever leaves
    engine.submit([job_of(world, "一") for _ in range(4)])
    with pytest.raises(ApiError) as found:
        engine.submit([job_of(world, "一") for _ in range(2)])
    assert found.value.status == 429 and int(found.value.headers()["retry-after"]) >= 1 and engine.under_way == 4
    engine.submit([job_of(world, "一")])
    engine.drain()
    with pytest.raises(ApiError) as found:
        engine.submit([])
    assert found.value.status == 503 and found.value.headers()["retry-after"]


@pytest.mark.parametrize("part", ["decode", "blocks"])
def test_a_failure_costs_its_own_replies_and_nothing_else(world, capsys, part):
    model = copy.deepcopy(world.model)

    def fail(*_):
        raise RuntimeError("secret inside")
    if part == "decode":
        model.decode = fail
    else:
        del model.blocks                               # then not even a cache can be made
    broken = Served("broken", model, world.vocab, 128)
    engine, said = collect(world)
    ids = job_of(world, "一").ids
    jobs = [*(Job(broken, ids, Sampling(), None, Writer(world.vocab, 5), Bell()) for _ in range(3)),
            job_of(world, "你好", 5)]
    engine.submit(jobs)
    until(lambda: engine.under_way == 0)
    errors = [e for j, _, e in said if j in jobs[:3] and e]
    assert [e.status for e in errors] == [500] * 3 and b"secret" not in errors[0].body(
        ) and "Traceback" in capsys.readouterr().err
    assert jobs[3].writer.finish and engine.alive
    engine.close()
    assert not engine.alive


def test_cut_off_ends_everything(world):
    engine, said = collect(world)
    jobs = [job_of(world, "你好", 10**6) for _ in range(3)]
    for job in jobs:
        job.writer.loops.add = lambda new: False
    engine.submit(jobs)
    until(lambda: all(job.writer.ids for job in jobs))
    engine.cut_off()
    until(lambda: engine.under_way == 0)
    assert {j for j, f, _ in said if f == "length"} == set(jobs)
    engine.close()


# ---------------------------------------------------------------- text

def written(world, text, stops, room=10_000):
    writer, pieces = Writer(world.vocab, room, stops=stops), []
    for new in world.vocab.encode(text):
        over = writer.add(new)
        pieces.append("".join(writer.take()))
        if over:
            break
    else:
        writer.end("length")
        pieces.append("".join(writer.take()))
    return "".join(pieces), writer.finish, pieces


def test_stop_strings_never_show_not_even_in_part(world):
    text = "今天ab天气abc好𠮷end"
    for stop in ("abc", "abcz", "天气", "𠮷", "今", "end", "气abc好"):
        got, finish, pieces = written(world, text, [stop])
        expected = text.partition(stop)[0]
        assert (got, finish) == (expected, "stop" if stop in text else "length"), stop
        assert all(expected.startswith("".join(pieces[:i])) for i in range(len(pieces)))
    assert written(world, text, ["好", "天气"])[0] == "今天ab"


def test_a_loop_and_a_full_room_count_as_length(world):
    assert written(world, "哈" * 500, [])[1] == "length" and len(written(world, "哈" * 500, [])[0]) < 100
    assert written(world, "今天天气好", [], room=3)[1] == "length"


# ---------------------------------------------------------------- curves

def test_curves_are_found_read_and_never_a_path(tmp_path):
    from chat_agent.server.curves import Curves
    logs = tmp_path / "logs"
    logs.mkdir()
    rows = [{"event": "start", "stage": "pre"},
            *[{"step": i, "loss": 5 - i / 1000, "lr": 1e-3, "ppx_1": "NaN", "remaining": 3.0} for i in range(1, 3001)],
            {"event": "eval", "step": 100, "eval_name": "held", "eval_loss": 4.5}]
    (logs / "pre_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (logs / "note.txt").write_text("secret")
    (tmp_path / "outside.jsonl").write_text('{"step": 1, "loss": 1}\n')
    (logs / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    curves = Curves(logs, LIMITS)

    async def look():
        assert [r["name"] for r in json.loads(await curves.listing())["runs"]] == ["pre_1"]
        got = json.loads(await curves.read("pre_1"))
        loss = got["fields"]["loss"]
        assert got["stage"] == "pre" and got["live"] and got["place"] == {"step": 3000, "remaining": 3.0}
        assert 300 < len(loss["x"]) <= 610 and len(loss["x"]) == len(loss["y"]) and loss["x"][-1] == 3000
        assert "ppx_1" not in got["fields"] and got["evaluations"] == {"held": {"x": [100.0], "y": [4.5]}}
        for name in ("../outside", "link", "note.txt", "pre_1.jsonl", "", "..", "\0", str(tmp_path / "outside")):
            with pytest.raises(ApiError):
                await curves.read(name)
        assert json.loads(await Curves(tmp_path / "none", LIMITS).listing()) == {"runs": [], "plan": []}
    asyncio.run(look())


def test_a_run_is_running_while_its_folder_is_owned_then_stopped_or_done(tmp_path):
    from chat_agent.server.curves import Curves
    from tools.saving.folder_lock import FolderLock
    out, log, lock = tmp_path / "out", tmp_path / "sft_1.jsonl", FolderLock(tmp_path / "out" / "expA")
    head = {"event": "start", "stage": "sft", "config.out_dir": str(out), "config.name": "expA",
            "start": "2026-01-02 03:04:05"}
    log.write_text(json.dumps(head) + "\n" + json.dumps({"step": 1, "loss": 2.0}) + "\n")
    (tmp_path / "bad_lines.jsonl").write_text('{"line": 1, "reason": "x"}\n')
    (tmp_path / "new_1.jsonl").write_text("")

    def look():
        return {run["name"]: run for run in json.loads(asyncio.run(Curves(tmp_path, LIMITS).listing()))["runs"]}
    lock.acquire()
    assert look().keys() == {"sft_1", "new_1"} and look()["sft_1"]["state"] == "running" and look()["sft_1"]["live"]
    assert look()["sft_1"]["label"] == "指令微调 · expA · 01-02 03:04"
    lock.release()
    assert look()["sft_1"]["state"] == "stopped"
    with open(log, "a") as file:
        file.write(json.dumps({"event": "save", "step": 1, "name": "TinySeek_SFT_final.pkl"}) + "\n")
    assert look()["sft_1"]["state"] == "done"
    with open(log, "a") as file:                       # it was given more to do
        file.write(json.dumps({"event": "resume", "step": 1}) + "\n")
    assert look()["sft_1"]["state"] == "stopped"
    lock.acquire()
    assert look()["sft_1"]["state"] == "running"
    lock.release()


def test_a_log_is_read_seldom_while_the_run_goes_on_and_at_once_when_it_has_ended(tmp_path, monkeypatch):
    from chat_agent.server import curves
    log, read, real = tmp_path / "pre_1.jsonl", [], curves.read_points
    log.write_text('{"event": "start", "stage": "pre"}\n{"step": 1, "loss": 2.0}\n')
    monkeypatch.setattr(curves, "read_points", lambda *given: read.append(1) or real(*given))
    monkeypatch.setattr(curves, "WAIT", 1e9)
    here = curves.Curves(tmp_path, LIMITS)

    async def look():
        """Five viewers at once -> how the run stands."""
        seen = await asyncio.gather(*(here.read("pre_1") for _ in range(5)))
        assert len(set(seen)) == 1
        return json.loads(seen[0])["state"], json.loads(seen[0])["place"].get("step")

    async def follow():
        assert await look() == ("running", 1) and len(read) == 1
        with open(log, "a") as file:
            file.write(json.dumps({"step": 2, "loss": 1.5}) + "\n")
        assert await look() == ("running", 1) and len(read) == 1
        with open(log, "a") as file:
            file.write(json.dumps({"event": "save", "step": 2, "name": "TinySeek_Pre_final.pkl"}) + "\n")
        assert await look() == ("done", 2) and len(read) == 2
    asyncio.run(follow())


def test_threads_are_not_left_behind(world):
    before = threading.active_count()
    engine, _ = collect(world)
    engine.close()
    assert threading.active_count() == before
