"""One model answers alike in the terminal, on the page and over the API where nobody says how: as the table in its
checkpoint says."""
import json
import subprocess
import sys

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")

import browser
import toy_export
from chat_agent.exports.gguf.modelfile import parameters
from chat_agent.load import talk_of
from model.sampling import DEFAULTS
from toy_server import ROOT, SMALL, serving

ASKED = ["你好", "今天吃什么？", "妈妈说下雨了，快回家。", "一", "小船在河上，" * 8]
TABLES = {"old": None, "usual": {}, "own": {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "max_new_tokens": 24}}


def talk(name):
    return None if TABLES[name] is None else {"sampling": {**DEFAULTS, **TABLES[name]}, "prompts": ["几点了？"]}


def write(path, name):
    payload, _ = toy_export.toy_payload(toy_export.toy_vocab(600, "char"), 0, **SMALL)
    return toy_export.saved(path, payload | ({"talk": talk(name)} if talk(name) else {}))


def by_terminal(path, text):
    done = subprocess.run(
        [sys.executable, str(ROOT / "chat_agent" / "chat.py"), "--model", str(path), "--prompt", text],
                          capture_output=True, timeout=300, check=True, env=None)
    return done.stdout.decode("utf-8").replace("\r\n", "\n").removesuffix("\n")


def by_api(server, name, text):
    status, body, _ = server.call("/v1/chat/completions",
                                  {"model": name, "messages": [{"role": "user", "content": text}]})
    assert status == 200
    return body["choices"][0]["message"]["content"]


def by_page(page, server, name, text):
    page.run(
        f"localStorage.clear(); sessionStorage.clear(); localStorage.setItem('tinyseek.model', {json.dumps(name)})")
    page.open(server.url + "/?" + name)
    page.wait("document.querySelector('#model').options.length > 0")
    page.run(
        f"document.querySelector('#input').value = {json.dumps(text)}; document.querySelector('#composer')"
        f".requestSubmit()")
    page.wait("document.querySelector('#stop').hidden && document.querySelector('.message.assistant .note')")
    return page.text(".message.assistant .text")[0]


@pytest.mark.skipif(browser.CHROMIUM is None, reason="没有 Chromium")
def test_terminal_page_and_api_give_the_same_reply(tmp_path):
    pytest.importorskip("websocket", reason="websocket-client 没有装")
    paths = {name: write(tmp_path / f"{name}.pkl", name) for name in TABLES}
    said = {}
    with serving(tmp_path, models=paths) as server, browser.browsing() as page:
        page.open(server.url + "/health")
        for name, path in paths.items():
            for text in ASKED if name == "usual" else ASKED[:2]:
                replies = [by_terminal(path, text), by_api(server, name, text), by_page(page, server, name, text)]
                assert replies[0] == replies[1] == replies[2]
                said[name, text] = replies[0]
    assert said["old", "你好"] == said["usual", "你好"] != said["own", "你好"]


def test_a_modelfile_says_the_whole_table_in_ollamas_words():
    lines = parameters({"talk": talk("own"), "run": {}, "stage": "SFT"})
    assert {"PARAMETER temperature 0", "PARAMETER repeat_penalty 1.3", "PARAMETER num_predict 24",
            "PARAMETER top_k 0"} <= set(lines)
    assert not any("no_repeat" in line for line in lines)


@pytest.mark.parametrize(
    "spoilt", [None, 3, {}, {"sampling": None, "prompts": None}, {"sampling": {"temperature": -3}},
               {"sampling": {"top_p": "x"}}])
def test_a_checkpoint_without_a_good_table_gets_the_usual_one(spoilt):
    found = talk_of({"talk": spoilt, "run": {"json_data_path": ["x/demo_sft.jsonl"]}, "stage": "SFT"})
    assert found["sampling"] == DEFAULTS and "34加57等于几？" in found["prompts"]
    assert talk_of({"run": {}, "stage": "Pre"})["prompts"] == ["从前", "今天", "我们"]
