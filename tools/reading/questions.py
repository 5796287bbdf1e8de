"""Rows of a reward training: a question in any shape of a dialogue, and beside it what its reply is judged by."""

import json

from tools import formats

PLACE = "…"             # stands for a reply that a row lacks, so that it can be read as a dialogue
LISTS = ("messages", "conversations")
REPLIES = ("assistant", "gpt", "bot", "model")


def parse_question(raw, text_field=None):
    """One line's bytes -> (Row that ends with a reply, the whole object with its "answer"), or why it is none (str).

    "answer": words, a number, or a list of them; where there is none, or nothing in it, it is the last reply, or None.
    """
    try:
        whole = formats.DECODER.decode(bytes(raw).decode("utf-8-sig").strip().removesuffix(","))
        line = json.dumps(with_reply(dict(whole)), ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError):
        return "不是 JSON 对象"
    row = formats.parse_line(line, text_field)
    if isinstance(row, str):
        return row
    if row.kind != "dialogue" or row.messages[-1]["role"] != "assistant" or len(row.messages) < 2:
        return "不是一段以提问结尾（或以回答结尾）的对话"
    answer, said = whole.get("answer"), row.messages[-1]["content"]
    if not all(one is None or isinstance(one, (str, int, float)) for one in listed(answer)):
        return "answer 不是文字、数字或它们的列表"
    if all(map(blank, listed(answer))):
        answer = None if said == PLACE or blank(said) else said
    return row, {**whole, "answer": answer}


def listed(answer):
    return answer if isinstance(answer, list) else [answer]


def blank(answer):
    """An answer that says nothing, so that to say nothing would be right."""
    return answer is None or not str(answer).strip()


def with_reply(row):
    """The row as one that ends with a reply, in the words of its own shape."""
    answer = row.pop("answer", None)
    name = next((n for n in LISTS if isinstance(row.get(n), list) and row[n]), None)
    if name is None:
        if "prompt" in row or "question" in row:
            row.setdefault("response", answer if isinstance(answer, str) and answer.strip() else PLACE)
        return row
    last = row[name][-1]
    role, content = ("from", "value") if isinstance(last, dict) and "from" in last else ("role", "content")
    if isinstance(last, dict) and str(last.get(role)) not in REPLIES:
        row[name] = [*row[name], {role: "gpt" if role == "from" else "assistant", content: PLACE}]
    return row
