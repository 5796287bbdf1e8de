"""The page in a real browser: asking, streaming, stopping, retrying, editing, other models, curves, nothing run that
was said."""
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
DONE = ("document.querySelector('#stop').hidden && document.querySelector('.message.assistant:last-child .note, "
        ".message.assistant:last-child .error')")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "logs").mkdir()
    rows = [
        {"step": i, "loss": 9 - i / 20, "ppx_1": 500 / i, "ppx_2": 900 / i, "lr": 1e-3, "grad_norm": 1.0, "tok_s": 900,
         "epoch": 1, "epochs": 1} for i in range(1, 60)]
    (folder / "logs" / "pre_1.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in [{"event": "start", "stage": "pre"}, *rows]))
    models = {"小寻": write_model(folder / "one.pkl"), "续写": write_model(folder / "two.pkl", 1, stage="Pre")}
    with serving(folder, models=models) as server, browser.browsing() as tab:
        tab.size(1300, 820)
        tab.server, tab.folder = server, folder
        yield tab
        assert not tab.foreign_requests(server.url)
        assert "Traceback" not in server.said()


SIZES = [(1300, 820, False), (390, 844, True)]
LOOKS = [pytest.param((scheme, size), id=f"{scheme}-{size[0]}", marks=[] if first else pytest.mark.slow)
         for scheme, size, first in (("light", SIZES[0], True), ("dark", SIZES[1], False),
                                     ("dark", SIZES[0], False), ("light", SIZES[1], False))]


@pytest.fixture(autouse=True, params=LOOKS)
def fresh(page, request):
    """An empty browser storage and short replies; in both themes, on a desk and on a phone."""
    page.scheme(request.param[0])
    page.size(*request.param[1])
    page.open(page.server.url + "/health")
    page.run("localStorage.clear(); sessionStorage.clear()")
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


def open_list(page):
    """On a phone the list of conversations lies behind a button."""
    if page.run("document.querySelector('#new-chat').offsetParent === null"):
        page.click("#toggle-list")
        page.wait("document.querySelector('#new-chat').offsetParent")


def choose(page, select, value):
    page.run(
        f"(() => {{ const s = document.querySelector('#{select}'); s.value = '{value}'; s.dispatchEvent(new Event('change')); }})()")


def test_page_asks_and_shows_the_streamed_reply(page):
    ask(page, "你好，小寻")
    assert page.text(".message.user .text") == ["你好，小寻"]
    assert page.text(".message.assistant .text")[0]
    assert re.match(r"小寻 · \d+ 词元", page.text(".note")[0]) and page.run(
        "document.querySelector('#announce').textContent").startswith("小寻：")
    assert page.run("document.activeElement.id") == "input"
    page.open("about:blank")                            # a conversation outlives the page
    page.open(page.server.url + "/")
    page.wait("document.querySelectorAll('.message').length === 2")
    assert page.text(".entry") == ["你好，小寻"]


# Press Escape as soon as a few characters are there; from outside the key may come when all is said.
ESCAPE = """new Promise((done) => { const look = () => {
    if (document.querySelector('.note')) return done();
    if (!(document.querySelector('.message.assistant .text')?.textContent.length > 3)) return setTimeout(look, 1);
    document.dispatchEvent(new KeyboardEvent('keydown', { key: 'Escape' }));
    return done(); }; look(); })"""


def test_page_stops_a_reply(page):
    page.run(talkative(page.server))
    # the model may have had nothing more to say before the key came
    for attempt in range(8):
        page.open(page.server.url + f"/?again={attempt}")
        page.wait(READY)
        ask(page, "慢慢说", wait=False)
        page.run(ESCAPE)
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
    choose(page, "model", "续写")
    assert page.text("#welcome-title") == ["你起个头，我接着写"] and page.text(".idea") == ["从前", "今天", "我们"]
    ask(page, "从前")
    assert page.text(".note")[0].startswith("续写 · ")
    page.open(page.server.url + "/?again")
    page.wait(READY)
    assert page.run("document.querySelector('#model').value") == "续写"


def test_page_never_runs_what_is_said(page):
    ask(page, EVIL)
    assert page.text(".message.user .text") == [EVIL]
    conversation = [
        {"id": "x", "time": 1, "system": EVIL,
         "messages": [{"role": "user", "content": EVIL}, {"role": "assistant", "content": EVIL, "note": EVIL}]}]
    page.open(page.server.url + "/health")              # the chat saves its own when it is left
    page.run(
        f"localStorage.clear(); localStorage.setItem('tinyseek.conversations', {json.dumps(json.dumps(conversation))})")
    page.run("sessionStorage.clear()")
    page.open(page.server.url + "/?again")
    page.wait(READY)
    assert page.text(".message .text") == [EVIL, EVIL]
    assert page.run(
        "document.querySelectorAll('.talk img:not([src^=\"/static/\"]), .talk script, .talk b, .list b').length") == 0
    assert page.run("window.hacked") is None


def test_page_survives_a_spoilt_storage(page):
    for spoilt in ("{", "3", "null", '{"messages": 3}', '{"messages": [null, 3]}', "[1, null, {}]",
                   '[{"id": "a", "messages": [3, {"role": "x", "content": "y"}, {"role": "user", "content": 4}]}]'):
        page.open(page.server.url + "/health")
        page.run(
            f"localStorage.setItem('tinyseek.conversations', {json.dumps(spoilt)}); "
            f"localStorage.setItem('tinyseek.chat.x', {json.dumps(spoilt)}); localStorage.setItem('tinyseek.settings', "
            f"{json.dumps(spoilt)})")
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
    open_list(page)
    page.click(".list [aria-label='删除 甲']")
    page.wait("document.querySelector('[data-sure]')")
    assert page.text(".entry") == ["乙", "甲"]
    page.click(".list [data-sure]")
    page.wait("document.querySelectorAll('.entry').length === 1")
    assert page.text(".message.user .text") == ["乙"]


def test_page_says_what_the_model_no_longer_sees(page):
    page.run("""localStorage.setItem("tinyseek.settings", '{"max_tokens": 16}')""")
    page.open(page.server.url + "/?again")
    page.wait(READY)
    for n in range(4):
        ask(page, f"第{n}句，" + "很久以前的事情。" * 4)
        page.wait(f"document.querySelectorAll('.message.assistant .note').length === {n + 1}")
    assert page.text(".forgot") == ["以上内容已超出模型的记忆"]
    before = page.run(
        "[...document.querySelector('.forgot').parentElement.children].indexOf(document.querySelector('.forgot'))")
    assert before >= 2 and before % 2 == 0                  # above a question
    used, context = map(int, page.text("#use")[0].removeprefix("记忆 ").split("/"))
    assert 0 < used <= context == 128 and page.run("document.querySelector('#s-max_tokens').max") == "128"
    page.key("n", modifiers=1)
    page.wait("!document.querySelector('#welcome').hidden")
    ask(page, "太长了" * 60)
    assert "128" in page.text(".warning")[0] and page.text(".forgot") == []


def test_page_shows_an_empty_reply_as_one(page):
    stop = "window.fetch = ((old) => (u, o) => old(u, o && o.body ? {...o, body: o.body.replace('{', '{\"stop\": [\"" + "%s" + "\"], ')} : o))(window.fetch)"
    ask(page, "你好")
    page.run("document.querySelector('#new-chat').click()")
    page.run("""localStorage.setItem("tinyseek.settings", '{"max_tokens": 16, "temperature": 0}')""")
    page.open(page.server.url + "/?again")
    page.wait(READY)
    page.run("document.querySelector('#new-chat').click()")
    first = page.server.chat("你好", model="小寻")[0]
    page.run(stop % first)
    ask(page, "你好")
    assert page.text(".message.assistant .text") == ["（空的回答）"] and page.text(".nothing")
    page.open("about:blank")
    page.open(page.server.url + "/?again")
    page.wait(READY)
    page.wait("document.querySelector('.message')")
    assert page.text(".message.assistant .text") == ["（空的回答）"]


def test_page_does_not_ask_a_failed_question_again_with_the_next(page):
    page.run("""window.asked = []; window.fetch = ((old) => (u, o) => { if (o && o.body) { window.asked.push(JSON.parse(o.body).messages);
        if (window.asked.length === 1) return Promise.reject(new TypeError("Failed to fetch")); } return old(u, o); })(window.fetch)""")
    ask(page, "没人听见")
    assert page.text(".error") == ["连不上服务。它还在运行吗？"]
    ask(page, "再来")
    page.wait("window.asked.length === 2")
    assert page.run("window.asked[1]") == [{"role": "user", "content": "再来"}]


def talkative(server):
    """Settings with which 小寻 has a lot to say to 慢慢说, as a JavaScript statement."""
    how = {"max_tokens": 1000, "temperature": 2}
    seed = next(s for s in range(99) if len(server.chat("慢慢说", model="小寻", seed=s, **how)) > 60)
    return f"localStorage.setItem('tinyseek.settings', '{json.dumps({**how, 'seed': seed})}')"


def test_page_keeps_a_draft_and_a_reply_while_another_conversation_is_open(page):
    page.run(talkative(page.server))
    page.open(page.server.url + "/?again")
    page.wait(READY)
    ask(page, "慢慢说", wait=False)
    page.wait("document.querySelector('.message.assistant .text')?.textContent.length > 3")
    page.run("document.querySelector('#new-chat').click()")
    page.wait("!document.querySelector('#welcome').hidden")
    page.click("#input")
    page.type("写到一半")
    page.open("about:blank")
    page.open(page.server.url + "/?again")
    page.wait(READY)
    assert page.run("document.querySelector('#input').value") == "写到一半" and page.text(".entry") == ["慢慢说"]
    page.run("document.querySelector('.entry').click()")
    page.wait("document.querySelectorAll('.message').length === 2")
    assert len(page.text(".message.assistant .text")[0]) > 3 and page.text(".error") == []
    ask(page, "再慢慢说", wait=False)                       # and without leaving the page it is finished in the background
    page.run("document.querySelector('#new-chat').click()")
    page.wait("!document.querySelector('#welcome').hidden")
    page.run("document.querySelector('.entry').click()")
    page.wait("document.querySelectorAll('.message').length === 4 && document.querySelector('#stop').hidden")
    assert "词元" in page.text(".message.assistant:last-child .note")[0]


def test_page_suggests_what_the_model_can_answer(page):
    assert page.text(".idea") == ["你好", "你是谁？", "你会做什么？"] and page.text("#welcome-title") == ["你好，我是小寻"]
    page.click(".idea")
    page.wait(DONE)
    assert page.text(".message.user .text") == ["你好"]


def test_page_leaves_what_nobody_moved_to_the_model(page):
    page.run(
        """localStorage.setItem("tinyseek.settings",
        '{"temperature":0.3,"top_p":0.9,"repetition_penalty":1,"max_tokens":256,"seed":null}')""")
    page.open(page.server.url + "/?again")                  # as an earlier version stored it
    page.wait(READY)
    page.run(
        "window.fetch = ((old) => (u, o) => { if (o && o.body) window.asked = JSON.parse(o.body); return old(u, o); })"
        "(window.fetch)")
    ask(page, "你好")
    assert set(page.run("window.asked")) == {"model", "messages", "stream", "stream_options", "return_token_ids"}
    assert page.run("document.querySelector('#s-temperature').value") == "0"


def test_page_says_in_chinese_that_the_server_went_away_or_wants_a_key(tmp_path, page):
    with serving(tmp_path, "--api_key", "geheim") as locked:
        page.open(locked.url + "/")
        page.wait("!document.querySelector('#toast').hidden")
        assert page.text("#toast") == ["这个服务要密钥。请在设置里填写 API 密钥。"] and page.run("document.activeElement.id") == "key"
        page.type("geheim")
        page.run("document.querySelector('#key').blur()")
        page.wait(READY)
        page.run(talkative(page.server))                   # the same weights
        page.open(locked.url + "/?again")
        page.wait(READY)
        ask(page, "慢慢说", wait=False)
        page.wait("document.querySelector('.message.assistant .text')?.textContent.length > 3")
        locked.process.kill()
        page.wait("document.querySelector('.error')")
        assert page.text(".error") == ["服务断开了，回答没有写完。它还在运行吗？"]
        page.events.clear()
