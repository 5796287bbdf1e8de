"""The report: what it gathers from logs, what it draws thinned, what differs between two runs, and a page that is
closed to the world."""
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tools.config_manager import ConfigManager
from tools import cli, report
from tools.html_report import gather
from tools.process.version import code_version
from tools.errors import UserError
from tools.logs.reader import read_log
from tools.html_report.gather import heat_map, run_data, seconds_of, thinned
from tools.html_report.subjects import GROUPS, conversations, differences, flat_scores, subject, task_title
from tools.html_report.page import page
from tools.train_log import TrainLog

ROOT = Path(__file__).resolve().parents[1]


def make_run(folder, steps=30, stage="pre", text=True, header=None, **config):
    """A toy run in `folder` (log.txt, logs/) -> its .jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ConfigManager(
        overrides={"n_layer": 4, "init_lr": 5e-4, "out_dir": str(folder), "log_dir": str(folder / "logs"), **config},
        stage=stage).stage(stage)
    log = TrainLog(folder / "log.txt" if text else None, folder / "logs", stage,
                   {"device": "cpu", "params": 1234, "code": "abc123", "identity": {"数据": "d1", "词表": "v1"},
                    **(header or {}), "config": options})
    for step in range(1, steps + 1):
        log.line(
            {"epoch": 1, "epochs": 1, "batch": step, "batches": steps, "index": 1, "indexes": 1, "step": step,
             "loss": 8 - step / 10,
                  "ce_1": 4 - step / 20, "lr": 1e-3 / step, "grad_norm": math.nan if step == 3 else 1.0,
                  "entropy": 2.0, "batch_t": 0.5,
                  "expert_load": [[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]]})
        if step % 10 == 0:
            log.event("eval", eval_loss=9 - step / 10, eval_name="held")
            log.event("sample", prompt="你好", reply=f"第{step}步的回答</script><b>")
    log.event("spike", loss=9.0, rows=[3, 4])
    return log.json_file


def data_of_page(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def test_a_run_with_all_its_parts(tmp_path):
    path = make_run(tmp_path / "out")
    run = run_data(path, read_log(path)[0])
    assert (run["stage"], run["title"], run["steps"], run["header"]["params"]) == ("pre", "预训练", 30, 1234)
    assert run["curves"]["loss"]["y"][:2] == [7.9, 7.8] and run["curves"]["grad_norm"]["y"][2] is None
    assert run["evals"]["held"] == {"x": [10, 20, 30], "y": [8, 7, 6]} and run["last"]["留出数据的损失（最低）"] == 6
    assert run["heat"]["values"][0][0][0] == 1.5 and run["heat"]["values"][1][0][-1] == 3 and len(
        run["heat"]["steps"]) == 30
    assert [s["step"] for s in run["samples"]] == [10, 20, 30] and run["event_counts"] == {"eval": 3, "spike": 1}
    assert run["config"]["n_layer"] == 4 and run["identity"] == {"数据": "d1", "词表": "v1"}


def test_a_text_log_gives_the_same_curves(tmp_path):
    path = make_run(tmp_path / "out")
    text, rows = (run_data(p, read_log(p)[-1]) for p in (tmp_path / "out" / "log.txt", path))
    assert text["curves"]["loss"] == rows["curves"]["loss"] and text["config"]["n_layer"] == 4
    assert text["seconds"] == 15.0


def test_thinned_keeps_means_and_extremes():
    y = np.arange(6000.0)
    y[5] = np.nan
    y[17] = 1e6
    curve = thinned(np.arange(6000), y)
    assert len(curve["x"]) == len(curve["low"]) == gather.POINTS
    assert curve["high"][1] == 1e6 and curve["low"][0] == 0 and curve["y"][0] == pytest.approx((45 - 5) / 9, rel=1e-5)
    assert thinned(np.arange(3), np.array([1, np.nan, np.inf])) == {"x": [0, 1, 2], "y": [1, None, None]}
    assert thinned(np.arange(2), np.full(2, np.nan)) is None and thinned(np.arange(2), ["a", None]) is None


def test_heat_map_is_relative_to_an_even_share():
    loads = [None, [[0.25, 0.75]], [[0.75, 0.25]], "x"]
    assert heat_map([1, 2, 3, 4], loads) == {"steps": [2, 3], "values": [[[0.5, 1.5], [1.5, 0.5]]]}
    many = heat_map(range(1000), [[[1.0, 0.0]]] * 1000)
    assert len(many["steps"]) == gather.COLUMNS and set(many["values"][0][0]) == {2.0}
    assert heat_map([1], [None]) is None and heat_map([], None) is None


def test_a_standstill_is_no_work(tmp_path):
    path = make_run(tmp_path / "out", steps=5)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for k, row in enumerate(r for r in lines if "loss" in r and "event" not in r):
        row["time"] = 100.0 + 2 * k + (86400 if k > 2 else 0)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines), encoding="utf-8")
    assert seconds_of(read_log(path)[0]) == 8.0


def test_compare_names_every_change(tmp_path):
    a = make_run(tmp_path / "a", steps=30)
    b = make_run(tmp_path / "b", steps=20, init_lr=1e-3, n_layer=2,
                 header={"identity": {"数据": "d2", "词表": "v1"}, "code": "def456"})
    for folder, score in (("a", 0.5), ("b", 0.75)):
        (tmp_path / folder / "report.json").write_text(
            json.dumps({"scores": {"sft": {"overall": score, "by_task": {"sum": score, "date": 0.25}}}}))
    config = ConfigManager().config
    rows = differences(*(subject(str(p), config) for p in (a, b)))
    found = {(group, what): (x, y) for group, what, x, y in rows}
    settings = {what: values for (group, what), values in found.items() if group == "配置"}
    assert settings.pop("init_lr") == (5e-4, 1e-3) and settings.pop("n_layer") == (4, 2)
    assert set(settings) <= {"out_dir", "log_dir", "cache_dir", "vocab_trg_path"}
    data_file = Path(ConfigManager(stage="pre").stage("pre")["json_data_path"]).name
    assert found["数据", data_file] == ("d1", "d2") and ("数据", "词表") not in found
    assert found["代码", "代码版本"] == ("abc123", "def456") and found["结果", "loss"] == (5.0, 6.0)
    assert found["分数", "指令微调 总分"] == found["分数", "指令微调 两位数加法"] == (0.5, 0.75) and ("分数", "指令微调 日期推算") not in found
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), key=GROUPS.index)


def test_equal_runs_do_not_differ(tmp_path):
    one = subject(str(make_run(tmp_path / "a")), ConfigManager().config)
    assert differences(one, one) == []


def test_scores_by_name():
    found = flat_scores(
        {"scores": {"pre": None, "sft": {"overall": 0.5, "by_task": {"sum": 1.0}}}, "bits_per_char": {"pre": 2.5}})
    three = {"overall": 0.5, "by_task": {}, "phrasings": {"overall": 0.25}, "outside": 0.75}
    assert flat_scores({"scores": {"sft": three}}) == {"指令微调 总分": 0.5, "指令微调 换一种问法": 0.25, "指令微调 题外话": 0.75}
    tools = {"overall": 0.5, "by_task": {}, "tools": {"overall": 0.75}}
    assert flat_scores({"scores": {"sft": tools}})["指令微调 用工具"] == 0.75 and task_title("days") == "隔了几天"
    assert found == {"指令微调 总分": 0.5, "指令微调 两位数加法": 1.0, "预训练 每字比特": 2.5} and flat_scores(None) == {}


def test_page_is_closed_and_safe(tmp_path):
    one = subject(str(make_run(tmp_path / "out")), ConfigManager().config)
    html = page(report.build([one], check=False), 'a "title" <b>')
    assert "default-src 'none'" in html and "&lt;b>" in html
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']""",
                          html) and not re.findall(r"https?://|url\(|@import|fetch\(|XMLHttp", html)
    data = data_of_page(html)
    assert data["subjects"][0]["runs"][0]["samples"][0]["reply"] == "第10步的回答</script><b>"
    assert html.count("</script>") == 3 and "innerHTML" not in html


