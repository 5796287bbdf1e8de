"""The page's other views in a real browser, in both themes and on a phone: looking into a reply, models side by side,
a model that grows."""
import json
import time

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")
pytest.importorskip("websocket", reason="websocket-client 没有装")

import browser
import toy_export
from test_serve_looks import PALE, SMALL
from test_serve_page import DONE, LOOKS, READY
from model.generate import generate
from tools.template import render_prompt
from toy_server import SMALL as SHAPE
from toy_server import serving, write_model

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="没有 Chromium")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    (folder / "out").mkdir()
    models = {"小寻": with_exam(folder / "one.pkl"), "续写": write_model(folder / "two.pkl", 1, stage="Pre")}
    with serving(folder, "--out_dir", str(folder / "out"), models=models) as server, browser.browsing() as tab:
        (folder / "logs").mkdir(exist_ok=True)
        tab.server, tab.folder, tab.logs = server, folder, folder / "logs"
        yield tab
        assert not tab.foreign_requests(server.url)
        assert "Traceback" not in server.said()


def with_exam(path):
    """A model whose checkpoint keeps four questions, of which it knows every second one."""
    vocab = toy_export.toy_vocab(600, "char")
    payload, model = toy_export.toy_payload(vocab, 0, **SHAPE)
    questions = [[{"role": "user", "content": f"第{n}题"}] for n in range(4)]
    replies = [vocab.decode(generate(model.eval(), render_prompt(one, vocab), 64)) for one in questions]
    rows = [{"task": "sum", "messages": one, "answer": reply if n % 2 else "谁也答不出"}
            for n, (one, reply) in enumerate(zip(questions, replies))]
    payload["talk"] = {"exam": [*rows, "spoilt", {"messages": []}]}
    return toy_export.saved(path, payload)


@pytest.fixture(autouse=True, params=[pytest.param(*look.values, id=look.id, marks=look.marks if i > 1 else ())
                                      for i, look in enumerate(LOOKS)])
def fresh(page, request):
    """Both themes, on a desk and on a phone -> whether it is the phone."""
    scheme, size = request.param
    page.scheme(scheme)
    page.size(*size)
    page.open(page.server.url + "/health")
    page.run("localStorage.clear(); sessionStorage.clear()")
    page.run("""localStorage.setItem("tinyseek.sampling", '{"max_tokens": 16, "temperature": 1, "seed": 5}')""")
    visit(page)
    page.events.clear()
    yield size[2]
    assert page.complaints() == []


def visit(page, where="/?again"):
    page.open(page.server.url + where)
    page.wait(READY)


def ask(page, text):
    page.click("#input")
    page.type(text)
    page.key("Enter")
    page.wait(DONE)


def check_looks(page, phone):
    """Nothing beyond the edge, no pale text, on a phone nothing too small for a finger."""
    assert page.run("document.documentElement.scrollWidth <= innerWidth")
    assert page.run(PALE) == []
    if phone:
        assert page.run(SMALL) == []


TOKENS = "document.querySelectorAll('#glass-tokens button').length"


def test_any_reply_can_be_looked_into(page, fresh):
    ask(page, "你好，小寻")
    said = page.text(".message.assistant .text")[0]
    page.click("[aria-label^=透视]")
    count = page.wait(TOKENS)
    assert page.run("document.title") == "透视 · 小寻" and page.text("#glass-title") == ["你好，小寻"]
    shown = "".join(page.text("#glass-tokens button"))
    assert shown == said.replace("\n", "⏎").replace(" ", "␣") or "<0x" in shown
    page.click(f"#glass-tokens li:nth-child({min(3, count)}) button")
    chosen = page.run("document.querySelector('#glass-tokens [aria-pressed=true]').textContent")
    assert page.text("#glass-detail .big")[0].startswith(chosen)
    assert page.run("document.querySelectorAll('#glass-detail tbody tr').length") == 6
    assert page.run("document.querySelectorAll('#glass-detail .layer').length") == 2
    assert "第二个输出头" in page.text("#glass-detail")[0]
    assert page.run("""[...document.querySelectorAll('#glass-tokens button')].every((b) =>
        b.style.getPropertyValue('--p') > 0)""")
    page.run("document.activeElement.focus()")
    page.key("ArrowRight")
    page.wait("document.querySelectorAll('#glass-tokens button')[3].getAttribute('aria-pressed') === 'true'")
    check_looks(page, fresh)


