"""The page in a real browser: its curves, and how it looks: names for screen readers, themes, contrast, a phone."""
import json

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")
pytest.importorskip("websocket", reason="websocket-client 没有装")
import browser
from test_serve_page import READY, ask, choose, fresh, page

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="没有 Chromium")


@pytest.fixture
def logs(page):
    """The folder of logs; what a test adds goes again."""
    folder = page.folder / "logs"
    yield folder
    for path in folder.iterdir():
        if path.name != "pre_1.jsonl":
            path.unlink()


def test_curves_page_lists_runs_only_says_how_they_stand_and_takes_up_a_new_one(page, logs):
    (logs / "bad_lines.jsonl").write_text('{"file": "a.jsonl", "line": 3, "reason": "x"}\n')
    head = {"event": "start", "stage": "dpo", "start": "2026-01-02 03:04:05", "run": "dpo_1", "config.name": "expA",
            "config.out_dir": str(page.folder),
            "steps": 200}
    rows = [
        {"step": i, "loss": 1.0063 + i / 1e5, "accuracy": 0.5, "margin": 0.1, "lr": 1e-3, "epoch": 1, "epochs": 1000}
        for i in (6, 7)]
    (logs / "dpo_1.jsonl").write_text(
        "".join(
            json.dumps(row) + "\n" for row in [head, *rows,
                                               {"event": "save", "step": 7, "name": "TinySeek_DPO_final.pkl"}]))
    (logs / "sft_1.jsonl").write_text(json.dumps({**head, "stage": "sft", "run": "sft_1", "config.name": None}) + "\n")
    page.click("#tab-curves")
    page.wait("document.querySelector('#run').options.length === 3")
    choose(page, "run", "dpo_1")
    page.wait("document.querySelector('#run-state').textContent.includes('已完成')")
    assert page.text("#run-state") == ["已完成 · 第 7/200 步"] and "偏好对齐 · expA · 01-02 03:04" in page.text("#run option")
    page.wait("document.querySelectorAll('.card svg').length === 4")
    assert "ln 2" in page.text(".card small")[0] and page.text(".card b")[:3] == ["损失", "选对的比例", "间隔"]
    for card in range(4):
        ticks = page.run(
            f"[...document.querySelectorAll('.card')[{card}].querySelectorAll('.tick')].map((t) => t.getAttribute('x') "
            f"+ ' ' + t.textContent)")
        assert len(set(ticks)) == len(ticks)
        # steps are whole
        assert not [t for t in ticks if t.split()[0] not in ("4", "48", "468") and "." in t.split()[1]]
    choose(page, "other", "pre_1")
    page.wait("document.querySelectorAll('.card .beside.line').length >= 2")
    assert "虚线：" in page.text(".card small")[0]
    choose(page, "run", "sft_1")
    page.wait("document.querySelector('#curves-empty').textContent.includes('就停了')")
    (logs / "lora_1.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [{"event": "start", "stage": "lora"}, {"step": 1, "loss": 2.0}]))
    page.wait(
        "document.querySelector('#run').value === 'lora_1' && document.querySelector('#run-state')"
        ".textContent.startsWith('进行中')")


def test_page_draws_the_curves_and_follows_them(page):
    page.click("#tab-curves")
    page.wait("document.querySelectorAll('.card svg').length === 5")
    assert "第 59 步" in page.text("#run-state")[0] and page.text(".card b")[0] == "损失"
    with open(page.folder / "logs" / "pre_1.jsonl", "a") as file:
        file.write('{"step": 60, "loss": 5.5, "epoch": 1, "epochs": 1}\n')
    page.wait("document.querySelector('#run-state').textContent.includes('第 60 步')")
    page.run("document.querySelector('#tab-curves').focus()")
    page.key("ArrowRight")
    assert page.run("document.querySelector('#view-chat').hidden") is False and page.run(
        "document.activeElement.id") == "tab-chat"


def test_page_is_named_for_screen_readers(page):
    ask(page, "你好")
    page.click("#toggle-settings")
    nameless = """[...document.querySelectorAll("button, input, select, textarea")].filter((e) => e.offsetParent !== null &&
        !(e.textContent.trim() && e.tagName === "BUTTON") && !e.getAttribute("aria-label") && !(e.labels && e.labels.length)).map((e) => e.outerHTML)"""
    assert page.run(nameless) == []
    assert page.run("document.documentElement.lang") == "zh-CN" and page.run(
        "document.querySelectorAll('[aria-live]').length") >= 1
    assert page.run(
        "[...document.querySelectorAll('input[type=range]')].every((e) => "
        "document.getElementById(e.getAttribute('aria-describedby')))")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width,height,phone", [(1300, 820, False), (360, 740, True)])
def test_page_fits_both_themes_and_a_phone(page, scheme, width, height, phone, tmp_path):
    page.scheme(scheme)
    page.size(width, height, phone)
    page.open(page.server.url + "/?size")               # panels settle with the page, not under the pointer
    page.wait(READY)
    try:
        ask(page, "这句话很长，" * 30 + "w" * 300)
        for view in ("chat", "curves"):
            page.click(f"#tab-{view}")
            page.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
            assert page.run("document.documentElement.scrollWidth") <= width
            page.screenshot(tmp_path / f"{view}_{scheme}_{width}.png")
            assert (tmp_path / f"{view}_{scheme}_{width}.png").stat().st_size > 5000
        assert contrast(page) >= 4.5
        faint(page)
        if phone:
            page.click("#tab-chat")
            assert page.run(SMALL) == []
    finally:
        page.size(1300, 820)
        page.scheme("light")


# Buttons and fields in sight that a finger would miss.
SMALL = """[...document.querySelectorAll("button, input, select, textarea")].filter((e) => e.offsetParent !== null &&
    getComputedStyle(e).visibility === "visible").map((e) => [e, e.getBoundingClientRect()]).filter(([, r]) => r.height < 43.5 || r.width < 43.5)
    .map(([e, r]) => e.outerHTML.slice(0, 120) + " " + r.width + "x" + r.height)"""
# Text in sight with less contrast to what lies behind it than WCAG AA asks for.
PALE = """(() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (c) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0, 0, 1, 1);
    const d = canvas.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; };
  const light = (c) => c.slice(0, 3).map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] > 0.9) return c; } return [255, 255, 255]; };
  const texts = [...document.querySelectorAll("body *")].filter((e) => e.getClientRects().length && getComputedStyle(e).visibility === "visible"
    && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) && !e.closest(".hidden, .skip, [hidden], noscript, option"));
  return texts.map((e) => { const s = getComputedStyle(e); const ink = e.closest("svg") ? s.fill : s.color;
    const [a, b] = [light(rgba(ink)), light(behind(e))].sort((x, y) => y - x); return [(a + 0.05) / (b + 0.05), e.textContent.slice(0, 30), ink]; })
    .filter(([ratio]) => ratio < 4.5);
})()"""


def faint(page):
    """No pale text in the conversation with its settings and list, nor on the curves page."""
    page.click("#tab-chat")
    page.run("document.querySelector('#settings').hidden = false")
    assert page.run(PALE) == []
    page.run("document.querySelector('#settings').hidden = true; document.querySelector('#list-panel').hidden = false")
    assert page.run(PALE) == []
    page.click("#tab-curves")
    page.wait("document.querySelectorAll('.card svg').length > 0")
    assert page.run(PALE) == []


def contrast(page):
    """WCAG contrast of the body's ink on its paper."""
    ink, paper = ([int(v) for v in page.run(f"getComputedStyle(document.body).{name}").strip("rgb()").split(",")]
                  for name in ("color", "backgroundColor"))

    def light(rgb):
        parts = [v / 255 / 12.92 if v / 255 <= 0.03928 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    high, low = sorted((light(ink), light(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)
