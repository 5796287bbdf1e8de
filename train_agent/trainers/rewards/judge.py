"""Which rewards a run gives: `exact format=0.2 my_reward.py:score` -> a Judge that scores replies and never fails.

A user's function takes (conversation, reply, row): the messages that the reply answers, calls and their results among
them, the reply's text, the data row as a dict, and gives a number. What throws, or gives no number that can be reckoned
with, is no sample: it is counted and named, the rest goes on.
"""

import hashlib
import importlib.util
import inspect
import math
import sys
from pathlib import Path

from tools.config.values import nearest
from tools.errors import UserError
from tools.process.signals import STOPPED
from train_agent.trainers.rewards.named import NAMED, Unscored, regexes
from train_agent.trainers.rewards.tool_result import tool_result

KNOWN = {**NAMED, "tool_result": tool_result}
LARGEST = 1e9           # of a reward and of a weight: squares of their products still are numbers


class Judge:
    """`score(asked)` -> a Verdict for each of the (conversation, reply, row)."""

    def __init__(self, options):
        self.settings, self.parts, self.sources = options, [], {}
        specs = options["reward"] if isinstance(options["reward"], list) else [options["reward"]]
        for spec in specs:
            name, weight = weighted(spec)
            function = KNOWN.get(name) or self._own(name)
            self.parts.append((name, weight, function))

    def _own(self, name):
        path, _, function = name.rpartition(":")
        if not path:
            close = nearest(name, KNOWN)
            raise UserError(f"没有叫 {name} 的奖励" + (f"，是不是想写 {close}？" if close else "。")
                            + f"可用：{' '.join(KNOWN)}，或自己的函数 文件.py:函数名。")
        if not Path(path).is_file():
            raise UserError(f"找不到奖励函数的文件 {path}。")
        source = Path(path).read_bytes()
        self.sources[name] = hashlib.sha256(source).hexdigest()[:16]
        return loaded(path, function)

    def identity(self):
        """What a resume has to find unchanged: the user's own code."""
        return {"奖励函数": "+".join(self.sources.values())} if self.sources else {}

    def score(self, asked):
        verdicts = [Verdict() for _ in asked]
        for number, (name, weight, function) in enumerate(self.parts):
            for verdict, value in zip(verdicts, self._values(name, function, asked)):
                verdict.add(name, weight, value, first=number == 0)
        return verdicts

    def usable(self, questions):
        """-> the questions whose rows have what the named rewards look at, and how many lack it with the reason of the
        first (Chinese). A function of the user's own is not asked: it may be slow."""
        asked, good, why = [(q.talk, "", q.row) for q in questions], [True] * len(questions), ""
        for name, function in [(name, function) for name, _, function in self.parts if name in KNOWN]:
            for i, value in enumerate(self._values(name, function, asked)):
                if good[i] and isinstance(value, Exception):
                    good[i], why = False, why or f"第 {questions[i].number + 1} 行，{name}：{value}"
        return [q for q, fits in zip(questions, good) if fits], good.count(False), why

    def _values(self, name, function, asked):
        if name == "regex":
            return regexes([(reply, row) for _, reply, row in asked], self.settings)
        if name in KNOWN:
            return [tried(function, *one, self.settings) for one in asked]
        return [tried(function, [dict(m) for m in talk], reply, dict(row)) for talk, reply, row in asked]


class Verdict:
    """reward: the weighted sum, None where a part could not be scored; success: the first reward gave full marks."""

    def __init__(self):
        self.reward, self.success, self.problem = 0.0, False, None

    def add(self, name, weight, value, first):
        if isinstance(value, Exception):
            self.reward, self.problem = None, self.problem or f"{name}：{value}"
        elif self.reward is not None:
            self.reward += weight * value
        if first and not isinstance(value, Exception):
            self.success = value >= 1 - 1e-9


def weighted(spec):
    """"format=0.2" -> ("format", 0.2); without a weight 1."""
    name, equals, weight = str(spec).rpartition("=")
    if not equals:
        return str(spec), 1.0
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not abs(value) <= LARGEST:
        raise UserError(f"奖励 {spec} 的权重不是数字，或太大：应写成 {name}=0.5。")
    return name, value


def tried(function, *arguments):
    """The number that a function gives, or an Exception that says why there is none."""
    try:
        given = function(*arguments)
    except Unscored as error:
        return error
    except (Exception, SystemExit) as error:                # a user's own code
        if isinstance(error, SystemExit) and error.code == STOPPED:
            raise                                           # the program was asked to end
        return Unscored(f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}")
    try:
        value = float(given)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return Unscored(f"给出 {shortened(given)}，不是数")
    if not math.isfinite(value):
        return Unscored(f"给出 {value}，不是有限数")
    return value if abs(value) <= LARGEST else Unscored(f"给出 {value:g}，太大，最多 {LARGEST:g}")


def shortened(value):
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else text[:40] + "…"


def loaded(path, function):
    """The function of a user's file. UserError 2 where there is none."""
    spec = importlib.util.spec_from_file_location(f"reward_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(Path(path).resolve().parent))       # what lies beside it may be imported
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UserError(f"奖励函数的文件 {path} 不能运行：{type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)
    found = getattr(module, function, None)
    wanted = f"def {function}(conversation, reply, row): return 分数"
    if not callable(found):
        raise UserError(f"{path} 里没有函数 {function}：应有 {wanted}。")
    if not takes_three(found):
        raise UserError(f"{path} 的 {function} 不能接三个参数：应是 {wanted}。")
    return found


def takes_three(function):
    try:
        inspect.signature(function).bind(None, None, None)
    except TypeError:
        return False
    except ValueError:                                      # written in C, it does not say
        pass
    return True