def test_folder_name_and_newest_run(tmp_path):
    make_run(tmp_path / "out")
    make_run(tmp_path / "out", stage="sft", steps=12)
    config = {**ConfigManager().config, "out_dir": str(tmp_path / "out"), "log_dir": str(tmp_path / "out" / "logs"),
              "log_file": str(tmp_path / "no.txt")}
    for spec in (None, str(tmp_path / "out")):
        assert [run["stage"] for run in subject(spec, config)["runs"]] == ["pre", "sft"]
    name = next((tmp_path / "out" / "logs").glob("sft*")).stem
    assert subject(name, config)["runs"][0]["steps"] == 12
    for spec in ("nothing", str(tmp_path)):
        with pytest.raises(UserError):
            subject(spec, config)


def test_data_check_of_the_log_or_of_now(tmp_path):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "今天的天气很好，我们去公园散步。"}\n', encoding="utf-8")
    one = subject(str(make_run(tmp_path / "out", json_data_path=str(data))), ConfigManager().config)
    assert report.build([one])["subjects"][0]["runs"][0]["data_check"]["rows"] == 1
    one["runs"][0]["data_check"] = {"verdict": "结论：记在日志里的"}
    assert report.build([one])["subjects"][0]["runs"][0]["data_check"]["verdict"] == "结论：记在日志里的"


