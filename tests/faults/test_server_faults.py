"""The server among hostile and unlucky clients. Small counts here; the full ones, and the clock, are marked slow."""
import asyncio
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")

import server_faults as bad
from toy_server import serving

HEALTH = (
    "import http.client, json, sys, time\nport, end, took, wrong = int(sys.argv[1]), time.monotonic() + "
    "float(sys.argv[2]), [], 0\n"
          "while time.monotonic() < end:\n    begin = time.monotonic()\n    try:\n"
          "        c = http.client.HTTPConnection('127.0.0.1', port, timeout=30); c.request('GET', '/health')\n"
          "        wrong += c.getresponse().status != 200; c.close()\n    except OSError:\n        wrong += 1\n"
          "    took.append(time.monotonic() - begin); time.sleep(0.02)\n"
          "took.sort(); print(json.dumps({'n': len(took), 'wrong': wrong, 'p99': took[int(len(took) * 0.99)], 'max': "
          "took[-1]}))")


def report(**values):
    print(json.dumps(values), flush=True)


def counted(small, full):
    """A short run in every test run, the full one where asked for: python -m pytest -m slow."""
    return pytest.mark.parametrize("count", [small, pytest.param(full, marks=pytest.mark.slow)])


@counted(150, 10_000)
def test_garbage_is_answered_and_forgotten(tmp_path, count):
    width = 32 if count < 1000 else 256
    with serving(tmp_path) as server:
        # buffers take their size
        asyncio.run(bad.throw_garbage(server.port, max(60, count // 10), width, seed=-1))
        greedy, memory = server.chat(), server.rss()
        results = asyncio.run(bad.throw_garbage(server.port, count, width))
        statuses = [status for status, _, _ in results]
        assert server.process.poll() is None and server.chat() == greedy and "Traceback" not in server.said()
        assert not [r for r in results if r[0] and r[0] >= 500]
        assert not [r for r in results if r[0] and r[0] >= 400 and r[1] >= 4096]
        assert sum(status in (400, 404, 405, 413) for status in statuses) > count * 0.7
        grown = server.rss() / memory - 1
        report(garbage=count, at_once=width,
               answers={str(s): statuses.count(s) for s in sorted(set(statuses), key=str)}, grown=round(grown, 4))
        if count > 1000:
            assert grown < 0.05
        assert server.stop() == 143


@counted(3, 25)
def test_slow_clients_do_not_slow_the_rest(tmp_path, count):
    """`count` seconds: clients that send a byte a second, idle connections, readers that never read."""
    full = count > 10
    slow, silent, deaf = (2000, 10_000, 200) if full else (60, 150, 10)
    bad_bytes = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 1000000\r\n\r\n"
    _many_files()
    with serving(tmp_path) as server:
        async def crowd():
            half = [bad.drip(server.port, count, bad_bytes) for _ in range(slow // 2)]
            half += [bad.slow_body(server.port, count, bad_bytes) for _ in range(slow - slow // 2)]
            await asyncio.gather(*half, *(bad.idle(server.port, count) for _ in range(silent)),
                                 *(bad.never_read(server.port, count) for _ in range(deaf)))
        poller = subprocess.Popen([sys.executable, "-c", HEALTH, str(server.port), str(count)], stdout=subprocess.PIPE)
        asyncio.run(crowd())
        seen = json.loads(poller.communicate(timeout=300)[0])
        report(slow=slow, idle=silent, deaf=deaf, **seen)
        assert seen["wrong"] == 0 and seen["n"] > 0 and server.process.poll(
            ) is None and "Traceback" not in server.said()
        if full:
            assert seen["p99"] < 0.25
        assert _chat_patiently(server)


def _chat_patiently(server):
    """A good reply, once those who were asked for before are through."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        status, body, headers = server.call("/v1/chat/completions", bad.GOOD)
        if status == 200:
            return body["choices"][0]["message"]["content"]
        assert status == 429 and headers["retry-after"]
        time.sleep(0.5)
    raise AssertionError("still busy")


def _many_files():
    try:
        import resource
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@counted(40, 1000)
def test_those_who_leave_free_their_slots(tmp_path, count):
    with serving(tmp_path, "--max_batch", "4", "--max_queue", "60") as server:
        begun = asyncio.run(bad.at_once(count, 32, lambda i: bad.leave_midway(server.port, i)))
        goods = 100 if count > 100 else 20
        results = asyncio.run(bad.at_once(goods, 8, lambda i: bad.talk(server.port, bad.post(bad.GOOD))))
        report(left=count, begun=sum(begun), good=sum(status == 200 for status, _ in results), of=goods)
        assert sum(begun) == count and all(status == 200 for status, _ in results) and "Traceback" not in server.said()
        assert len({json.loads(body)["choices"][0]["message"]["content"] for _, body in results}) == 1


def test_tricks_with_paths_and_names_read_nothing_outside(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "secret.txt").write_text("root:x:hidden")
    (tmp_path / "secret.jsonl").write_text('{"step": 1, "loss": 77.25}\n')
    tricks = bad.path_tricks(500)
    opened, asked = _audited(tmp_path, tricks)
    # 503: there is no model
    assert len(asked) == 1000 and all(400 <= status < 500 or status == 503 for status, _ in asked)
    assert not [body for _, body in asked if b"root:" in body or b"77.25" in body or len(body) >= 4096]
    report(tricks=len(tricks), answers=len(asked), outside=len(opened))
    assert opened == []


def _audited(folder, tricks):
    """Run the application in this process and watch every file it opens. -> (paths opened outside, [(status, body)])"""
    from chat_agent.server.app import create_app
    from chat_agent.server.curves import Curves
    from chat_agent.server.engine import Engine
    from chat_agent.server.limits import Limits
    from chat_agent.server.models import Models
    opened, watching = [], [False]

    def hook(event, arguments):
        if watching[0] and event == "open" and isinstance(arguments[0], (str, bytes)):
            opened.append(os.fsdecode(arguments[0]))
    sys.addaudithook(hook)
    engine = Engine(Limits(), lambda news: None)
    engine.start()

    async def run():
        with ThreadPoolExecutor(1) as pool:
            app = create_app(Models([]), engine, Curves(folder / "logs", Limits()), Limits(), pool)
            assert (await _direct(app, "GET", "/curves"))[0] == 200             # what is imported late is imported now
            await _direct(app, "POST", "/v1/chat/completions", bad.GOOD)
            watching[0], asked = True, []
            for target, name in tricks:
                asked.append(await _direct(app, "GET", target))
                asked.append(await _direct(app, "POST", "/v1/chat/completions", {**bad.GOOD, "model": name}))
            watching[0] = False
            return asked
    try:
        asked = asyncio.run(run())
    finally:
        watching[0] = False
        engine.close()
    return [path for path in opened if not path.endswith((".py", ".pyc"))], asked


async def _direct(app, method, target, body=None):
    """A request as uvicorn hands it over, whatever the target looks like -> (status, body)."""
    raw, _, query = target.partition("?")
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
             "method": method, "scheme": "http",
             "path": unquote(raw), "raw_path": raw.encode(), "query_string": query.encode(), "root_path": "",
             "state": {},
             "headers": [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")], "client": ("127.0.0.1", 1),
             "server": ("127.0.0.1", 80)}
    sent = []

    async def receive():
        return {"type": "http.request", "body": json.dumps(body).encode() if body else b"", "more_body": False}

    async def send(message):
        sent.append(message)
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent[1:])


def test_a_pipelining_client_that_leaves_is_noticed(tmp_path):
    with serving(tmp_path, "--max_batch", "1", "--max_queue", "0") as server:
        async def run():
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = bad.POST.replace("connection: close\r\n", "")
            writer.write(bad.post({**bad.GOOD, "max_tokens": 1000, "temperature": 1.5}, head=head)
                         + b"GET /health HTTP/1.1\r\n")
            await asyncio.sleep(0.3)
            writer.transport.abort()
        asyncio.run(run())
        assert _chat_patiently(server)


def test_a_full_queue_says_when_to_come_back(tmp_path):
    with serving(tmp_path, "--max_batch", "1", "--max_queue", "1") as server:
        async def run():
            asks = [bad.post({**bad.GOOD, "max_tokens": 200, "temperature": 1.5, "n": 2})] * 6
            return await asyncio.gather(*(bad.talk(server.port, ask) for ask in asks))
        results = asyncio.run(run())
        assert {status for status, _ in results} <= {200, 429} and 200 in {status for status, _ in results}
        for status, body in results:
            assert status == 200 or json.loads(body)["error"]["code"] == "queue_full"


def test_too_many_connections_push_out_the_idle_ones():
    from chat_agent.server.limits import Limits
    from chat_agent.server.protocol import Guard
    closed = []

    class Transport:
        def __init__(self, name):
            self.name = name

        def abort(self):
            closed.append(self.name)

    class Connection:
        stuck = None

        def __init__(self, name, quiet):
            self.transport, self.quiet = Transport(name), quiet
    guard = Guard(Limits(connections=3))
    for name, quiet in [("busy", False), ("old", True), ("young", True), ("new", True), ("newer", True)]:
        guard.add(Connection(name, quiet))
    assert closed == ["old", "young"]
    full = Guard(Limits(connections=1))
    full.add(Connection("working", False))
    full.add(Connection("late", False))
    assert closed[2:] == ["late"]                       # nobody who is being answered has to go