def test_another_head_is_looked_at_on_demand(page):
    ask(page, "你好，小寻")
    page.click("[aria-label^=透视]")
    page.wait(TOKENS)
    shares = "[...document.querySelectorAll('#glass-prompt li')].map((e) => e.style.getPropertyValue('--a')).join()"
    before = page.run(shares)
    assert page.text("#glass-layer option") == ["第 1 层", "第 2 层"] and page.text("#glass-head option")[-1] == "第 2 头"
    page.run("""(() => { const s = document.querySelector('#glass-layer'); s.value = '0';
        s.dispatchEvent(new Event('change')); })()""")
    page.wait(f"{shares} !== {json.dumps(before)}")


def test_a_reply_of_an_earlier_version_has_no_ids_and_is_cut_again(page):
    kept = {"time": 1, "messages": [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "天好"}]}
    page.open(page.server.url + "/health")
    page.run("sessionStorage.clear()")
    page.run(f"localStorage.setItem('tinyseek.chat.old', {json.dumps(json.dumps(kept))})")
    visit(page)
    page.wait("document.querySelectorAll('.message').length === 2")
    page.click("[aria-label^=透视]")
    page.wait(TOKENS)
    assert "".join(page.text("#glass-tokens button")) == "天好"


def test_a_text_is_shown_cut_into_words_beside_characters(page, fresh):
    page.click("#tab-glass")
    page.wait("document.querySelectorAll('#cut-words li').length")
    page.run("document.querySelector('#cut-text').select()")
    page.type("天好<b>")
    page.wait("document.querySelectorAll('#cut-characters li').length === 5")
    assert page.text("#cut-characters li") == list("天好<b>") and "5 个字切成" in page.text("#cut-note")[0]
    assert page.run("document.querySelectorAll('#cut-words li small').length >= 2")
    check_looks(page, fresh)