def test_command(tmp_path):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", init_lr=1e-3)
    out = subprocess.run(
        [sys.executable, ROOT / "tools" / "report.py", "--compare", tmp_path / "a", tmp_path / "b", "--output",
         tmp_path / "x.html"],
                         capture_output=True, text=True, encoding="utf-8", cwd=tmp_path)
    assert out.returncode == 0 and "init_lr：0.0005 → 0.001" in out.stdout
    assert len(data_of_page((tmp_path / "x.html").read_text(encoding="utf-8"))["subjects"]) == 2


# ---------------------------------------------------------------- whose runs, whose scores

def world(folder):
    """Where a command looks for runs."""
    return {**ConfigManager().config, "out_dir": str(folder / "out"), "log_dir": str(folder / "logs"),
            "log_file": str(folder / "log.txt")}


def make_named(folder, name=None, stage="sft", steps=20, **config):
    """A run with a name, as `--name` leaves it: its log beside all others, its checkpoints in a folder of its own."""
    path = make_run(folder, steps, stage, name=name, **{"out_dir": str(folder / "out"), **config})
    Path(folder, "out", name or "").mkdir(parents=True, exist_ok=True)
    return path


def write_scores(folder, **parts):
    options = {stage: ConfigManager(overrides={"n_layer": 4, "init_lr": 5e-4}, stage=stage).stage(stage)
               for stage in ("pre", "sft")}
    report = {"config": options, "steps": {"pre": 30, "sft": 20},
              "scores": {s: {"overall": 0.9, "by_task": {"sum": 0.9}} for s in options},
              "bits_per_char": {"pre": 1.6, "sft": 7.5},
              "seconds": {"pre": 1, "score_pre": 2, "sft": 3, "score_sft": 4},
              "samples": [[["你好", "好"]]], "machine": {"cores": 2}, **parts}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report))


def test_a_run_with_a_name_is_found_by_its_name(tmp_path):
    make_named(tmp_path, steps=10)
    make_named(tmp_path, "expA")
    make_named(tmp_path, "expB", stage="lora", steps=5)
    config = world(tmp_path)
    for spec, stage, steps in (("expA", "sft", 20), (str(tmp_path / "out" / "expA"), "sft", 20), ("expB", "lora", 5),
                               (str(tmp_path / "out"), "sft", 10), (None, "sft", 10)):
        found = subject(spec, config)
        assert [(run["stage"], run["steps"]) for run in found["runs"]] == [(stage, steps)], spec
    assert subject(None, {**config, "name": "expB"})["name"] == "expB"
    with pytest.raises(UserError, match="exp[AB]"):
        subject("exp", config)


def test_scores_that_belong_to_these_runs(tmp_path):
    make_named(tmp_path, stage="pre", steps=30)
    make_named(tmp_path)
    write_scores(tmp_path / "out")
    found = subject(None, world(tmp_path))
    assert found["left_out"] == [] and set(found["report"]["scores"]) == {"pre",
        "sft"} and found["report"]["samples"] == [[["你好", "好"]]]
    only = subject(next((tmp_path / "logs").glob("sft*")), world(tmp_path))
    assert set(only["report"]["scores"]) == {"pre", "sft"} and only["left_out"] == []


@pytest.mark.parametrize(
    "change", [{"steps": {"pre": 30, "sft": 1022}}, {"late": True}, {"init_lr": 1e-3}, {"json_data_path": "own.jsonl"}])
def test_scores_of_another_run_are_left_out_and_named(tmp_path, change, capsys):
    make_named(tmp_path, stage="pre", steps=30)
    write_scores(tmp_path / "out", **{key: value for key, value in change.items() if key == "steps"})
    path = make_named(tmp_path, **{key: value for key, value in change.items() if key not in ("steps", "late")})
    if change == {"late": True}:                            # a second run of the same configuration, after the scores
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text(
            "\n".join(json.dumps({**json.loads(line), "time": json.loads(line).get("time", 0) + 3600})
                      for line in lines) + "\n")
    found = subject(None, world(tmp_path))
    assert found["left_out"] == ["sft"] and set(found["report"]["scores"]) == set(found["report"]["bits_per_char"]) == {
        "pre"}
    assert set(found["report"]["seconds"]) == {"pre", "score_pre"} and not found["report"]["samples"]
    report.main(
        ["--out_dir", str(tmp_path / "out"), "--log_dir", str(tmp_path / "logs"), "--log_file",
         str(tmp_path / "log.txt")])
    assert "指令微调的分数属于另一次训练" in capsys.readouterr().out


