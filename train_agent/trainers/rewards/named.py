"""The rewards that have a name: functions of (conversation, reply, row, settings) -> 0 to 1.

row: {"answer": str or list of accepted ones, and whatever else the data row says}; settings: the stage's options, for
what a row does not say itself. Unusable is raised as Unscored with the reason (Chinese): such a reply is no sample.
"""

import json
import re
import unicodedata

from tools.demo_data import grade
from tools.reading.questions import blank
from train_agent.trainers.rewards import safe_search

NUMBER = re.compile(r"[-−]?\d+(?:,\d{3})*(?:\.\d+)?")
PARTS = 3               # characters that count as said again


class Unscored(Exception):
    """This reply cannot be scored; why (Chinese)."""


def wanted(row, settings, field, key=None):
    """What a row asks for, or else what the configuration asks of all rows."""
    value = row.get(field)
    value = settings.get(key) if value is None and key else value
    if value is None:
        raise Unscored(f"这一行没有 {field}" + (f"，也没有给 --{key}" if key else ""))
    return value


def answers_of(row):
    given = wanted(row, {}, "answer")
    return [str(one) for one in (given if isinstance(given, list) else [given]) if not blank(one)]


def exact(conversation, reply, row, settings):
    """The answer and nothing else; white space at both ends aside."""
    return float(any(grade(one, reply) for one in answers_of(row)))


def contains(conversation, reply, row, settings):
    """The answer somewhere in the reply."""
    return float(any(one.strip() in reply for one in answers_of(row)))


def last_number(text):
    """The last number of a text as a float, None where there is none; full-width digits and 1,000 are numbers."""
    there = NUMBER.findall(unicodedata.normalize("NFKC", text))
    return float(there[-1].replace(",", "").replace("−", "-")) if there else None


def number(conversation, reply, row, settings):
    """The last number of the reply is the last number of the answer."""
    right = [value for one in answers_of(row) if (value := last_number(one)) is not None]
    if not right:
        raise Unscored("answer 里没有数字")
    said = last_number(reply)
    return float(said is not None and any(abs(said - one) <= 1e-6 * max(1, abs(one)) for one in right))


def regex(conversation, reply, row, settings):
    """The pattern is found in the reply."""
    return regexes([(reply, row)], settings)[0]


def regexes(pairs, settings):
    """`regex` of many (reply, row) at once -> list of floats or Unscored."""
    scores, good = [None] * len(pairs), []
    for i, (reply, row) in enumerate(pairs):
        try:
            pattern = str(wanted(row, settings, "pattern", "reward_pattern"))
            re.compile(pattern)
            good.append((i, pattern, reply))
        except re.error as error:
            scores[i] = Unscored(f"pattern 不是正则表达式：{error}")
        except Unscored as error:
            scores[i] = error
    for (i, _, _), answer in zip(good, safe_search.found([(pattern, reply) for _, pattern, reply in good])):
        scores[i] = Unscored("pattern 搜得太久，已停下：请改写这个正则表达式") if answer is None else float(answer)
    return scores


def form(conversation, reply, row, settings):
    """The whole reply has this form: "json", or words with holes, 答案是{}。"""
    pattern = str(wanted(row, settings, "format", "reward_format"))
    if pattern == "json":
        try:
            json.loads(reply)
            return 1.0
        except (ValueError, RecursionError):
            return 0.0
    first, *rest = pattern.split("{}")
    if not rest:
        return float(reply.strip() == first)
    *middle, last = rest
    text, at = reply.strip(), len(first)
    if not text.startswith(first) or not text.endswith(last):
        return 0.0
    for piece in middle:                                # every hole takes at least one character
        at = text.find(piece, at + 1)
        if at < 0:
            return 0.0
        at += len(piece)
    return float(len(text) - len(last) > at)


def length(conversation, reply, row, settings):
    """1 up to so many characters, beyond them falling to 0 at twice as many."""
    limit = float(wanted(row, settings, "length", "reward_length"))
    return min(1.0, max(0.0, 2 - len(reply) / max(1.0, limit)))


def repetition(conversation, reply, row, settings):
    """Which share of its runs of three characters a reply does not say twice."""
    runs = [reply[i:i + PARTS] for i in range(len(reply) - PARTS + 1)]
    return len(set(runs)) / len(runs) if runs else 1.0


NAMED = {"exact": exact, "contains": contains, "number": number, "regex": regex, "format": form, "length": length,
         "repetition": repetition}
