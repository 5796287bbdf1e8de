"""Thoughts, calls and results on the page: seen, opened, sent on; a tool that fails or hangs."""
import json
import os

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")
pytest.importorskip("websocket", reason="websocket-client 没有装")

import browser
import toy
from tools.acting.toolbox import toolbox
from tools.formats import read_rows, row_texts
from tools.vocab import Vocab
from toy_server import serving

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="没有 Chromium")
MINE = '''
def price(good: str):
    return {"好苹果": "三元<b>一斤</b>"}[good]
'''
DONE = "document.querySelector('#stop').hidden && document.querySelector('.message.assistant:last-child .note')"


def row(good, result, answer, offered):
    call = {"type": "function", "function": {"name": "price", "arguments": {"good": good}}}
    return {"tools": offered, "messages": [
        {"role": "user", "content": f"{good}多少钱"},
        {"role": "assistant", "content": None, "reasoning_content": f"要查{good}", "tool_calls": [call]},
        {"role": "tool", "content": result}, {"role": "assistant", "content": answer}]}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("acting")
    (folder / "my_tools.py").write_text(MINE, encoding="utf-8")
    offered = toolbox([str(folder / "my_tools.py")]).definitions
    rows = [row("好苹果", "三元<b>一斤</b>", "一斤三元。", offered)] * 40
    texts = [text for one in read_rows(toy.write_rows(folder / "rows.jsonl", rows)) for text in row_texts(one)]
    vocab = Vocab.create_vocab(texts, 600, "char", texts=True, progress=False)
    options = toy.toy_options(folder, vocab, "sft", rows, max_len=256, max_epochs=8, batch_size=2)
    assert toy.train(options, "sft").exit == 0
    models = dict.fromkeys(("小寻", "大寻"), f"{options['out_dir']}/TinySeek_SFT_final.pkl")
    with serving(folder, "--tools", str(folder / "my_tools.py"), models=models) as server, browser.browsing() as tab:
        tab.size(1300, 820)
        tab.server = server
        tab.open(server.url + "/")
        tab.wait("document.querySelector('#model').options.length > 0")
        yield tab
        assert "Traceback" not in server.said() and not tab.foreign_requests(server.url)


def ask(page, text):
    page.run("document.querySelector('#new-chat').click()")
    page.click("#input")
    page.type(text)
    page.key("Enter")
    page.wait(DONE)


def photographed(page, name):
    """Where ACTING_SHOTS names a folder: both themes, wide and narrow."""
    folder = os.environ.get("ACTING_SHOTS")
    for theme in ("light", "dark") if folder else ():
        page.run(f"document.documentElement.dataset.theme = '{theme}'")
        for width in (1300, 390):
            page.size(width, 820)
            page.screenshot(f"{folder}/{name}_{theme}_{width}.png")
    page.size(1300, 820)


def test_W4_the_page_shows_thought_call_and_result(page):
    ask(page, "好苹果多少钱")
    assert page.text(".message.assistant .text") == ["一斤三元。"]
    assert page.text(".step summary") == ["想了 5 个字", "用 price三元<b>一斤</b>"]
    assert not page.run("[...document.querySelectorAll('.step')].some((one) => one.open)")
    page.run("document.querySelectorAll('.step summary').forEach((one) => one.click())")
    assert page.text(".step p") == ["要查好苹果"]
    assert page.text(".step dt") == ["good", "得到"] and page.text(".step dd") == ["好苹果", "三元<b>一斤</b>"]
    assert page.run("document.querySelectorAll('.step b').length") == 1     # what a tool says is text
    photographed(page, "open")
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    page.open(page.server.url + "/")                                        # kept, and sent on as it was
    page.wait("document.querySelectorAll('.step').length === 2")
    assert page.complaints() == []


# What the page gets in place of the server's answer about a tool.
INSTEAD = """window.asked ||= window.fetch;
window.fetch = (path, how) => path === "/tools" ? (%s)(how) : asked(path, how)"""
FAILS = "() => Promise.resolve(new Response(JSON.stringify({ result: '出错：坏了', ok: false })))"
HANGS = """(how) => new Promise((_, no) =>
  how.signal.addEventListener("abort", () => no(new DOMException("", "AbortError"))))"""


