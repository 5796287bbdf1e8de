"""The page in a real browser: asking, streaming, stopping, retrying, editing, other models, curves, nothing run that was said."""
import json
import re

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")
pytest.importorskip("websocket", reason="websocket-client 没有装")

import browser
from toy_server import serving, write_model

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="没有 Chromium")
EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script><b>粗</b> &amp; javascript:alert(1)'
READY = "document.querySelector('#model').options.length > 0"
DONE = "document.querySelector('#stop').hidden && document.querySelector('.message.assistant:last-child .note, .message.assistant:last-child .error')"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "logs").mkdir()
    rows = [{"step": i, "loss": 9 - i / 20, "ppx_1": 500 / i, "ppx_2": 900 / i, "lr": 1e-3, "grad_norm": 1.0, "tok_s": 900, "epoch": 1, "epochs": 1} for i in range(1, 60)]
    (folder / "logs" / "pre_1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{"event": "start", "stage": "pre"}, *rows]))
    models = {"小寻": write_model(folder / "one.pkl"), "续写": write_model(folder / "two.pkl", 1, stage="Pre")}
    with serving(folder, models=models) as server, browser.browsing() as tab:
        tab.size(1300, 820)
        tab.server, tab.folder = server, folder
        yield tab
        assert not tab.foreign_requests(server.url)
        assert "Traceback" not in server.said()


@pytest.fixture(autouse=True)
def fresh(page):
    """An empty browser storage and short replies."""
    page.open(page.server.url + "/health")
    page.run("localStorage.clear()")
    page.run("""localStorage.setItem("tinyseek.settings", '{"max_tokens": 16, "temperature": 1}')""")
    page.open(page.server.url + "/")
    page.wait(READY)
    page.events.clear()
    yield
    assert page.complaints() == []


def ask(page, text, wait=True):
    page.click("#input")
    page.type(text)
    page.key("Enter")
    if wait:
        page.wait(DONE)


def test_page_asks_and_shows_the_streamed_reply(page):
    ask(page, "你好，小寻")
    assert page.text(".message.user .text") == ["你好，小寻"]
    assert page.text(".message.assistant .text")[0]
    assert re.match(r"小寻 · \d+ 词元", page.text(".note")[0]) and page.run("document.querySelector('#announce').textContent").startswith("小寻：")
    assert page.run("document.activeElement.id") == "input"
    page.open("about:blank")                            # a conversation outlives the page
    page.open(page.server.url + "/")
    page.wait("document.querySelectorAll('.message').length === 2")
    assert page.text(".entry") == ["你好，小寻"]


def test_page_stops_a_reply(page):
    page.run("""localStorage.setItem("tinyseek.settings", '{"max_tokens": 1024, "temperature": 1.5}')""")
    for attempt in range(8):                                # the model may have had nothing more to say before the key came
        page.open(page.server.url + f"/?again={attempt}")
        page.wait(READY)
        ask(page, "一直说", wait=False)
        page.wait("document.querySelector('.message.assistant .text')?.textContent.length > 3")
        page.key("Escape")
        page.wait("document.querySelector('#stop').hidden")
        page.wait("document.querySelector('.note')")
        note, text = page.text(".note")[0], page.text(".message.assistant .text")[0]
        if note == "已停止":
            break
    assert note == "已停止"
    ask(page, "接着")                                    # and the next one works
    assert page.text(".message.assistant .text")[0] == text


def test_page_retries_edits_and_copies(page):
    ask(page, "第一句")
    first = page.text(".message.assistant .text")
    page.click("[aria-label=重新回答]")
    page.wait("document.querySelectorAll('.typing').length === 0 && " + DONE)
    page.wait(f"document.querySelector('.message.assistant .text').textContent !== {json.dumps(first[0])}")
    assert len(page.text(".message")) == 2
    ask(page, "第二句")
    page.run("document.querySelectorAll('[aria-label=编辑后重新提问]')[0].click()")
    page.wait("document.querySelector('.editing textarea')")
    page.run("document.querySelector('.editing textarea').value = ''")
    page.type("改过的第一句")
    page.key("Enter")
    page.wait("document.querySelectorAll('.message').length === 2 && " + DONE)
    assert page.text(".message.user .text") == ["改过的第一句"]
    page.run("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")
    page.click(".message.assistant [aria-label=复制]")
    page.wait("window.copied === document.querySelector('.message.assistant .text').textContent")


def test_page_changes_the_model(page):
    page.run("const s = document.querySelector('#model'); s.value = '续写'; s.dispatchEvent(new Event('change'))")
    assert "接着写" in page.run("document.querySelector('#welcome-text').textContent")
    ask(page, "从前")
    assert page.text(".note")[0].startswith("续写 · ")
    page.open(page.server.url + "/?again")
    page.wait(READY)
    assert page.run("document.querySelector('#model').value") == "续写"


def test_page_never_runs_what_is_said(page):
    ask(page, EVIL)
    assert page.text(".message.user .text") == [EVIL]
    conversation = [{"id": "x", "time": 1, "system": EVIL, "messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL, "note": EVIL}]}]
    page.open(page.server.url + "/health")              # the chat saves its own when it is left
    page.run(f"localStorage.setItem('tinyseek.conversations', {json.dumps(json.dumps(conversation))})")
    page.open(page.server.url + "/?again")
    page.wait(READY)
    assert page.text(".message .text") == [EVIL, EVIL]
    assert page.run("document.querySelectorAll('.talk img:not([src^=\"/static/\"]), .talk script, .talk b, .list b').length") == 0
    assert page.run("window.hacked") is None


def test_page_survives_a_spoilt_storage(page):
    for spoilt in ("{", "3", "[1, null, {}]", '[{"id": "a", "messages": [3, {"role": "x", "content": "y"}, {"role": "user", "content": 4}]}]'):
        page.open(page.server.url + "/health")
        page.run(f"localStorage.setItem('tinyseek.conversations', {json.dumps(spoilt)}); localStorage.setItem('tinyseek.settings', {json.dumps(spoilt)})")
        page.open(page.server.url + "/?again")
        page.wait(READY)
    ask(page, "还好吗")
    assert page.text(".message.user .text") == ["还好吗"]


def test_page_keeps_conversations_apart_and_deletes_on_the_second_press(page):
    ask(page, "甲")
    page.key("n", modifiers=1)
    page.wait("!document.querySelector('#welcome').hidden")
    ask(page, "乙")
    assert page.text(".entry") == ["乙", "甲"]
    page.click(".list [aria-label='删除 甲']")
    page.wait("document.querySelector('[data-sure]')")
    assert page.text(".entry") == ["乙", "甲"]
    page.click(".list [data-sure]")
    page.wait("document.querySelectorAll('.entry').length === 1")
    assert page.text(".message.user .text") == ["乙"]


def test_page_draws_the_curves_and_follows_them(page):
    page.click("#tab-curves")
    page.wait("document.querySelectorAll('.card svg').length === 5")
    assert "第 59 步" in page.text("#run-state")[0] and page.text(".card b")[0] == "损失"
    with open(page.folder / "logs" / "pre_1.jsonl", "a") as file:
        file.write('{"step": 60, "loss": 5.5, "epoch": 1, "epochs": 1}\n')
    page.wait("document.querySelector('#run-state').textContent.includes('第 60 步')")
    page.run("document.querySelector('#tab-curves').focus()")
    page.key("ArrowRight")
    assert page.run("document.querySelector('#view-chat').hidden") is False and page.run("document.activeElement.id") == "tab-chat"


def test_page_is_named_for_screen_readers(page):
    ask(page, "你好")
    page.click("#toggle-settings")
    nameless = """[...document.querySelectorAll("button, input, select, textarea")].filter((e) => e.offsetParent !== null &&
        !(e.textContent.trim() && e.tagName === "BUTTON") && !e.getAttribute("aria-label") && !(e.labels && e.labels.length)).map((e) => e.outerHTML)"""
    assert page.run(nameless) == []
    assert page.run("document.documentElement.lang") == "zh-CN" and page.run("document.querySelectorAll('[aria-live]').length") >= 1
    assert page.run("[...document.querySelectorAll('input[type=range]')].every((e) => document.getElementById(e.getAttribute('aria-describedby')))")


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
    finally:
        page.size(1300, 820)
        page.scheme("light")


def contrast(page):
    """WCAG contrast of the body's ink on its paper."""
    ink, paper = ([int(v) for v in page.run(f"getComputedStyle(document.body).{name}").strip("rgb()").split(",")] for name in ("color", "backgroundColor"))

    def light(rgb):
        parts = [v / 255 / 12.92 if v / 255 <= 0.03928 else ((v / 255 + 0.055) / 1.055) ** 2.4 for v in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
    high, low = sorted((light(ink), light(paper)), reverse=True)
    return (high + 0.05) / (low + 0.05)
