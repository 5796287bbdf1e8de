"""chat_agent/answer.py: any model, or a server, answers a file of prompts; stopped and started again, the same file."""
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import toy
import toy_export
from chat_agent import answer
from chat_agent.answering import own_model, server as server_module
from chat_agent.answering.side_by_side import in_order
from toy_server import SMALL, serving, write_model
from tools.errors import UserError
from tools.formats import parse_line, read_rows
from tools.reading.prompts import prompts_of

KEY = "sk-很秘密".encode().hex()


def asked(value, fields=None, plain=False):
    raw = value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode()
    found = prompts_of(raw, lambda line: parse_line(line, fields), plain)
    return found if isinstance(found, str) else [[(m["role"], m["content"]) for m in row.messages] for row in found]


ONE = [[("user", "几点了？")]]


@pytest.mark.parametrize("value", [
    {"prompt": "几点了？"}, {"instruction": "几点了？", "input": "", "output": ""}, {"question": "几点了？"},
    {"question": "几点了？", "answer": "三点"}, {"prompt": "几点了？", "chosen": "三点", "rejected": "不知道"},
    {"messages": [{"role": "user", "content": "几点了？"}]}, "几点了？", {"prompt": "几点了？", "response": None},
    {"conversations": [{"from": "human", "value": "几点了？"}, {"from": "gpt", "value": "三点"}]},
    [{"role": "user", "content": "几点了？"}], {"问题": "几点了？"}, {"conversations": ["几点了？"]},
    {"query": "几点了？", "completion": ""}])
def test_every_shape_that_teaches_a_dialogue_can_ask(value):
    assert asked(value) == ONE


def test_history_system_and_columns_are_asked_too():
    turns = [("system", "你是小船"), ("user", "你好"), ("assistant", "您好"), ("user", "几点了？")]
    said = [{"role": role, "content": content} for role, content in turns]
    assert asked({"messages": said}) == [turns]
    assert asked({"messages": [*said, {"role": "assistant", "content": "三点"}]}) == [turns]
    assert asked({"prompt": "几点了？", "system": "你是小船", "history": [["你好", "您好"]]}) == [turns]
    assert asked({"标题": "几点了？", "output": "旧"}, {"instruction": "标题"}) == ONE
    assert asked("几点了？\n\n你好 {\n".encode(), plain=True) == [*ONE, [("user", "你好 {")]]


@pytest.mark.parametrize("value", [{"text": "正文"}, {"id": 3}, {"messages": []}, b"{", b"\xff", 7, {"prompt": ""},
                                   {"messages": [{"role": "assistant", "content": "三点"}]}, {"prompt": "\ud800"}])
def test_what_asks_nothing_says_why(value):
    assert isinstance(asked(value if isinstance(value, bytes) else json.dumps(value).encode()), str)


# ---------------------------------------------------------------- a model of ours

