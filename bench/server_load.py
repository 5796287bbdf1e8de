"""What does the server do under load? One client against 16 at once, a newcomer among others, and a client that leaves.

    python bench/server_load.py --model out/TinySeek_SFT_final.pkl [--quick]

A real server process, plain HTTP. Steps are counted from outside: one token of a reply that is being streamed is one
step. The last line of stdout is one JSON object.
"""

import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

from bench.ties import first_tie
from chat_agent.load import load
from tools.cli import guarded, parse
from tools.errors import UserError
from tools.template import render_prompt

# lively enough not to end or go round in circles
CLIENTS, GUARD_OFF = 16, {"temperature": 2.0, "repetition_penalty": 1.3}
OPTIONS = [("--model", {"metavar": "文件", "help": "训练好的模型（默认 out/TinySeek_SFT_final.pkl）"}),
           ("--tokens", {"type": int, "default": 200, "metavar": "数", "help": "每个回答最多多少个词元（200）"}),
           ("--rounds", {"type": int, "default": 3, "metavar": "数", "help": "轮流测几遍，取中位数（3）"}),
           ("--quick", {"action": "store_true", "help": "几秒钟的试跑"})]
QUESTIONS = [f"{word}是什么？请说说看。" for word in "苹果 月亮 小船 书店 春天 火车 医生 老师 雨伞 面包 河流 朋友 电影 故事 厨房 地图".split()]


class Server:
    """chat_agent/serve.py on a free port, ended with the block."""

    def __init__(self, path, *words):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "chat_agent/serve.py"), "--model", f"one={path}", "--port", "0", *words],
                                        stdout=subprocess.PIPE, text=True, encoding="utf-8",
                                        env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        found = None
        while not found:
            line = self.process.stdout.readline()
            if not line:
                raise UserError("服务没有起来。", 3)
            found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        self.port = int(found[1])

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.terminate()
        self.process.wait()

    def ask(self, text, **fields):
        """-> an open HTTP response."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        body = {"model": "one", "messages": [{"role": "user", "content": text}], **fields}
        line.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        return line, line.getresponse()

    def whole(self, text, **fields):
        """-> (text, tokens)"""
        line, answer = self.ask(text, **fields)
        body = json.loads(answer.read())
        line.close()
        return body["choices"][0]["message"]["content"], body["usage"]["completion_tokens"]


class Streamed:
    """A streamed reply that a thread reads; `times` holds when each piece came."""

    def __init__(self, server, text, pool, **fields):
        self.times, self.asked = [], time.perf_counter()
        self.line, self.answer = server.ask(text, stream=True, **fields)
        self.work = pool.submit(self.read)

    def read(self):
        try:
            for line in self.answer:
                if b'"content":"' in line and b'"content":""' not in line:
                    self.times.append(time.perf_counter())
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass                                        # hung up

    def wait(self, pieces):
        while len(self.times) < pieces and not self.work.done():
            time.sleep(0.0005)

    def leave(self):
        self.line.sock.shutdown(2)
        return time.perf_counter()


def rate(server, clients, options, pool, seed):
    """Tokens per second of so many clients, each asking in turn until all have had their share."""
    texts = QUESTIONS[:clients]
    begin = time.perf_counter()
    counts = list(
        pool.map(lambda i: server.whole(texts[i], max_tokens=options.tokens, seed=seed + i, **GUARD_OFF)[1],
                 range(clients)))
    return sum(counts) / (time.perf_counter() - begin)


def throughput(path, options, pool):
    with Server(path) as server:
        rate(server, CLIENTS, options, pool, 0)                                 # warms up
        one, many = [], []
        for k in range(options.rounds):
            one.append(statistics.mean(rate(server, 1, options, pool, 10 * k + i) for i in range(2)))
            many.append(rate(server, CLIENTS, options, pool, 100 * k))
        greedy = {"temperature": 0, "max_tokens": options.tokens}
        alone = [server.whole(text, **greedy)[0] for text in QUESTIONS]
        together = list(pool.map(lambda text: server.whole(text, **greedy)[0], QUESTIONS))
    one, many = statistics.median(one), statistics.median(many)
    return {"one_tokens_per_s": round(one, 1), f"clients{CLIENTS}_tokens_per_s": round(many, 1),
            "ratio": round(many / one, 2),
            **compared(path, alone, together)}


def compared(path, alone, together):
    """How many replies are the same, and how many of the others part at or after a tie."""
    model, vocab, _ = load(path, "cpu")
    same = ties = 0
    for text, a, b in zip(QUESTIONS, alone, together):
        same += a == b
        if a != b:
            ids, other = vocab.encode(a), vocab.encode(b)
            parted = next((i for i, (x, y) in enumerate(zip(ids, other)) if x != y), min(len(ids), len(other)))
            tie = first_tie(model, render_prompt([{"role": "user", "content": text}], vocab), ids)
            ties += tie is not None and tie <= parted
    return {"greedy_same": same, "greedy_ties": ties, "greedy_other": len(QUESTIONS) - same - ties}


def newcomer(path, options, pool, times):
    """Steps that a reply under way takes from a second client's question to its first token."""
    steps = []
    with Server(path) as server:
        for k in range(times):
            old = Streamed(server, QUESTIONS[0], pool, max_tokens=1000, seed=k, **GUARD_OFF)
            old.wait(5)
            late = Streamed(server, QUESTIONS[1], pool, max_tokens=2, seed=k, **GUARD_OFF)
            late.wait(1)
            if late.times and not old.work.done():
                steps.append(sum(late.asked < t <= late.times[0] for t in old.times))
            old.leave()
            old.work.result()
    return {"newcomer_steps_max": max(steps, default=None), "newcomers": len(steps)}


def leaver(path, options, pool, times):
    """A client leaves the only place; in how many of its steps does the next in the queue have its first token?"""
    steps = []
    with Server(path, "--max_batch", "1") as server:
        for k in range(times):
            old = Streamed(server, QUESTIONS[0], pool, max_tokens=1000, seed=k, **GUARD_OFF)
            old.wait(20)
            if old.work.done():                         # it had less to say
                continue
            waiting = pool.submit(Streamed, server, QUESTIONS[1], pool, max_tokens=2, seed=k, **GUARD_OFF)
            time.sleep(0.05)
            ended, step = old.work.done(), statistics.median(b - a for a, b in zip(old.times, old.times[1:]))
            left = old.leave()
            late = waiting.result()
            late.wait(1)
            steps += [(late.times[0] - left) / step] if late.times and not ended else []
    return {"slot_free_and_first_token_in_steps": round(statistics.median(steps), 1) if steps else None,
            "leavers": len(steps)}


def main(argv=None):
    manager, options = parse(argv, "服务在压力下：16 个客户端、后来的人、中途离开的人", extra=OPTIONS, only_run_keys=True)
    path, times = options.model or str(Path(manager.config["out_dir"]) / "TinySeek_SFT_final.pkl"), 20
    if options.quick:
        options.tokens, options.rounds, times = 32, 1, 3
    with ThreadPoolExecutor(2 * CLIENTS) as pool:
        result = throughput(path, options, pool)
        print(
            f"一个客户端 {result['one_tokens_per_s']} 词元/秒，{CLIENTS} 个一起 {result[f'clients{CLIENTS}_tokens_per_s']}，"
            f"{result['ratio']} 倍")
        result |= newcomer(path, options, pool, times)
        result |= leaver(path, options, pool, times)
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)
