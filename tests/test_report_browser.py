"""The report in a real browser: drawn, closed to the world, in both themes, on a phone, and what a model said stays
text."""
import json

import pytest

pytest.importorskip("websocket", reason="websocket-client 没有装")

import browser
from test_report import make_run
from tools import report
from tools.config_manager import ConfigManager
from tools.html_report.subjects import subject

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="没有 Chromium")
BLANK = """[...document.querySelectorAll('canvas')].filter((c) => c.width && !c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v)).length"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{name: path} of a report of one run and of a comparison of two."""
    folder, config = tmp_path_factory.mktemp("report"), ConfigManager().config
    one = make_run(folder / "a")
    make_run(folder / "b", steps=20, init_lr=1e-3, n_layer=2,
             header={"identity": {"数据": "d2", "词表": "v1"}, "code": "def456"})
    for name, score in (("a", 0.5), ("b", 0.75)):
        three = {"overall": score, "by_task": {"sum": score}, "phrasings": {"overall": 0.25, "by_task": {"sum": 0.25}},
                 "outside": 0.625}
        (folder / name / "report.json").write_text(json.dumps({"scores": {"sft": three}}), encoding="utf-8")
    subjects = [subject(str(folder / name), config) for name in ("a", "b")]
    return {"one": report.write_report(folder / "one.html", [subject(str(one), config)]),
            "two": report.write_report(folder / "two.html", subjects)}


@pytest.fixture(scope="module")
def tab():
    with browser.browsing() as one:
        yield one


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width,height,phone", [(1300, 900, False), (360, 740, True)])
@pytest.mark.parametrize("name", ["one", "two"])
def test_report_is_drawn_and_asks_for_nothing(tab, pages, tmp_path, name, width, height, phone, scheme):
    tab.size(width, height, phone)
    tab.scheme(scheme)
    tab.events.clear()
    tab.open(pages[name].as_uri())
    tab.wait("document.querySelectorAll('canvas').length >= 3")
    assert tab.run(BLANK) == 0
    assert tab.run("document.documentElement.dataset.theme") == scheme
    assert tab.run("document.documentElement.scrollWidth") <= width
    assert tab.complaints() == [] and tab.foreign_requests("file:///") == []
    scores = tab.run("document.querySelector('#scores').innerText")
    assert "换一种问法" in scores and "25.0 %" in scores and "62.5 % 答得体" in scores
    if name == "two":
        text = tab.run("document.querySelector('#diff').innerText")
        assert all(word in text for word in ("init_lr", "n_layer", "d2", "def456", "指令微调 总分")), text
    tab.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 5000


def test_what_a_model_said_stays_text(tab, pages):
    tab.open(pages["one"].as_uri())
    tab.wait("document.querySelectorAll('.chat').length")
    assert "第10步的回答</script><b>" in tab.run("document.querySelector('.chat').textContent") and tab.run(
        "document.querySelector('.chat b')") is None
