"""The tools that a model may use here, and what becomes of its calls: always a text, whatever happens."""
import atexit
import json
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, Queue

from tools.acting.built_in import BUILT_IN, LookUp
from tools.acting.calculator import Wrong
from tools.acting.schema import SchemaError, call_grammar
from tools.demo.offered import definition
from tools.errors import UserError
from tools.template import compact, function_of, parsed_call

SECONDS = 10.0                  # that a call may take, and
STARTING = 60.0                 # that a file of tools may take to be read
LONGEST = 2000                  # characters of a result
ROUNDS = 4                      # times that a reply may call and be answered
AT_ONCE = 4                     # calls of one round that are carried out
FAILED = "出错"                 # how the result begins of a call that gave none
WORKER = Path(__file__).with_name("worker.py")


class Toolbox:
    """tools: {name: (definition, function of keyword arguments that gives text)}."""

    def __init__(self, tools):
        self.tools = tools

    @property
    def definitions(self):
        return [definition for definition, _ in self.tools.values()]

    @property
    def offered(self):
        """What stands in a conversation's turn of the role tools; "" for nothing."""
        return compact(self.definitions) if self.tools else ""

    def run(self, name, arguments):
        """-> (the result, whether it is one); a failure is a text that begins with FAILED."""
        if name not in self.tools:
            return f"{FAILED}：没有 {name[:40]} 这个工具", False
        try:
            return shortened(self.tools[name][1](**arguments)), True
        except Wrong as error:
            return shortened(f"{FAILED}：{error}"), False
        except Exception as error:      # arguments of the wrong kind, or a bug: the model sees an answer
            return shortened(f"{FAILED}：{type(error).__name__} {error}"), False

    def answer(self, call, wanted=True):
        """The text of a call -> (its name, its arguments, the result). wanted: False where there are too many."""
        found = parsed_call(call) or {"name": "", "arguments": {}}
        result = self.run(found["name"], found["arguments"])[0] if wanted else f"{FAILED}：一次最多调用 {AT_ONCE} 次"
        return found["name"], found["arguments"], result

    def carried_out(self, calls, vocab, context):
        """The calls of one reply, one after the other -> (name, arguments, the message with the result) of each."""
        for place, call in enumerate(calls):
            name, arguments, result = self.answer(call, place < AT_ONCE)
            yield name, arguments, {"role": "tool", "content": cut_result(result, vocab, context)}


def shortened(text):
    """Plain text of a bounded length, in whole characters."""
    text = str(text)
    text = text[:LONGEST] + f"…（还有 {len(text) - LONGEST} 个字没有给出）" if len(text) > LONGEST else text
    return text.encode("utf-8", "replace").decode()


def cut_result(result, vocab, context):
    """What a tool gave, as far as it fits: a quarter of the context."""
    ids, most = vocab.encode(result), context // 4
    return result if len(ids) <= most else vocab.decode_bytes(ids[:most]).decode("utf-8", "ignore") + "…"


def toolbox(words, seconds=SECONDS):
    """--tools as written -> Toolbox. Nothing or "all": every built-in tool; else names of built-in tools, Python files
    (their functions) and .jsonl or .txt files (to look things up in). UserError 2."""
    tools = {}
    for word in words or ["all"]:
        for name, tool in _named(word, seconds).items():
            _check(word, tool[0])
            if name in tools and tools[name][0] != tool[0]:
                raise UserError(f"有两个工具都叫 {name}，请改一个的名字。")
            tools[name] = tool
    return Toolbox(tools)


def _check(word, tool):
    try:
        call_grammar([tool])
    except SchemaError as error:
        raise UserError(f"用不了 {word} 里的工具 {function_of(tool)['name']}：{error}。") from None


def _named(word, seconds):
    if word in ("all", *BUILT_IN):
        return {name: (definition(name), function) for name, function in BUILT_IN.items() if word in ("all", name)}
    path = Path(word)
    if path.suffix.lower() not in (".py", ".jsonl", ".txt", ".md", ".csv"):
        raise UserError(f"没有 {word} 这个工具。可以写 {'、'.join(BUILT_IN)}、all，Python 文件（.py），或供查找的 .jsonl、.txt 文件。")
    if not path.is_file():
        raise UserError(f"找不到 {word}。")
    if path.suffix.lower() == ".py":
        return Worker(path, seconds).tools()
    return {"look_up": (definition("look_up"), LookUp(path).look_up)}


class Worker:
    """The functions of a Python file in a process of their own. One that takes too long is ended with its process; the
    next call starts a new one."""

    def __init__(self, path, seconds=SECONDS):
        self.path, self.seconds, self.process, self.lines, self.turn = path, seconds, None, None, threading.Lock()
        atexit.register(self.end)                       # one that hangs does not outlive us

    def tools(self):
        """-> as Toolbox.tools. UserError 2 where the file cannot be used."""
        said = self._start()
        if "error" in said:
            raise UserError(f"用不了 {self.path} 里的工具：{said['error'][:300]}")
        if not said["tools"]:
            raise UserError(f"{self.path} 里没有函数（名字不以 _ 开头的）可作工具。")
        return {one["name"]: ({"type": "function", "function": one}, self._function(one["name"]))
                for one in said["tools"]}

    def _function(self, name):
        return lambda **arguments: self.call(name, arguments)

    def _start(self):
        self.process = subprocess.Popen([sys.executable, str(WORKER), str(self.path)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, encoding="utf-8")
        self.lines = Queue()
        threading.Thread(target=_read, args=(self.process.stdout, self.lines), daemon=True).start()
        return self._hear(STARTING) or {"error": "读这个文件花了太久，或中途退出了"}

    def _hear(self, seconds):
        """The next line it says; None, and it is ended, where there is none in time."""
        try:
            line = self.lines.get(timeout=seconds)
        except Empty:
            line = None
        if line is None:
            self.end()
        return json.loads(line) if line else None

    def end(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
        self.process = None

    def call(self, name, arguments):
        with self.turn:
            if (self.process is None or self.process.poll() is not None) and "error" in self._start():
                raise Wrong("工具没有启动")
            try:
                self.process.stdin.write(json.dumps({"name": name, "arguments": arguments}) + "\n")
                self.process.stdin.flush()
            except OSError:
                self.end()
                raise Wrong("工具中途退出了") from None
            said = self._hear(self.seconds)
        if said is None:
            raise Wrong(f"工具 {self.seconds:g} 秒内没有答复")
        if "error" in said:
            raise Wrong(said["error"])
        return said["result"]


def _read(stream, lines):
    """Hand on what a worker says, a line at a time; None at its end."""
    for line in stream:
        lines.put(line)
    lines.put(None)