def test_an_adapter_is_not_given_the_scores_of_its_base(tmp_path):
    make_named(tmp_path, stage="lora", steps=5)
    write_scores(tmp_path / "out")
    found = subject(None, world(tmp_path))
    assert found["report"] is None and found["left_out"] == ["pre", "sft"]


def test_untouched_keys_are_not_coloured(tmp_path):
    for preset in (None, "tiny", "fast"):
        for stage in ("pre", "sft", "lora"):
            options = ConfigManager(preset=preset, stage=stage).stage(stage)
            run = {
                "stage": stage, "config": {**options, "mixed_precision": "bf16", "out_dir": "/else/where",
                                           "max_steps": 1022, "max_epochs": 1000}}
            assert report.changed_keys(run)[1] == [], (preset, stage)
            assert report.changed_keys({"stage": stage, "config": {**options, "n_layer": 9, "seed": 4}})[1] == [
                "n_layer", "seed"]


def test_nan_in_a_report_is_no_number(tmp_path):
    make_named(tmp_path)
    write_scores(tmp_path / "out", steps={"sft": 20}, peak_rss_mb=float("nan"), losses={"sft": {"loss": float("inf")}},
                 config={})
    path = report.write_report(tmp_path / "x.html", [subject(None, world(tmp_path))])
    assert data_of_page(path.read_text(encoding="utf-8"))["subjects"][0]["report"]["peak_rss_mb"] is None


def test_conversations_of_any_age():
    assert conversations([["a", "b"], ["c", "d"]]) == [[["a", "b"], ["c", "d"]]]
    assert conversations([[["a", "b"]], [["c", "d"], ["e", "f"]]]) == [[["a", "b"]], [["c", "d"], ["e", "f"]]]
    assert conversations(None) == conversations("x") == []


def test_three_runs_are_compared(tmp_path, capsys):
    for name, rate in (("a", 1e-3), ("b", 2e-3), ("c", 1e-3)):
        make_named(tmp_path, name, init_lr=rate)
    where = ["--out_dir", str(tmp_path / "out"), "--log_dir", str(tmp_path / "logs"), "--log_file",
             str(tmp_path / "log.txt")]
    report.main(["--compare", "a", "b", "c", *where])
    assert "init_lr：0.001 → 0.002 → 0.001" in capsys.readouterr().out
    data = data_of_page((tmp_path / "out" / "compare.html").read_text(encoding="utf-8"))
    assert [one["name"] for one in data["subjects"]] == ["a", "b", "c"] and ["配置", "init_lr", 0.001, 0.002,
        0.001] in data["differences"]
    for words in (["--compare", "a"], ["--compare", *"abcabca"], ["--compare", "a", "d"], ["nobody"]):
        assert cli._run(lambda: report.main(words + where)) == 2


def test_an_empty_folder_is_an_error(tmp_path):
    make_named(tmp_path)
    for name in ("out/empty", "empty"):
        (tmp_path / name).mkdir(parents=True)
        with pytest.raises(UserError, match="还没有训练日志"):
            subject(str(tmp_path / name), world(tmp_path))
    (tmp_path / "logs" / "pre_20260101_000000.jsonl").write_text("")
    with pytest.raises(UserError):
        subject("pre_20260101_000000", world(tmp_path))


def test_the_report_at_the_end_of_a_pipeline(tmp_path, capsys):
    make_named(tmp_path, "甲")
    options = {**world(tmp_path), "name": "甲"}
    path = report.report_of(options)
    assert path == tmp_path / "out" / "甲" / "report.html" and path.stat().st_size > 20000
    path.unlink()
    where = [word for key in ("out_dir", "log_dir", "log_file") for word in (f"--{key}", str(options[key]))]
    report.main(["--name", "甲", *where])
    assert path.exists()                                                    # the same place by hand
    assert not (tmp_path / "out" / "report.html").exists()
    assert report.report_of({**options, "name": "乙"}) is None and "没有写成报告" in capsys.readouterr().err


def test_code_version_follows_the_code(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.py").write_bytes(b"x = 1\n")
    first = code_version(tmp_path)
    (tmp_path / "model" / "a.py").write_bytes(b"x = 1\r\n")
    assert code_version(tmp_path) == first and re.fullmatch("[0-9a-f]{12}", first)
    (tmp_path / "model" / "a.py").write_bytes(b"x = 2\n")
    assert code_version(tmp_path) != first
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text("1234567890abcdef\n")
    assert code_version(tmp_path).endswith("(1234567)")
