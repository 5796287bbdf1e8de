"""Conversations in a real browser: found again, kept in files, answered in versions, Markdown that stays harmless."""
import json

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")
pytest.importorskip("websocket", reason="websocket-client 没有装")

import browser
from test_serve_looks import PALE, SMALL
from test_serve_page import DONE, LOOKS, READY, open_list
from toy_server import serving, write_model

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="没有 Chromium")
MARKDOWN = """# 标题
先说**重点**，再说*轻的*，3*4*5 不变，`x < 1` 也是。

- 一
  - 二
1. 甲
2. 乙

| 水果 | 斤 |
|---|--:|
| 苹果 | <b>3</b> |

```python
if x < 1:
    print("<script>window.hacked = 1</script>")
```
> 引用
[好](https://example.org/a) [坏](javascript:window.hacked=1) ![图](https://example.org/x.png)
<img src=x onerror="window.hacked=1">"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations")
    with serving(folder, models={"小寻": write_model(folder / "one.pkl")}) as server, browser.browsing() as tab:
        tab.server = server
        yield tab
        assert not tab.foreign_requests(server.url)


@pytest.fixture(autouse=True, params=LOOKS)
def fresh(page, request):
    page.scheme(request.param[0])
    page.size(*request.param[1])
    keep(page, [])
    page.events.clear()
    yield
    assert page.complaints() == []


def keep(page, conversations):
    """The browser's storage holds exactly these lists of (question, reply)."""
    page.open(page.server.url + "/health")
    page.run("localStorage.clear(); sessionStorage.clear()")
    page.run("""localStorage.setItem("tinyseek.sampling", '{"max_tokens": 16, "temperature": 1}')""")
    for number, pairs in enumerate(conversations):
        messages = [{"role": role, "content": text} for pair in pairs
                    for role, text in zip(("user", "assistant"), pair)]
        text = json.dumps({"time": 100 - number, "messages": messages})
        page.run(f"localStorage.setItem('tinyseek.chat.c{number}', {json.dumps(text)})")
    page.open(page.server.url + "/?again")
    page.wait(READY)


def test_markdown_is_shown_and_never_runs(page):
    keep(page, [[("写一点", MARKDOWN)]])
    page.wait("document.querySelector('.message.assistant pre')")
    here = ".message.assistant .text "
    assert page.text(here + "[role=heading]") == ["标题"] and page.text(here + "strong") == ["重点"]
    assert page.text(here + "em") == ["轻的"] and page.text(here + ".para code") == ["x < 1"]
    assert page.text(here + "ul li") == ["一", "二"] and page.text(here + "ol li") == ["甲", "乙"]
    assert page.text(here + "th") == ["水果", "斤"] and page.text(here + "td") == ["苹果", "<b>3</b>"]
    assert page.text(here + "pre") == ['if x < 1:\n    print("<script>window.hacked = 1</script>")']
    assert page.text(here + "blockquote") == ["引用"]
    assert page.run(f"[...document.querySelectorAll('{here} a')].map((a) => a.href)") == ["https://example.org/a",
                                                                                      "https://example.org/x.png"]
    assert page.run(f"document.querySelectorAll('{here} img, {here} script, {here} b').length") == 0
    assert "3*4*5" in page.text(here)[0] and "<img src=x" in page.text(here)[0] and page.run("window.hacked") is None
    assert page.run(PALE) == []


def test_what_is_no_markdown_stays_to_the_letter(page):
    for plain in ("|苹果|三斤|没有|", "1+2=3，得*3", "  空格\n\n\n换行  ", "#标签 -1 ~~~ > 小于", "**没有结束", "```"):
        keep(page, [[("写一点", plain)]])
        page.wait("document.querySelectorAll('.message').length === 2")
        if plain != "```":
            assert page.text(".message.assistant .text") == [plain]


def test_a_question_answered_again_keeps_the_earlier_answers(page):
    page.click("#input")
    page.type("你好")
    page.key("Enter")
    page.wait(DONE)
    texts = [page.text(".message.assistant .text")[0]]
    for count in (2, 3):
        page.click("[aria-label=重新回答]")
        page.wait(f"document.querySelector('.versions span')?.textContent === '{count}/{count}' && " + DONE)
        texts.append(page.text(".message.assistant .text")[0])
    page.click("[aria-label=上一个回答]")
    page.wait("document.querySelector('.versions span').textContent === '2/3'")
    assert page.text(".message.assistant .text") == [texts[1]]
    page.open("about:blank")
    page.open(page.server.url + "/?again")                  # as it was left
    page.wait("document.querySelector('.versions')")
    assert page.text(".message.assistant .text") == [texts[1]] and page.text(".versions span") == ["2/3"]
    page.click("[aria-label=上一个回答]")
    page.wait("document.querySelector('.versions span').textContent === '1/3'")
    assert page.text(".message.assistant .text") == [texts[0]]
    page.run("document.querySelector('[aria-label^=透视]').click()")
    page.wait("document.querySelectorAll('#glass-tokens button').length")