def test_W4_a_tool_that_fails_or_hangs_is_seen_and_can_be_stopped(page):
    page.run(INSTEAD % FAILS)
    ask(page, "好苹果多少钱")
    assert page.text(".step.failed summary")[0] == "用 price出错：坏了"
    photographed(page, "failed")
    page.run(INSTEAD % HANGS)
    page.run("document.querySelector('#new-chat').click()")
    page.click("#input")
    page.type("好苹果多少钱")
    page.key("Enter")
    page.wait("[...document.querySelectorAll('.step.used .result')].some((one) => one.textContent === '正在用…')")
    page.key("Escape")
    page.wait(DONE)
    assert "已停止" in page.text(".message.assistant .note")[0] and page.complaints() == []
    page.run("window.fetch = asked")


def test_W4_the_server_runs_only_its_own_tools(page):
    call = page.server.call
    assert call("/tools", {"name": "price", "arguments": {"good": "好苹果"}})[1]["ok"]
    for name in ("../price", "calculate", "_read"):
        status, body, _ = call("/tools", {"name": name, "arguments": {}})
        assert status == 200 and not body["ok"] and body["result"].startswith("出错")
    for wrong in ({}, {"name": 3, "arguments": {}}, {"name": "price", "arguments": "x"}, []):
        assert call("/tools", wrong)[0] == 400
    assert json.dumps(call("/v1/models")[1]).count("my_tools") == 0


def test_W4_models_side_by_side_use_tools_and_show_calls_and_results(page):
    page.open(page.server.url + "/")
    page.click("#tab-arena")
    page.wait("document.querySelectorAll('#arena-models input:checked').length === 2")
    page.click("#arena-text")
    page.type("好苹果多少钱")
    page.key("Enter")
    page.wait("""document.querySelector('#arena-stop').hidden &&
        [...document.querySelectorAll('#arena-columns .value')].filter((e) => e.textContent).length === 2""")
    assert page.text("#arena-columns .head b") == ["小寻", "大寻"]
    assert page.text("#arena-columns .text") == ["一斤三元。"] * 2
    assert page.text("#arena-columns .step summary") == ["想了 5 个字", "用 price三元<b>一斤</b>"] * 2
    page.run("document.querySelectorAll('#arena-columns .step summary').forEach((one) => one.click())")
    assert page.text("#arena-columns .step dd") == ["好苹果", "三元<b>一斤</b>"] * 2
    assert page.run("document.querySelectorAll('#arena-columns .step dd b').length") == 0
    photographed(page, "arena")
    assert page.run("document.documentElement.scrollWidth <= innerWidth") and page.complaints() == []
    page.run(INSTEAD % FAILS)
    page.click("#arena-go")
    page.wait("document.querySelectorAll('#arena-columns .step.failed').length === 2")
    page.wait("document.querySelector('#arena-stop').hidden")
    page.run("window.fetch = asked")


def test_W4_a_request_whose_tools_do_not_fit_or_were_never_learned_gets_one_clear_line(page):
    def asked(count):
        tools = [{"type": "function", "function": {"name": f"tool_{i}", "parameters": {
            "type": "object", "properties": {"city": {"type": "string"}, "day": {"type": "string"}}}}}
            for i in range(count)]
        return page.server.call("/v1/chat/completions", {
            "model": "小寻", "messages": [{"role": "user", "content": "好苹果多少钱"}], "tools": tools, "max_tokens": 40})
    for count in (50, 2000):
        status, body, _ = asked(count)
        assert status == 400 and body["error"]["param"] == "tools" and "请少给几个工具" in body["error"]["message"]
    status, body, _ = asked(20)
    assert status == 200 and "光是工具的说明就有" in body["tinyseek"]["notices"][0]
    status, body, _ = asked(1)
    assert status == 200 and not any("工具的说明" in said for said in body["tinyseek"]["notices"])
