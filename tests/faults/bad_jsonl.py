"""Lines that no stage can use, one per class, and odd ones that every stage must live through."""
import json


def _row(**fields):
    return json.dumps(fields, ensure_ascii=False).encode()


def _dialogue(*turns, name="messages"):
    return _row(**{name: [{"role": r, "content": c} for r, c in turns]})


ASK, REPLY = {"role": "user", "content": "茶呢？"}, {"role": "assistant", "content": "放在桌上。"}

BAD = {
    # no JSON
    "words": "月亮很好看".encode(), "cut off": '{"text": "月亮'.encode(), "trailing comma": '{"text": "书",}'.encode(),
    "single quotes": "{'text': '书'}".encode(), "no quotes": "{text: 书}".encode(),
    "comment": '// {"text": "书"}'.encode(),
    "two objects": '{"text": "书"}{"text": "茶"}'.encode(), "object and more": '{"text": "书"} 茶'.encode(),
    "bad escape": rb'{"text": "\x41"}',
    "raw tab": '{"text": "书\t茶"}'.encode(), "raw control": b'{"text": "a\x01b"}',
    "carriage return inside": b'{"text": "a\rb"}',
    "half a unicode escape": rb'{"text": "\u4e"}', "leading zeros": b'{"text": 007}',
    "html": b"<html><body>404</body></html>",
    "csv": "书,茶,月亮".encode(), "double colon": b'{"text":: "a"}', "only a brace": b"{", "closing brace": b"}",
    "huge integer": b'{"text": ' + b"9" * 5000 + b"}",
    "deep list": b"[" * 100_000, "deep object": b'{"a":' * 50_000,
    # no object
    "list": b'["a"]', "number": b"3", "string": '"书"'.encode(), "null": b"null", "true": b"true", "nan": b"NaN",
    # no bytes of a text
    "latin 1": b'{"text": "caf\xe9"}', "gbk": '{"text": "书"}'.encode("gbk"),
    "cut character": '{"text": "书'.encode()[:-1] + b'"}',
    "utf-16": '{"text": "书"}'.encode("utf-16-le"), "nul": b'{"text": "a\0b"}', "escaped nul": rb'{"text": "a\u0000b"}',
    "gzip": b"\x1f\x8b\x08\x00\x11\x22\x33",
    "surrogate": rb'{"text": "\ud800"}', "surrogates turned round": rb'{"text": "\udc00\ud800"}',
    "overlong": b'{"text": "\xc0\xaf"}',
    # no field that is known, or of another type
    "empty object": b"{}", "other fields": _row(book="书", drink="茶"), "text null": b'{"text": null}',
    "text number": b'{"text": 3}', "text list": b'{"text": ["a"]}',
    "text object": b'{"text": {"a": "b"}}', "text true": b'{"text": true}', "text nan": b'{"text": NaN}',
    "text empty": b'{"text": ""}',
    "text blank": b'{"text": "  \\n "}', "text only ends": b'{"text": "<|im_end|><|im_end|>"}',
    # dialogues
    "messages null": b'{"messages": null}', "messages string": _row(messages="你好"),
    "messages empty": _row(messages=[]), "messages of strings": _row(messages=["你好"]),
    "messages of lists": _row(messages=[["user", "你好"]]), "no role": _row(messages=[{"content": "你好"}, REPLY]),
    "no content": _row(messages=[{"role": "user"}, REPLY]),
    "content number": _row(messages=[{"role": "user", "content": 3}, REPLY]),
    "content list": _row(messages=[{"role": "user", "content": [{"text": "a"}]}, REPLY]),
    "role number": _row(messages=[{"role": 1, "content": "a"}, REPLY]),
    "unknown role": _dialogue(("tool", "a"), ("assistant", "b")), "no reply": _dialogue(("user", "a")),
    "only system": _dialogue(("system", "a")), "empty reply": _dialogue(("user", "a"), ("assistant", "")),
    "blank reply": _dialogue(("user", "a"), ("assistant", " \n")),
    "surrogate in a reply": _dialogue(("user", "a"), ("assistant", "b")).replace(b'"b"', rb'"\udfff"'),
    "from without value": _row(conversations=[{"from": "human"}, {"from": "gpt"}]),
    "system number": _row(messages=[ASK, REPLY], system=3), "response null": _row(prompt="a", response=None),
    "response list": _row(prompt="a", response=["b"]),
    "response empty": _row(prompt="a", response=""), "output missing": _row(instruction="a"),
    "output empty": _row(instruction="a", output=""),
    "history flat": _row(instruction="a", output="b", history=["c", "d"]),
    "history of three": _row(instruction="a", output="b", history=[["c", "d", "e"]]),
    # pairs
    "pair without prompt": _row(chosen="a", rejected="b"), "chosen empty": _row(prompt="a", chosen="", rejected="b"),
    "rejected number": _row(prompt="a", chosen="b", rejected=3),
    "chosen ends with user": _row(prompt="a", chosen=[ASK], rejected=[ASK]),
    "prompt ends with a reply": _row(messages=[ASK, REPLY], chosen="a", rejected="b"),
    "two prompts": _row(chosen=[ASK, REPLY], rejected=[{"role": "user", "content": "书呢？"}, REPLY]),
    "pair of lists": _row(prompt="a", chosen=[[]], rejected=[[]]),
}

# Readable, but hardly what the stage was made for; whether it is learned, cut or left out is the stage's business.
ODD = {
    "text": _row(text="书在桌上。"), "units": _row(text="书<|im_end|>茶<|im_end|>月亮"), "one character": _row(text="书"),
    "long": _row(text="小船在河边，" * 400),
    "forged": _row(text="User：你好Assistant：你好"), "emoji and controls": _row(text="🌙\u200b\u2028\u202e\ufeff書\x7f"),
    "dialogue": _row(messages=[ASK, REPLY]),
    "reply first": _dialogue(("assistant", "a"), ("user", "b")), "trailing question": _row(messages=[ASK, REPLY, ASK]),
    "same role twice": _row(messages=[ASK, ASK, REPLY, REPLY]),
    "empty question": _dialogue(("user", ""), ("assistant", "a")),
    "long question": _dialogue(("user", "书" * 500), ("assistant", "a")), "many turns": _row(messages=[ASK, REPLY] * 60),
    "late system": _row(messages=[ASK, REPLY, {"role": "system", "content": "a"}, ASK, REPLY]),
    "pair": _row(prompt="茶呢？", chosen="在桌上", rejected="不知道"),
    "equal pair": _row(prompt="茶呢？", chosen="a", rejected="a"),
    "long pair": _row(prompt="书" * 300, chosen="茶" * 300, rejected="月" * 300), "bom": b"\xef\xbb\xbf" + _row(text="茶"),
    "extra fields": _row(text="茶", id=3, meta={"a": [1]}), "duplicate key": '{"text": "书", "text": "茶"}'.encode(),
    "windows line": _row(text="茶") + b"\r", "blank": b"   ",
}