def test_conversations_are_found_by_name_and_by_what_was_said(page):
    keep(page, [[("天气怎么样", "下雨")], [("讲个故事", "从前有座山")], [("Hello", "你好")]])
    page.wait("document.querySelectorAll('.entry').length === 3")
    open_list(page)
    for wanted, found in (("天气", ["天气怎么样"]), ("从前", ["讲个故事"]), ("HELLO", ["Hello"]), ("没有的", [])):
        page.run("document.querySelector('#search').value = ''")
        page.click("#search")
        page.type(wanted)
        page.wait(f"document.querySelectorAll('.entry').length === {len(found)}")
        assert page.text(".entry") == found
    assert page.text("#conversations .hint") == ["没有找到"]


PUT = """(() => {{ const data = new DataTransfer(); data.items.add(new File([{text}], "x.json"));
    const input = document.querySelector('#import-file'); input.files = data.files;
    input.dispatchEvent(new Event('change')); }})()"""
SAVED = """(() => { window.saved = null; const old = URL.createObjectURL;
    URL.createObjectURL = (blob) => { blob.text().then((text) => { window.saved = text; }); return old(blob); };
    HTMLAnchorElement.prototype.click = function () { window.named = this.download; }; })()"""


def test_conversations_go_into_a_file_and_come_back(page):
    keep(page, [[("甲", MARKDOWN)], [("乙", "二")]])
    page.run("localStorage.setItem('tinyseek.title.c1', '我的名字'); localStorage.setItem('tinyseek.system.c1', '老师')")
    page.run(SAVED)
    open_list(page)
    page.click("#export")
    text = page.wait("window.saved")
    assert page.run("window.named").endswith(".json")
    page.run(PUT.format(text=json.dumps(text)))
    page.wait("document.querySelector('#toast').textContent.startsWith('导入了 0 段对话')")
    keep(page, [])
    page.run(PUT.format(text=json.dumps(text)))
    page.wait("document.querySelectorAll('.entry').length === 2")
    assert page.text(".entry") == ["甲", "我的名字"] and page.text("#toast") == ["导入了 2 段对话。"]
    assert page.run("localStorage.getItem('tinyseek.system.c1')") == "老师"
    page.run("document.querySelectorAll('.entry')[0].click()")
    page.wait("document.querySelector('.message.assistant pre')")
    changed = json.loads(text)
    changed["conversations"][0]["messages"][1]["content"] = "另一个回答"
    page.run(PUT.format(text=json.dumps(json.dumps(changed))))      # differs from what is here: both stay
    page.wait("document.querySelectorAll('.entry').length === 3")


@pytest.mark.parametrize("wrong", ["{", "[]", '{"format": "other"}', '{"format": "tinyseek-conversations"}'])
def test_other_files_are_refused_in_words(page, wrong):
    page.run(PUT.format(text=json.dumps(wrong)))
    page.wait("document.querySelector('#toast').textContent.startsWith('读不懂')")
    page.run(PUT.format(text=json.dumps(json.dumps({"format": "tinyseek-conversations", "conversations": [
        3, None, {"messages": 1}, {"id": "../x", "messages": [{"role": "user", "content": "好"}, {"role": "x"}]}]}))))
    page.wait("document.querySelectorAll('.entry').length === 1")
    assert page.text(".entry") == ["好"]


def test_the_list_and_its_tools_suit_a_phone_in_the_dark(page):
    page.scheme("dark")
    page.size(390, 844, True)
    keep(page, [[("甲", MARKDOWN)]])
    page.wait("document.querySelector('.message.assistant pre')")
    assert page.run("document.documentElement.scrollWidth <= innerWidth") and page.run(PALE) == []
    page.click("#toggle-list")
    page.wait("document.querySelector('#search').offsetParent")
    assert page.run(SMALL) == [] and page.run(PALE) == []