def write_log(path, steps, **head):
    """The log of a run with everything that the page shows, up to the last of `steps`."""
    rows = [{"event": "start", "stage": "sft", "start": "2026-01-02 03:04:05", "steps": 40, **head}]
    for step in steps:
        loads = [[[0.5, 0.2, 0.2, 0.1][(e + step) % 4] for e in range(4)] for _ in range(3)]
        rows += [{"step": step, "loss": 5 - step / 20, "lr": 1e-3, "expert_load": loads},
                 *({"event": "sample", "step": step, "prompt": f"问{n}", "reply": f"<b>第{step}步</b>"} for n in range(5)),
                 {"event": "exam", "step": step, "tasks": ["sum", "自己的"], "right": [step // 20, 0], "asked": [2, 2]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_the_page_shows_a_model_growing(page, fresh):
    log = page.logs / "sft_1.jsonl"
    write_log(log, [10, 20])
    plan = {"plan": [["pre", "预训练"], ["sft", "指令微调"], ["end", "打分"]], "now": "sft", "results": {"pre": {}},
            "seconds": {"pre": 300.0}, "left": [400, 40], "since": time.time()}
    (page.folder / "out" / "progress.json").write_text(json.dumps(plan))
    page.click("#tab-curves")
    page.wait("document.querySelectorAll('.talks dd').length === 5 && document.querySelector('.heat canvas')")
    assert page.text("#plan li") == ["✓预训练5.0 分钟", "●指令微调正在做", "3打分还没开始"]
    assert page.text("#plan-note") == ["第 2/3 步，到全部做完约还要 7 分钟"]
    assert set(page.text(".talks dd")) == {"<b>第20步</b>"} and page.text(".talks .value") == ["第 20 步"]
    assert page.text(".task") == ["两位数加法1/2", "自己的0/2"]
    assert page.run("document.querySelectorAll('.heat canvas').length") == 3
    page.run("""(() => { const s = document.querySelector('.talks input'); s.value = 0;
        s.dispatchEvent(new Event('input')); })()""")
    assert set(page.text(".talks dd")) == {"<b>第10步</b>"} and page.text(".task")[0] == "两位数加法0/2"
    check_looks(page, fresh)
    write_log(log, [10, 20, 30])                            # somebody who looks back is left where they are
    page.wait("document.querySelector('.talks input').max === '2'")
    assert set(page.text(".talks dd")) == {"<b>第10步</b>"}
    page.run("""(() => { const s = document.querySelector('.talks input'); s.value = 2;
        s.dispatchEvent(new Event('input')); })()""")
    write_log(log, [10, 20, 30, 40])                        # the others follow
    page.wait("document.querySelector('.talks dd').textContent === '<b>第40步</b>'")
    pixels = """(() => { const c = document.querySelector('.heat canvas');
        return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].join() })()"""
    assert len(set(page.run(pixels).split(","))) > 4
    log.unlink()
    notes = {"now": None, "failed": "sft", "notes": {"sft": "坏行太多：数据第 3 行。"}}       # before a line was written
    (page.folder / "out" / "progress.json").write_text(json.dumps({**plan, **notes}))
    page.wait("document.querySelector('#plan-note').textContent === '坏行太多：数据第 3 行。'")
    assert page.text("#plan li")[1] == "✗指令微调没有做完" and not page.text("#run-state")[0]
    check_looks(page, fresh)


def test_the_page_of_a_server_that_went_away_keeps_what_it_showed_and_says_so(page, tmp_path):
    (tmp_path / "logs").mkdir()
    rows = write_log(tmp_path / "logs" / "sft_1.jsonl", [10, 40])
    with open(tmp_path / "logs" / "sft_1.jsonl", "a") as file:
        file.write(json.dumps({"event": "save", "step": 40, "name": "TinySeek_SFT_final.pkl"}) + "\n")
        file.writelines(json.dumps(row) + "\n" for row in rows[-6:])        # what it answers in the end
    with serving(tmp_path) as gone:
        page.open(gone.url + "/#curves")
        page.wait("document.querySelector('.heat canvas')")
        assert page.text("#run-state")[0].startswith("已完成")
        gone.stop()
    page.wait("document.querySelector('#run-state').textContent.includes('服务停了')")
    assert page.text("#run-state")[0].startswith("已完成") and page.run("document.querySelector('.talks dd') !== null")
    page.events.clear()


def test_models_answer_side_by_side(page, fresh):
    page.click("#tab-arena")
    page.wait("document.querySelectorAll('#arena-models input:checked').length === 2")
    page.click("#arena-text")
    page.type("你好<b>")
    page.click("#arena-go")
    page.wait("""document.querySelector('#arena-stop').hidden &&
        [...document.querySelectorAll('#arena-columns .value')].filter((e) => e.textContent).length === 2""")
    assert page.text("#arena-columns .head b") == page.run(
        "[...document.querySelectorAll('#arena-models label')].map((e) => e.textContent)")
    texts = page.text("#arena-columns .text")
    assert len(texts) == 2 and all(texts) and texts[0] != texts[1]
    assert page.text("#arena-columns .soft") == ["你好<b>"] * 2
    check_looks(page, fresh)
    page.click("#arena-models label:nth-child(2)")
    page.wait("document.querySelector('#arena-go').disabled")       # one alone is no comparison


def test_an_exam_counts_while_the_models_sit_it(page, fresh):
    page.click("#tab-arena")
    page.wait("!document.querySelector('#arena-exam').hidden")
    page.click("#arena-exam")
    page.wait("""document.querySelector('#arena-stop').hidden &&
        document.querySelectorAll('#arena-columns .marks-list li').length === 8""")
    assert page.text("#arena-columns .value")[0] == "答对 2 / 4"
    assert page.run("document.querySelectorAll('.column:first-child .right').length") == 2
    assert "应是：谁也答不出" in page.text(".column:first-child .wrong .soft")
    assert page.text(".column:first-child li")[0].count("两位数加法：第") == 1
    check_looks(page, fresh)


def test_the_exam_is_the_checkpoints_own(page):
    status, found, _ = page.server.call("/exam/%E5%B0%8F%E5%AF%BB")
    assert status == 200 and [q["title"] for q in found["questions"]] == ["两位数加法"] * 4
    assert page.server.call("/exam/none")[0] == 404
    assert {m["id"]: m["exam"] for m in page.server.call("/v1/models")[1]["data"]} == {"小寻": 4, "续写": 0}