@pytest.fixture
def place(ram_path, vocab, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return Place(ram_path)


class Place:
    def __init__(self, folder):
        self.folder, self.out = folder, folder / "answers.jsonl"
        self.part = folder / "answers.jsonl.part"
        self.data = toy.write_rows(folder / "q.jsonl", [{"prompt": f"{thing}呢？"} for thing in toy.THINGS])

    def model(self, **changes):
        payload, _ = toy_export.toy_payload(toy_export.toy_vocab(600, "char"), 0, **{**SMALL, **changes})
        return toy_export.saved(self.folder / "one.pkl", payload | {"stage": "SFT"})

    def ask(self, *words, data=None):
        return answer.main(["--data", str(data or self.data), "--output", str(self.out), "--log_dir",
                            str(self.folder / "logs"), "--device", "cpu", *map(str, words)])

    def rows(self):
        return [json.loads(line) for line in self.out.read_text(encoding="utf-8").splitlines()]


def kill_after(monkeypatch, blocks):
    """The process dies in the middle of the block after these."""
    whole, done = own_model.generate_replies, []

    def generate(*args, **options):
        done.append(1)
        if len(done) > blocks:
            raise KeyboardInterrupt
        return whole(*args, **options)
    monkeypatch.setattr(own_model, "generate_replies", generate)


@pytest.mark.parametrize("words", [["--temperature", "0.9", "--samples", "2", "--batch_size", "4", "--seed", "5"],
                                   ["--batch_size", "3"]])
def test_killed_and_started_again_it_writes_the_same_file(place, monkeypatch, words):
    ask = ["--model", place.model(), "--max_new_tokens", 6, "--keep_cut", "--system", "你好", "--dedupe", *words]
    place.ask(*ask)
    whole = place.out.read_bytes()
    assert len(whole.splitlines()) >= len(toy.THINGS)
    place.out.unlink()
    with monkeypatch.context() as patch:
        kill_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            place.ask(*ask)
    assert not place.out.exists()
    with open(place.part, "ab") as torn:                         # and a line was half written
        torn.write(b'{"file": "q.js')
    place.ask(*ask)
    assert place.out.read_bytes() == whole and not place.part.exists()
    assert all(row["messages"][0] == {"role": "system", "content": "你好"} for row in place.rows())


def test_a_model_is_read_once_and_known_by_its_weights(place, monkeypatch):
    from tools import checkpoint
    path, read, whole = place.model(), [], checkpoint.read_torch
    own = checkpoint.weights_hash(checkpoint.read_checkpoint(path)["weights"])
    monkeypatch.setattr(checkpoint, "read_torch", lambda name, *more: read.append(str(name)) or whole(name, *more))
    monkeypatch.setattr(own_model, "generate_replies", lambda *args, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        place.ask("--model", path, "--max_new_tokens", 2)
    assert read == [str(path)] and own in place.part.read_text(encoding="utf-8")


def test_the_answers_are_those_of_the_chat_and_can_be_learned(place):
    from chat_agent.chat import open_session, sampling_of
    path = place.model()
    place.ask("--model", path, "--max_new_tokens", 6, "--keep_cut", "--system", "你好", "--hide_system")
    for row, thing in zip(place.rows(), toy.THINGS, strict=True):
        parser = answer.parse(["--data", "x", "--output", "y", "--max_new_tokens", "6", "--system", "你好"],
                              extra=answer.OPTIONS, only_run_keys=True, reads=answer.READS)[1]
        parser.no_speculate, parser.prompt, parser.box = True, "x", None
        session = open_session(path, "cpu", parser)
        said = "".join(session.ask(f"{thing}呢？", **sampling_of(parser, session.sampling)))
        assert row["messages"] == [{"role": "user", "content": f"{thing}呢？"}, {"role": "assistant", "content": said}]
    assert [r.kind for r in read_rows(place.out)] == ["dialogue"] * len(toy.THINGS)


def test_what_was_not_said_to_its_end_is_named_not_kept(place, capsys):
    path = place.model()
    with pytest.raises(UserError, match="没有说完") as caught:
        place.ask("--model", path, "--max_new_tokens", 3)
    assert caught.value.code == 8 and not place.out.exists() and not place.part.exists()
    wrong = [json.loads(line) for line in (place.folder / "answers.errors.jsonl").read_text("utf-8").splitlines()]
    assert [one["row"] for one in wrong] == list(range(1, 9)) and wrong[0]["file"] == "q.jsonl"
    long = toy.write_rows(place.folder / "long.jsonl", [{"prompt": "月" * 300}, {"prompt": "月"}])
    place.ask("--model", path, "--max_new_tokens", 3, "--keep_cut", data=long)
    assert len(place.rows()) == 1 and "提问太长" in capsys.readouterr().out


def test_positions_can_be_stretched_as_in_the_chat(place):
    long = toy.write_rows(place.folder / "long.jsonl", [{"prompt": word * 150} for word in "月书茶船"])
    place.ask("--model", place.model(), "--max_new_tokens", 3, "--keep_cut", "--rope_scaling", "yarn",
              "--rope_factor", 4, "--rope_original", 128, "--context", 512, data=long)
    assert place.rows()


def test_other_commands_do_not_go_on_with_a_journal(place, monkeypatch):
    ask = ["--model", place.model(), "--max_new_tokens", 3, "--keep_cut", "--batch_size", 2]
    kill_after(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        place.ask(*ask)
    with pytest.raises(UserError, match="另一条命令"):
        place.ask(*ask, "--temperature", 0.5)
    place.part.write_text("我的笔记\n", encoding="utf-8")
    with pytest.raises(UserError, match="不会动它"):
        place.ask(*ask)
    assert place.part.read_text("utf-8") == "我的笔记\n"


@pytest.mark.parametrize("words, said, code", [
    (["--api", "http://x", "--model", "y"], "只写一个", 2), (["--samples", "0"], "--samples", 2),
    (["--samples", "2", "--temperature", "0"], "温度为 0", 2), (["--model", "no.pkl"], "找不到模型", 3),
    (["--api", "http://me:pw@x"], "密钥", 2), (["--api", "ftp://x"], "不是网址", 2), (["--api_model", "x"], "只用于", 2),
    (["--api", "http://x", "--api_extra", "[]"], "JSON", 2), (["--api", "http://x", "--context", "9"], "只用于", 2)])
def test_wrong_commands_are_told(place, words, said, code):
    with pytest.raises(UserError, match=said) as caught:
        place.ask(*words)
    assert caught.value.code == code


def test_a_model_that_only_goes_on_and_files_that_ask_nothing_are_refused(place):
    payload, _ = toy_export.toy_payload(toy_export.toy_vocab(600, "char"), 0, **SMALL)
    path = toy_export.saved(place.folder / "pre.pkl", payload | {"stage": "Pre"})
    with pytest.raises(UserError, match="还没学过对话") as caught:
        place.ask("--model", path)
    assert caught.value.code == 4
    texts = toy.write_rows(place.folder / "t.jsonl", [{"text": "正文"}] * 3)
    with pytest.raises(UserError, match="没有提问") as caught:
        place.ask("--model", place.model(), data=texts)
    assert caught.value.code == 8


# ---------------------------------------------------------------- a server

class Stub:
    """A server whose behaviour is a function of (request number, body) -> (status, answer, headers)."""

    def __init__(self, behave):
        self.behave, self.seen, self.keys, stub = behave, [], [], self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                stub.seen.append(body)
                stub.keys.append(self.headers["Authorization"])
                self.reply(*stub.behave(len(stub.seen), body))

            def do_GET(self):
                self.reply(200, {"data": [{"id": "stub"}]})

            def reply(self, status, answer, headers=None):
                raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(raw)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_):
                pass
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def says(body, finish="stop", **fields):
    text = "答：" + body["messages"][-1]["content"]
    return 200, {"choices": [{"message": {"role": "assistant", "content": text, **fields}, "finish_reason": finish}]}


@pytest.fixture
def waits(monkeypatch):
    found = []
    monkeypatch.setattr(server_module, "sleep", found.append)
    return found


def everything_written(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_server_answers_in_order_and_the_key_is_never_written(place, waits):
    with Stub(lambda n, body: says(body, reasoning_content="想")) as stub:
        place.ask("--api", stub.url, "--concurrency", 3, "--temperature", 0.5, "--system", "短", "--samples", 2,
                  "--seed", 7, "--api_extra", '{"enable_thinking": true}')
    rows = place.rows()
    assert [row["messages"][1]["content"] for row in rows] == [f"{t}呢？" for t in toy.THINGS for _ in range(2)]
    assert rows[0]["messages"][2] == {"role": "assistant", "content": "答：苹果呢？", "reasoning_content": "想"}
    assert set(stub.keys) == {f"Bearer {KEY}"} and KEY.encode() not in everything_written(place.folder)
    assert {one["seed"] for one in stub.seen} == {7, 8} and stub.seen[0]["model"] == "stub"
    assert stub.seen[0]["enable_thinking"] is True and stub.seen[0]["messages"][0]["content"] == "短"


def test_what_may_pass_is_tried_again_and_the_rest_is_named(place, waits, capsys):
    def behave(number, body):
        text = body["messages"][-1]["content"]
        tries = sum(one == body for one in stub.seen)
        if "书" in text and tries < 3:
            return (429, {"error": {"message": f"slow down {KEY}"}}, {"Retry-After": "7"}) if tries == 1 else \
                (200, b"<html>")
        if "月亮" in text:
            return 400, {"error": {"message": f"bad {KEY}"}}
        if "茶" in text:
            return says(body, "length")
        if "雨伞" in text:
            return 200, {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}
        return says(body)
    with Stub(behave) as stub:
        place.ask("--api", stub.url + "/v1/", "--concurrency", 1, "--retries", 3)
    assert [row["messages"][0]["content"][:-2] for row in place.rows()] == ["苹果", "书", "小船", "铅笔", "面包"]
    wrong = [json.loads(line) for line in (place.folder / "answers.errors.jsonl").read_text("utf-8").splitlines()]
    assert [one["row"] for one in wrong] == [4, 5, 6] and "HTTP 400：bad ***" in wrong[0]["reason"]
    assert waits == [7.0, 1.0] and "3 次没有得到回答" in capsys.readouterr().out
    assert KEY.encode() not in everything_written(place.folder)


def test_a_server_that_goes_away_loses_nothing(place, waits):
    with Stub(lambda n, body: says(body)) as stub:
        place.ask("--api", stub.url, "--api_model", "m")
        whole = place.out.read_bytes()
        place.out.unlink()
        gone = []

        def going(number, body):
            gone.extend([1] * ("小船" in body["messages"][-1]["content"]))
            return (503, {}) if gone else says(body)
        stub.behave = going
        with pytest.raises(UserError, match="会接着问") as caught:
            place.ask("--api", stub.url, "--api_model", "m", "--concurrency", 1, "--retries", 1)
        assert caught.value.code == 2 and not place.out.exists()
        assert len(place.part.read_bytes().splitlines()) == 3                  # the header and two answers
        before, stub.behave = len(stub.seen), lambda n, body: says(body)
        place.ask("--api", stub.url, "--api_model", "m", "--concurrency", 2)
        again = {body["messages"][-1]["content"] for body in stub.seen[before:]}
        assert again == {f"{thing}呢？" for thing in toy.THINGS[2:]} and place.out.read_bytes() == whole


@pytest.mark.parametrize("status, said", [(401, "密钥"), (404, "没有这个地址"), (302, "没有这个地址")])
def test_a_wrong_key_or_address_ends_it_at_once(place, waits, status, said):
    with Stub(lambda n, body: (status, {"error": {"message": KEY}}, {"Location": "http://127.0.0.1:1/"})) as stub:
        with pytest.raises(UserError, match=said) as caught:
            place.ask("--api", stub.url, "--concurrency", 1)
    assert KEY not in str(caught.value) and len(stub.seen) <= 4


def test_calls_and_results_reach_the_server_in_its_own_words():
    row = parse_line(json.dumps({"tools": [{"name": "时间", "parameters": {}}], "messages": [
        {"role": "user", "content": "几点"},
        {"role": "assistant", "content": "", "reasoning_content": "要查",
         "tool_calls": [{"function": {"name": "时间", "arguments": {"城市": "京"}}}]},
        {"role": "tool", "content": "3"}, {"role": "assistant", "content": "三点"}]}).encode())
    body = server_module._asked(row.messages[:-1])
    call = body["messages"][1]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"城市": "京"} and "reasoning_content" not in body["messages"][1]
    assert body["messages"][2]["tool_call_id"] == call["id"]
    assert body["tools"][0]["function"]["name"] == "时间" and body["tools"][0]["type"] == "function"


def test_results_come_in_order_and_errors_where_they_stand():
    assert list(in_order(lambda x: x * x, range(50), 3)) == [x * x for x in range(50)]
    found = []
    with pytest.raises(ZeroDivisionError):
        for one in in_order(lambda x: 6 // (x - 4), range(50), 3):
            found.append(one)
    assert len(found) == 4


def test_our_own_server_answers(place):
    pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
    with serving(place.folder, "--api_key", KEY, models={"one": write_model(place.folder / "one.pkl")}) as running:
        few = toy.write_rows(place.folder / "few.jsonl", [{"prompt": "你好"}, {"prompt": "月"}])
        place.ask("--api", running.url, "--max_new_tokens", 5, "--keep_cut", data=few)
    assert [row["messages"][0]["content"] for row in place.rows()] == ["你好", "月"]
