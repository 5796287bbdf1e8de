"""What can be wrong with a row that reads well: each kind with its Chinese title and its cure, and how it is found.

A kind is either a pattern, searched in the joined text of many rows at once (one C-speed pass per pattern), or a rule
about one conversation. Kinds of lines that cannot be read at all are named by tools/formats.py; duplicates by
near_duplicates.py.
"""
import json
import re

import numpy as np

# kind: (title, cure)
KINDS = {
    "replacement": ("乱码 �", "原文件的编码读错了，请按正确的编码重新转成 UTF-8"),
    "mojibake": ("疑似乱码（编码读错）", "UTF-8 被当成别的编码读过，请从原文件重新转换"),
    "control": ("控制字符", "删掉这些看不见的控制字符"),
    "invisible": ("零宽或隐形字符", "删掉零宽空格、BOM、方向控制符等"),
    "private": ("私用区字符", "多半来自 PDF 或图标字体，请删掉或换成正常的字"),
    "html": ("HTML 残留", "去掉标签，把 &nbsp; 一类的实体换成字符"),
    "escaped": ("转义写了两次", "文字里出现了 \\u4f60 或 \\n 字样，请只转义一次"),
    "forged": ("混入了别家的特殊标记", "去掉 <|im_start|>、[INST]、User： 等标记，角色请写在 role 里"),
    "repeat": ("同一段反复出现", "一段话连续重复很多遍，模型会学成复读机"),
    "blank": ("大段空白", "删掉连续的空格或空行"),
    "blob": ("长串编码数据", "一长串没有空格的字母数字（base64 等），请删掉"),
    "secret": ("密钥或口令", "请立刻删掉，并到发放处作废它"),
    "privacy": ("个人信息", "手机号、身份证号或邮箱，请删掉或换成假的"),
    "no_words": ("没有文字", "整行（或全部回答）只有标点或空白"),
    "short": ("文字太短", "预训练文本不到 4 个字，学不到东西"),
    "duplicate_key": ("同一个字段写了两次", "JSON 只认后一个，前一个会丢"),
    "placeholder": ("回答是占位词", "如 TODO、N/A、null、待补充，请补上或删掉"),
    "echo": ("回答照抄提问", "请补上真正的回答"),
    "empty_turn": ("提问或系统提示是空的", "请补上或删掉这一轮"),
    "same_role": ("同一角色连说两轮", "两轮应合成一轮，或者漏了中间的一轮"),
    "starts_assistant": ("没有提问就回答", "第一轮应是用户"),
    "trailing": ("最后一轮没有回答", "末尾的提问不会被训练用到"),
    "late_system": ("系统提示不在开头", "system 应放在第一轮"),
    "same_pair": ("偏好的两个回答相同", "chosen 和 rejected 一样，学不到偏好"),
    "answer_lost": ("回答全被截断", "提问已占满 max_len，这一行没有可学的内容；请加大 --max_len 或缩短提问"),
    "no_turn": ("没有用户的话，或没有回答", "选择门要从用户的话里挑候选模型，这一行会跳过"),
    "no_words_for_tools": ("带工具，底座不能用", "这个底座还不能用工具，训练会跳过这一行"),
    "unknown_words": ("词表覆盖不足", "三成以上要拆成字节；请用包含这类文字的数据重建词表"),
    "mixed": ("与文件里其余的行格式不同", "同一文件里混进了少数别种数据，请确认是否放错"),
    "duplicate": ("完全重复", "与前面的一行内容相同，重复的会被反复背诵"),
    "near_duplicate": ("近似重复", "与前面的一行几乎相同"),
    "leak": ("留出数据泄漏", "留出数据里的这一行（或几乎相同的）也在训练数据里，评估会虚高"),
}

_CP1252 = ("\u20ac\u201a\u0192\u201e\u2026\u2020\u2021\u02c6\u2030\u0160\u2039\u0152\u017d\u2018\u2019\u201c"
            "\u201d\u2022\u2013\u2014\u02dc\u2122\u0161\u203a\u0153\u017e\u0178")
_EDGE = r"(?<![0-9A-Za-z])%s(?![0-9A-Za-z])"
PATTERNS = {
    "replacement": re.compile("\ufffd"),
    "mojibake": re.compile(
        f"(?:[\u00e3-\u00ef][\u0080-\u00bf{_CP1252}]{{2}}){{2}}|锟斤拷|烫烫烫|屯屯屯|(?:[锛銆鈥][^\\n\\0]{{0,40}}){{2}}"),
    "control": re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "invisible": re.compile("[\u00ad\u180e\u200b\u200c\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]"),
    "private": re.compile("[\ue000-\uf8ff]"),
    "html": re.compile(
        r"</?(?:br|p|div|span|a|img|table|tr|td|li|ul|ol|font|script|style|strong|em|h[1-6])(?:\s[^<>\0]*)?/?>|"
        r"&(?:nbsp|lt|gt|amp|quot|#\d{2,5});", re.I),
    "escaped": re.compile(r"(?:\\u[0-9a-fA-F]{4}){2}|(?:\\n[^\n\0\\]*){3}"),
    "forged": re.compile(r"<\|/?[A-Za-z][\w-]{1,30}\|>|<｜[^｜<>\s]{1,30}｜>|<(?:start|end|beginning)_of_[a-z]+>|"
                         r"<(?:reserved|unused)_?\d+>|\[/?(?:INST|SYSTEM_PROMPT)\]|\[[gs]MASK\]|\[UNUSED_TOKEN_\d+\]|"
                         r"<</?SYS>>|<eo[chmart]>|<sop>|</s>|<[be]os>|\]~!?b[\[\]]|\[e~\["),
    "blank": re.compile(r"[ \t\u3000]{40}|(?:\n[ \t]*){8}\n"),
    "blob": re.compile(r"[A-Za-z0-9+/=_-]{200}"),
    "secret": re.compile(
        r"-----BEGIN [A-Z ]*PRIVATE KEY|\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}"),
    "privacy": re.compile(
        "|".join(
            (
                _EDGE % r"1[3-9]\d{9}",
                _EDGE % r"[1-9]\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]",
                                    r"[\w.+-]+@(?!example\.)[A-Za-z0-9-]+(?:\.[A-Za-z]{2,})+"))),
}
ROLE_LINE = re.compile(r"^\s*(?:User|Assistant|System|Human|Bot|用户|助手)\s*[:：]", re.M)
PLACEHOLDERS = {"todo", "tbd", "n/a", "na", "null", "none", "nan", "undefined", "xxx", "待补充", "待填写", "暂无", "此处填写", "略",
                "[removed]", "[deleted]", "……", "...", "同上"}
