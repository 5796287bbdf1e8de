"""Whole conversations written into one string: Human: … Assistant: …, ChatML, [INST], MOSS, Baize.

Only what is certain is split: the string begins with the user's (or a system) label, the speakers alternate.
"""
import re

from tools.reading.row import MARKS

USERS, SYSTEMS = {"human", "user", "用户"}, {"system", "系统"}
_NAMES = "Human|HUMAN|User|USER|用户|Assistant|ASSISTANT|助手|AI|System|SYSTEM|系统"
LABEL = re.compile(rf"(?:\A|\n)[ \t]*({_NAMES})[ \t]*[:：][ \t]*|###[ \t]*({_NAMES})[ \t]*[:：][ \t]*"
                   r"|[ \t\n]*(?:\[\|(Human|AI)\|\]|<\|(Human|MOSS)\|>[:：])[ \t]*")
CHATML = re.compile(r"<\|im_start\|>(system|user|assistant)\n(.*?)(?:<\|im_end\|>|\Z)\s*", re.S)
INST = re.compile(r"(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?:</s>|(?=\[INST\])|\Z)\s*", re.S)
SYS = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>\s*", re.S)
_MARK = (r"(?:<\|im_start\|>(?!\s*(?:user|assistant|system)\b)|"
         r"<\|(?:im_end|endoftext|begin_of_text|end_of_text|eot_id|eot|eom_id|end|return)\|>|<[be]os>|<eo[chmart]>|"
         r"<｜(?:begin|end)▁of▁sentence｜>|<end_of_(?:turn|sentence)>)")
HEAD = re.compile(rf"\A(?:\s*(?:<s>|{_MARK}))+")
TAIL = re.compile(rf"(?:(?:</s>|{_MARK})\s*)+\Z")
THINK = re.compile(r"\A\s*(?:<think>)?(.*?)</think>\s*", re.S)


def unmarked(text, source):
    """The text without other people's begin and end marks at its edges; source: counts them."""
    if "<" not in text:
        return text
    for pattern in (HEAD, TAIL):
        if hit := pattern.search(text):
            source.drop(MARKS, hit[0])
            text = text[:hit.start()] + text[hit.end():]
    return text


def without_thought(text):
    """-> (what follows a <think>…</think> at the head of a reply, the thought; None without one)"""
    hit = THINK.match(text) if "</think>" in text else None
    if not hit or "<think>" in hit[1]:
        return text, None
    return text[hit.end():], hit[1].strip()


def transcript(text):
    """-> messages ({"role", "content"}, the last may be the user's), None where it is not certainly a conversation."""
    if not any(mark in text for mark in ("uman", "User", "USER", "用户", "|im_start|", "[INST]")):
        return None
    if (hits := list(CHATML.finditer(text))) and _covers(hits, text):
        return _alternating([(hit[1], hit[2]) for hit in hits])
    if (hits := list(INST.finditer(text))) and _covers(hits, text):
        return _alternating(_instructed(hits))
    return _labelled(text)


def _covers(hits, text):
    edges = [0, *(hit.end() for hit in hits)]
    return edges[-1] == len(text) and all(edge == hit.start() for edge, hit in zip(edges, hits))


def _instructed(hits):
    for i, hit in enumerate(hits):
        system = SYS.match(hit[1]) if i == 0 else None
        if system:
            yield "system", system[1]
        yield "user", hit[1][system.end():] if system else hit[1]
        yield "assistant", hit[2]


def _labelled(text):
    hits = list(LABEL.finditer(text))
    before = text[:hits[0].start()].strip() if hits else text
    if before and not (hits and hits[0][3]):                            # Baize begins with a sentence about it
        return None
    ends = [hit.start() for hit in hits[1:]] + [len(text)]
    said = [(_role(hit[hit.lastindex]), text[hit.end():end]) for hit, end in zip(hits, ends)]
    return _alternating([("system", before), *said] if before else said)


def _role(label):
    label = label.lower()
    return "user" if label in USERS else "system" if label in SYSTEMS else "assistant"


def _alternating(turns):
    """The turns as messages if there is a reply and speakers alternate; an empty last turn (a waiting label) goes."""
    messages = [{"role": role, "content": content.strip()} for role, content in turns]
    asked = any(m["role"] == "assistant" for m in messages)
    if messages and not messages[-1]["content"]:
        messages.pop()
    roles = [m["role"] for m in messages]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    right = spoken == ["user", "assistant"] * (len(spoken) // 2) + ["user"] * (len(spoken) % 2)
    return messages if asked and spoken and right and all(m["content"] for m in messages) else None
