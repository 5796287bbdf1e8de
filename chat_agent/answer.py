"""Any model answers a file of prompts: rows to fine-tune another model on.

    python chat_agent/answer.py --model out/TinySeek_SFT_final.pkl --data questions.jsonl --output answers.jsonl
    python chat_agent/answer.py --api http://127.0.0.1:8000/v1 --data questions.txt --output answers.jsonl

Killed and started again it goes on where it was, and the output is the same as of a run that was never stopped.
"""
import hashlib
import json
import sys
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

import torch
from tqdm import tqdm

from chat_agent.answering.journal import Journal
from chat_agent.answering.own_model import OwnModel
from chat_agent.answering.rows import without_repeats
from chat_agent.answering.server import Server, Unreachable
from chat_agent.answering.side_by_side import in_order
from chat_agent.chat import OPTIONS as OF_CHAT
from chat_agent.load import model_paths, stretch_of
from tools.cli import guarded, parse
from tools.config.keys import STRETCH
from tools.errors import UserError
from tools.formats import (BadLines, count_dropped, dropped_text, expand_paths, fields_of, is_plain_text, iter_lines,
                           parse_line)
from tools.reading.hub import local_files
from tools.reading.prompts import prompts_of

READS = ("device", "threads", "out_dir", "name", "log_dir", "cache_dir", "max_bad_share", "text_field", "columns",
         "hf_subset", "hf_split", "hf_streaming", *STRETCH)
NOT_HERE = ("--model", "--prompt", "--stats", "--show_thinking", "--no_speculate")
ONLY_OWN, ONLY_API = ("context", "thinking", "no_repeat_ngram"), ("api_model", "api_extra")
LOST = 3        # prompts in a row without any answer after which the server counts as gone
OPTIONS = [
    ("--model", {"metavar": "文件", "help": "由这个 .pkl 回答，任何学过对话的都行（默认 out/TinySeek_SFT_final.pkl）"}),
    ("--api", {"metavar": "网址", "help": "改由这个 OpenAI 式的服务回答，如 http://127.0.0.1:8000/v1"}),
    ("--api_model", {"metavar": "名字", "help": "用服务的哪个模型；服务只有一个时不用写"}),
    ("--key_env", {"metavar": "变量", "default": "OPENAI_API_KEY",
                   "help": "密钥在哪个环境变量里（OPENAI_API_KEY）；密钥不会写进任何文件"}),
    ("--api_extra", {"metavar": "JSON", "help": "请求里另加的字段，如 '{\"enable_thinking\": false}'"}),
    ("--concurrency", {"type": int, "default": 4, "metavar": "数", "help": "同时向服务发几个请求（4）"}),
    ("--retries", {"type": int, "default": 5, "metavar": "数", "help": "服务忙、断线时再试几次，越等越久（5）"}),
    ("--timeout", {"type": float, "default": 120.0, "metavar": "秒", "help": "一个请求最多等多久（120）"}),
    ("--data", {"nargs": "+", "metavar": "F", "required": True,
                "help": "提问：能拿来微调的格式都行，有没有回答都可以（有的换成新的回答）；.txt 一行一问"}),
    ("--output", {"metavar": "F", "required": True, "help": "把回答写进这个新的 .jsonl 文件，可直接用来微调"}),
    ("--samples", {"type": int, "default": 1, "metavar": "数", "help": "每个提问回答几次，各成一行（1）；要配 --temperature"}),
    ("--dedupe", {"action": "store_true", "help": "同样的提问只问一次，同一提问的相同回答只留一份"}),
    ("--hide_system", {"action": "store_true", "help": "--system 只给回答的模型看，不写进结果"}),
    ("--keep_cut", {"action": "store_true", "help": "没有说完的回答也留下（默认去掉，记在 .errors.jsonl 里）"}),
    ("--batch_size", {"type": int, "default": 64, "metavar": "数", "help": "自己的模型同时写几个回答（64）"}),
    *(option for option in OF_CHAT if option[0] not in NOT_HERE),
]


def main(argv=None):
    manager, options = parse(argv, "回答一个文件的提问，写成微调数据：用自己的模型，或任何 OpenAI 式的服务", extra=OPTIONS,
                             only_run_keys=True, reads=READS)
    config = manager.config
    check(options)
    if config["threads"]:
        torch.set_num_threads(config["threads"])
    files = expand_paths(local_files(options.data, {**config["pre"], "cache_dir": config["cache_dir"]}))
    asked = Prompts(files, fields_of(config["pre"]), options)
    total = asked.survey(BadLines(Path(config["log_dir"]) / "bad_lines.jsonl", config["max_bad_share"]))
    if options.api:
        who = Server(options)
    else:
        options.no_speculate, options.seed = True, options.seed or 0
        path = model_paths([options.model] if options.model else None, config)[0]
        who = OwnModel(path, config["device"], options, stretch_of(options, config))
    with Journal(options.output, {**who.about, **asked.about}) as journal:
        with tqdm(total=total, desc="回答", unit="题", delay=2, leave=False) as bar:
            (ask_server if options.api else ask_model)(who, asked, journal, bar)
        return say(journal.finish(), total, options, journal)


