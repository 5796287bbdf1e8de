"""A real server process around small models with random weights, for the tests of chat_agent/serve.py."""
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import toy_export

ROOT = Path(__file__).resolve().parents[1]
SMALL = dict(n_layer=2, n_head=2, d_model=32, d_c=16, d_q=24, d_r=8, hidden=24, other_experts=4, shared_experts=1,
             keep=2, n_dense_layer=0)


def write_model(path, seed=0, vocab=None, **changes):
    """A checkpoint of a small lively model -> its path. It talks nonsense, but the same nonsense every time."""
    payload, _ = toy_export.toy_payload(vocab or toy_export.toy_vocab(600, "char"), seed, **{**SMALL, **changes})
    return toy_export.saved(path, payload)


class Running:
    """A server process. url: where it is; lines: what it has said so far."""

    def __init__(self, process, url, said):
        self.process, self.url, self.said = process, url, said

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    def call(self, path, body=None, key=None, raw=None, method=None, headers=None, timeout=120):
        """-> (status, parsed JSON or bytes, headers)."""
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        for name, value in {**({"Authorization": f"Bearer {key}"} if key else {}), **(headers or {})}.items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return _read(answer.status, answer)
        except urllib.error.HTTPError as error:
            with error:
                return _read(error.code, error)

    def chat(self, text="你好", **fields):
        """The text of a greedy reply, unless `fields` say otherwise."""
        status, body, _ = self.call("/v1/chat/completions", {
            "model": "one", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 12,
            **fields})
        assert status == 200, body
        return body["choices"][0]["message"]["content"]

    def rss(self):
        """Resident memory in KiB."""
        return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1])

    def stop(self, wait=60):
        """SIGTERM -> the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(wait)


def _read(status, answer):
    raw = answer.read()
    kind = answer.headers.get("content-type", "")
    return status, json.loads(raw) if "json" in kind and raw else raw, answer.headers


@contextlib.contextmanager
def serving(folder, *arguments, models=None, environment=None, wait=300):
    """Start chat_agent/serve.py on a free port -> Running; stopped afterwards. models: {name: path}, default one small
    model `one`."""
    models = {"one": write_model(folder / "one.pkl")} if models is None else models
    words = [word for name, path in models.items() for word in ("--model", f"{name}={path}")]
    log = open(folder / f"server_{time.monotonic_ns()}.txt", "w+", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "chat_agent" / "serve.py"), *words, "--port", "0", "--log_dir",
         str(folder / "logs"), *arguments],
        stdout=log, stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8", **(environment or {})})

    def said():
        return Path(log.name).read_text(encoding="utf-8")
    try:
        end = time.monotonic() + wait
        while not (found := re.search(r"已就绪：(http://\S+?:\d+)", said())):
            assert process.poll() is None and time.monotonic() < end, said()
            time.sleep(0.05)
        yield Running(process, found[1], said)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        log.close()