CODE = "```"
SHORTEST = 4            # characters of a text row
ECHO = 8                # shorter answers may well repeat what was said: 你好 - 你好
MOST_PERIOD, MIN_REPEATED, MIN_TIMES = 24, 40, 6


def pattern_faults(joined, starts):
    """joined: all rows' texts, each followed by NUL; starts (R,): where each begins -> [(row number, kind)], each pair
    once."""
    found = []
    for kind, pattern in PATTERNS.items():
        places = [hit.start() for hit in pattern.finditer(joined)]
        for row in np.unique(np.searchsorted(starts, places, side="right") - 1).tolist() if places else ():
            found.append((row, kind))
    # wrongly decoded text is full of control characters
    garbled = {row for row, kind in found if kind == "mojibake"}
    return [(row, kind) for row, kind in found if kind != "control" or row not in garbled]


def repeat_faults(codes, starts):
    """Rows in which a phrase of up to MOST_PERIOD characters follows itself many times. codes: uint32 of `joined`.

    A run of L places where codes[i] == codes[i - p] means the phrase stands there L / p + 1 times.
    """
    rows = set()
    for period in range(1, min(MOST_PERIOD, len(codes) - 2) + 1):
        same = codes[period:] == codes[:-period]
        need = max(MIN_REPEATED, period * MIN_TIMES) - period
        edges = np.flatnonzero(same[1:] != same[:-1]) + 1
        begin = np.concatenate([[0], edges])
        length = np.diff(np.concatenate([begin, [len(same)]]))
        for at in begin[(length >= need) & same[begin]].tolist():
            phrase = "".join(map(chr, codes[at:at + period].tolist()))
            # rulers like ------ are no speech
            if "\0" not in phrase and sum(c.isalpha() for c in phrase) * 2 >= period:
                rows.add(int(np.searchsorted(starts, at, side="right") - 1))
    return [(row, "repeat") for row in sorted(rows)]


def excused(kind, text):
    """Articles about programs show tags and escapes on purpose, in code blocks."""
    return kind in ("html", "escaped", "forged", "blank") and CODE in text


def row_faults(row, raw):
    """Kinds of faults in the build of one Row. raw: its line's bytes."""
    kinds = []
    if _said_twice(row, raw):
        kinds.append("duplicate_key")
    if row.kind == "text":
        if not any(c.isalnum() for unit in row.texts for c in unit):
            kinds.append("no_words")
        elif sum(len(unit.strip()) for unit in row.texts) < SHORTEST:
            kinds.append("short")
        return kinds
    replies = [row.chosen, row.rejected] if row.kind == "preference" else [
        "".join([m["content"], *m.get("calls", ())]) for m in row.messages if m["role"] == "assistant"]
    if not any(c.isalnum() for reply in replies for c in reply):
        kinds.append("no_words")
    if any(reply.strip().lower() in PLACEHOLDERS for reply in replies):
        kinds.append("placeholder")
    if row.kind == "preference" and row.chosen.strip() == row.rejected.strip():
        kinds.append("same_pair")
    if any(ROLE_LINE.search(m["content"]) for m in row.messages):
        kinds.append("forged")
    return kinds + _turn_faults(row)


def _turn_faults(row):
    kinds, roles = [], [m["role"] for m in row.messages]
    spoken = [r for r in roles if r not in ("system", "tools")]
    if any(a == b != "tool" for a, b in zip(spoken, spoken[1:])):
        kinds.append("same_role")
    if spoken and spoken[0] == "assistant":
        kinds.append("starts_assistant")
    if row.kind == "dialogue" and roles[-1] != "assistant":
        kinds.append("trailing")
    if "system" in roles[1 + (roles[0] == "tools"):]:
        kinds.append("late_system")
    if any(not m["content"].strip() for m in row.messages if m["role"] in ("user", "system")):
        kinds.append("empty_turn")
    for before, message in zip(row.messages, row.messages[1:]):
        said = message["content"].strip()
        if message["role"] == "assistant" and before["role"] == "user" and len(
                said) >= ECHO and said == before["content"].strip():
            kinds.append("echo")
            break
    return kinds


def _said_twice(row, raw):
    """A key given twice in the JSON object; the full parse is only for lines that look like it."""
    keys = (b'"text"',) if row.kind == "text" else (b'"messages"', b'"conversations"', b'"output"', b'"response"',
                                                    b'"chosen"', b'"rejected"')
    if not any(raw.count(key) > 1 for key in keys):
        return False
    twice = []

    def pairs(items):
        names = [name for name, _ in items]
        twice.append(len(set(names)) < len(names))
        return dict(items)
    try:
        json.loads(raw.decode("utf-8").removeprefix("\ufeff"), object_pairs_hook=pairs)
    except ValueError:
        return False
    return any(twice)
