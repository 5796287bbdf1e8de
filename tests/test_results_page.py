"""The page of bench results is made of committed lines alone; the bench trains for the time it was given."""
import json
import math

from bench import quality_per_minute, results_page, scores_page
from toy import SHAPE, text_rows, write_rows


def line(label, bits, seed=0, **more):
    return {"label": label, "bits_per_char": {"10": bits}, "curve": [[5, bits + 1], [10, bits]], "seed": seed,
            "train_seconds": 600.2, "clock": "wall",
            "threads": 2, "tokens_per_s": 9000, "steps": 100, "parameters": 5e6,
            "keys": {"threads": "2", "n_layer": "4"}, "preset": None,
            "commit": "abc1234", **more}


def test_a_table_groups_seeds_and_puts_the_best_first(tmp_path):
    rows = [{"title": "甲", "note": "乙", "verdict": "丙"}, line("default", 6.0), line("good", 5.0),
            line("good", 5.4, seed=1), line("bad", 7.0)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    text = results_page.page(results_page.read(tmp_path))
    table = [row for row in text.splitlines() if row.startswith("| ")][1:]
    assert [row.split(" | ")[0] for row in table] == ["| good", "| default", "| bad"]
    assert "| good | 5.200 | 5.400 | -0.800 |  | 0,1 | 600 wall × 2 |" in table[0]
    assert "n_layer=4" in table[0] and "threads=" not in table[0]
    assert "## 甲" in text and "乙" in text and "**结论**：丙" in text


def test_what_is_committed_is_what_the_results_say():
    tables = results_page.read(results_page.HERE / "results")
    assert (results_page.HERE / "RESULTS.md").read_text(encoding="utf-8") == results_page.page(tables)
    for path, name, table in results_page.pages(tables):
        text = path.read_text(encoding="utf-8")
        assert text == results_page.with_table(text, name, table), "run python bench/results_page.py"


def test_curves_are_drawn(tmp_path):
    results_page.draw_curves([line("a", 5.0), line("a", 5.1, seed=1), line("b", 6.0)], tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 5000


def test_the_bench_stops_when_the_time_is_spent_and_ends_its_schedule_there(tmp_path, monkeypatch):
    write_rows(tmp_path / "d.jsonl", text_rows(120))
    clock = iter(range(10 ** 6))
    # every look at the clock is a second later
    monkeypatch.setattr(quality_per_minute.time, "process_time", lambda: float(next(clock)))
    monkeypatch.setitem(quality_per_minute.COUNTING, quality_per_minute.time.process_time, "counting_cpu_seconds")
    quality_per_minute.main(
        ["--data", str(tmp_path / "d.jsonl"), "--cpu_seconds", "60", "--points", "2", "--rough", "--label", "toy",
         "--results",
                             str(tmp_path / "r.jsonl"), "--token_kind", "char", "--vocab_size", "500", "--max_len",
                             "40", "--batch_size", "2",
                             "--mixed_precision", "no", "--seed", "3",
                             *(w for k, v in SHAPE.items() for w in (f"--{k}", str(v)))])
    result = json.loads((tmp_path / "r.jsonl").read_text(encoding="utf-8"))
    assert result["label"] == "toy" and result["seed"] == 3
    assert 60 <= result["train_seconds"] <= 70 and 10 <= result["steps"] <= 35
    assert len(result["curve"]) == 2 and result["curve"][-1][1] == list(result["bits_per_char"].values())[0] > 0


def test_held_out_rows_are_those_divisible_by_fifty(tmp_path):
    write_rows(tmp_path / "d.jsonl", text_rows(101))
    train, held = quality_per_minute.split([str(tmp_path / "d.jsonl")], tmp_path)
    lines = (tmp_path / "d.jsonl").read_bytes().splitlines()
    assert open(held, "rb").read().splitlines() == [lines[0], lines[50],
                                                    lines[100]] and len(open(train, "rb").read().splitlines()) == 98


def test_equal_steps_take_out_the_speed_of_the_machine():
    """Runs on one line of bits against ln(steps), whatever their speeds: what is left is the option's own
    difference."""
    runs = [dict(line(label, 8 - 0.5 * math.log(steps) + own, seed=seed), steps=steps)
            for label, own in (("default", 0.0), ("better", -0.1)) for seed, steps in enumerate((300, 400, 700))]
    runs += [dict(line("fast machine", 8 - 0.5 * math.log(900) + 0.2), steps=900)]
    found, steps = results_page.at_equal_steps(runs)
    assert steps == round((300 + 400 + 700) / 3)
    assert [round(found[label][0] - found["default"][0], 6) for label in ("better", "fast machine")] == [-0.1, 0.2]
    assert found["default"][1] < 1e-9 and found["fast machine"][1] is None
    assert results_page.at_equal_steps(runs[:1]) == ({}, None) == results_page.at_equal_steps([])


def test_scores_of_a_run_go_into_the_pages():
    scores = {"overall": 0.949, "n": 2040, "by_task": {"sum": 1.0, "reverse": 0.725},
              "chance": {"sum": 0.008, "reverse": 0.156}}
    report = {"scores": {"pre": {**scores, "overall": 0.0}, "sft": scores}, "steps": {"pre": 700, "sft": 1022},
              "seconds": {"pre": 240, "sft": 360},
              "machine": {"threads": 2, "torch": "2.13"}, "samples": [[["你好", "您好"], ["再见", "再见"]]]}
    short = scores_page.summary(report, scores_page.CHINESE, "abc1234", "2026-11-26")
    assert "| 留出的内容（2,040 题） | 0.0 % | 94.9 % |" in short and "SFT 1,022 步，训练共 10 分钟" in short and "问法" not in short
    scores.update(phrasings={"overall": 0.8, "by_task": {"sum": 0.9}}, outside=0.5)
    assert "| unseen phrasings | – | 80.0 % |" in scores_page.summary(
        {**report, "scores": {"pre": None, "sft": scores}}, scores_page.ENGLISH, "a", "b")
    long = scores_page.details(report)
    assert long.index("倒写") < long.index("两位数加法") and "| 90.0 % | 0.8 % |" in long and "  你：再见\n小寻：再见" in long
    for name in scores_page.PAGES:
        text = (scores_page.ROOT / name).read_text(encoding="utf-8")
        assert "\n新\n<!-- /scores -->" in scores_page.filled(text, "新")