def check(options):
    """The command makes sense: UserError 2."""
    if options.api and options.model:
        raise UserError("--model 和 --api 请只写一个：由谁回答？")
    idle = [name for name in (ONLY_OWN if options.api else ONLY_API) if getattr(options, name) is not None]
    if idle:
        raise UserError(f"--{idle[0]} 只用于{'自己的模型（--model）' if options.api else '服务（--api）'}。")
    for name in ("samples", "concurrency", "batch_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} 应为不小于 1 的整数。")
    if options.retries < 0 or not options.timeout > 0:
        raise UserError("--retries 不能小于 0，--timeout 应大于 0。")
    if options.samples > 1 and options.temperature == 0:
        raise UserError("--samples 大于 1 时 --temperature 要大于 0：温度为 0，每次的回答都一样。")


class Prompts:
    """The questions of some files, in order: iterate over (file, row, messages)."""

    def __init__(self, files, fields, options):
        self.files, self.fields, self.options, self.dropped = files, fields, options, {}
        self.about = {"data": [[Path(file).name, _digest(file)] for file in files], "fields": fields,
                      **{name: getattr(options, name)
                         for name in ("system", "hide_system", "samples", "dedupe", "keep_cut")}}

    def survey(self, bad):
        """Look through all of it -> how many there are. UserError 8 where too many rows ask nothing."""
        count, seen = sum(1 for _ in self._walk(bad)), 0
        for file in self.files if bad.count else ():
            seen += sum(1 for _ in iter_lines(file))
        bad.check(seen)
        if bad.count:
            print(f"跳过了 {bad.count} 行不能用的数据，见 {bad.log_path}。", file=sys.stderr)
        said = dropped_text(self.dropped)[0]
        if said:
            print(f"提问里有内容没有用上：{said}。", file=sys.stderr)
        if not count:
            raise UserError(f"{self.files[0]} 里没有一个可用的提问。", 8)
        return count

    def __iter__(self):
        return self._walk(BadLines())

    def _walk(self, bad):
        known, self.dropped = set(), {}
        for file in self.files:
            plain = is_plain_text(file)
            for number, raw in iter_lines(file):
                found = prompts_of(raw, lambda line: parse_line(line, self.fields), plain)
                if isinstance(found, str):
                    bad.add(file, number, found, raw)
                    continue
                for row in found:
                    count_dropped(self.dropped, row)
                    if self.options.dedupe:
                        key = hashlib.sha256(json.dumps(row.messages).encode()).digest()[:16]
                        if key in known:
                            continue
                        known.add(key)
                    yield file, number, self._with_system(row.messages)

    def _with_system(self, messages):
        if not self.options.system or any(m["role"] == "system" for m in messages):
            return messages
        first = sum(m["role"] == "tools" for m in messages[:1])
        return [*messages[:first], self._own_system, *messages[first:]]

    def entry(self, place, found):
        """What the journal is told. place: as iterated; found: (rows, reasons)."""
        (file, number, _), (rows, wrong) = place, found
        if self.options.hide_system:
            rows = [{**row, "messages": [m for m in row["messages"] if m != self._own_system]} for row in rows]
        rows = without_repeats(rows) if self.options.dedupe else rows
        return {"file": Path(file).name, "row": number, "rows": rows, "wrong": wrong}

    @property
    def _own_system(self):
        return {"role": "system", "content": self.options.system}


def _digest(file):
    with open(file, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def ask_model(model, asked, journal, bar):
    """Block after block."""
    journal.keep(journal.done // model.block * model.block)
    bar.update(journal.done)
    left = islice(asked, journal.done, None)
    while places := list(islice(left, model.block)):
        found = model.answers([messages for *_, messages in places], journal.done // model.block)
        journal.add([asked.entry(*pair) for pair in zip(places, found)])
        bar.update(len(places))


def ask_server(server, asked, journal, bar):
    """One after the other in the journal, several at once on the wire. Prompts that got no answer at all are written
    only when a later one did: where the server is gone, the next start asks them again."""
    def work(place):
        try:
            return place, server.answers(place[2]), None
        except Unreachable as error:
            return place, ([], [f"试了 {server.options.retries + 1} 次：{error}"]), str(error)
    bar.update(journal.done)
    lost, answered = [], journal.done
    for place, found, problem in in_order(work, islice(asked, journal.done, None), server.options.concurrency):
        lost.append(asked.entry(place, found))
        if problem is None:
            journal.add(lost)
            lost, answered = [], answered + 1
        elif len(lost) >= LOST:
            raise UserError(f"{server.url} 没有答复（{problem}）。已有的 {journal.done} 个回答都在 {journal.path}，"
                            "等它恢复后再运行同一条命令，会接着问。")
        bar.update()
    if lost and not answered:
        raise UserError(f"{server.url} 没有答复（{lost[0]['wrong'][0]}）。请检查网址和网络，再运行同一条命令。")
    journal.add(lost)


def say(told, total, options, journal):
    """What came of it -> exit code."""
    missing = f"；{told['wrong']} 次没有得到回答，见 {journal.errors}" if told["wrong"] else ""
    if told["first"]:
        entry, reason = told["first"]
        missing += f"（第一处是 {entry['file']} 第 {entry['row']} 行：{reason}）"
    if not told["rows"]:
        raise UserError(f"{total} 个提问没有一个得到能用的回答{missing}。", 8)
    print(f"已写好 {options.output}：{total} 个提问，{told['rows']} 行回答{missing}。"
          f"微调：python train_agent/sft_train.py --json_data_path {options.output}")
    return 0


if __name__ == "__main__":
    guarded(main)
