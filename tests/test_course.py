"""The seven chapters of docs/course: every experiment runs, every quoted number and line of code is true."""
import importlib
import json
import re

import pytest
import torch

from tools.config_manager import ROOT

COURSE = ROOT / "docs" / "course"
CHAPTERS = {page.stem.partition("_")[2]: page for page in sorted(COURSE.glob("[1-7]_*.md"))}
TINY = {"tokens": "300"}            # sentences; elsewhere training steps
FEWER = {"tokens": ("SIZES", (1000,)), "measure": ("SEEDS", (0,))}      # repetitions that show nothing new here
QUOTED = re.compile(r"`([\w/]+\.py)`：\n\n```python\n(.*?)\n```", re.S)
NUMBER = re.compile(r"\*\*(-?\d[\d.]*(?:e-\d+)?)\*\*")


def experiment(name, monkeypatch):
    monkeypatch.syspath_prepend(str(COURSE))
    return importlib.import_module(name).main


def ran(name, folder, monkeypatch, capsys, *words):
    """Runs a chapter's command into `folder` -> what its last line says."""
    threads, picture = torch.get_num_threads(), folder / "图.png"
    try:
        experiment(name, monkeypatch)([*words, "--out", str(picture)])
    finally:
        torch.set_num_threads(threads)
    assert picture.stat().st_size > 5000
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_index_names_every_chapter_and_its_command():
    index = (COURSE / "README.md").read_text(encoding="utf-8")
    assert len(CHAPTERS) == 7
    for name, page in CHAPTERS.items():
        text = page.read_text(encoding="utf-8")
        assert page.name in index and f"`python docs/course/{name}.py`" in index
        assert f"```bash\npython docs/course/{name}.py\n```" in text and f"]({name}.png)" in text
        assert len(re.findall(r"^\*\*\d\. .*？\*\*$", text, re.M)) == 3


@pytest.mark.parametrize("name", CHAPTERS)
def test_numbers_of_a_chapter_are_those_of_its_run(name):
    known = {float(value) for value in json.loads((COURSE / f"{name}.json").read_text(encoding="utf-8")).values()}
    quoted = [float(number) for number in NUMBER.findall(CHAPTERS[name].read_text(encoding="utf-8"))]
    assert len(quoted) >= 5 and [number for number in quoted if number not in known] == []


@pytest.mark.parametrize("name", CHAPTERS)
def test_code_of_a_chapter_still_stands_in_its_file(name):
    blocks = QUOTED.findall(CHAPTERS[name].read_text(encoding="utf-8"))
    assert blocks and 8 <= sum(block.count("\n") + 1 for _, block in blocks) <= 40
    for file, block in blocks:
        assert block + "\n" in (ROOT / file).read_text(encoding="utf-8"), f"{name}: {file} no longer says\n{block}"


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_runs_in_small(name, ram_path, monkeypatch, capsys):
    if name in FEWER:
        monkeypatch.setitem(experiment(name, monkeypatch).__globals__, *FEWER[name])
    said = ran(name, ram_path, monkeypatch, capsys, "--steps", TINY.get(name, "3"))
    assert said.keys() - {"minutes"} == json.loads((COURSE / f"{name}.json").read_text(encoding="utf-8")).keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", CHAPTERS)
def test_a_chapter_runs_within_ten_minutes_of_a_processor(name, ram_path, monkeypatch, capsys):
    assert ran(name, ram_path, monkeypatch, capsys)["minutes"] < 10
