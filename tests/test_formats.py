"""Which shape is this line, which lines are bad, and that ranges of a file hand out every line exactly once."""
import gzip
import json
import os
import random
from pathlib import Path

import pytest

from tools import formats
from tools.reading import lines
from tools.errors import UserError
from tools.formats import BadLines, Row, expand_paths, is_plain_text, iter_lines, parse_line, read_range, read_rows
from tools.words.sample import sample_texts

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def line(value):
    return json.dumps(value, ensure_ascii=False).encode()


def pairs(row):
    return [(m["role"], m["content"]) for m in row.messages]


DIALOGUE = [("user", "问"), ("assistant", "答")]
TURNS = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]


@pytest.mark.parametrize("value", [
    {"messages": TURNS}, {"conversations": TURNS},
    {"conversations": [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]},
    {"conversations": [{"role": "用户", "content": "问"}, {"role": "助手", "content": "答"}]},
    {"messages": [{"role": " USER ", "content": "问"}, {"role": "model", "content": "答"}]},
    {"messages": [{"role": "user", "content": "问"}, {"role": "bot", "value": "答"}]},
    {"messages": [{"role": "user", "content": "问"}, {"role": "asst", "content": "答"}]},
    {"prompt": "问", "response": "答"}, {"instruction": "问", "output": "答"},
    {"instruction": "问", "input": "", "output": "答"},
    {"instruction": "问", "input": None, "output": "答", "history": []},
    {"messages": None, "prompt": "问", "response": "答"},
])
def test_D9_chat_shapes_give_the_same_dialogue(value):
    row = parse_line(line(value))
    assert row.kind == "dialogue" and pairs(row) == DIALOGUE


def test_D9_longer_shapes():
    row = parse_line(
        line({"instruction": "译", "input": "cat", "output": "猫", "system": "词典", "history": [["早", "早安"]]}))
    assert pairs(row) == [("system", "词典"), ("user", "早"), ("assistant", "早安"), ("user", "译\ncat"), ("assistant", "猫")]
    row = parse_line(line({"messages": [{"role": "系统", "content": "词典"}, *TURNS, *TURNS]}))
    assert pairs(row) == [("system", "词典"), *DIALOGUE, *DIALOGUE]


def test_D9_order_of_shapes():
    """Each shape taken away uncovers the next."""
    value = {"messages": TURNS, "conversations": [{"from": "user", "value": "二"}, {"from": "bot", "value": "二"}],
             "prompt": "三",
             "response": "三", "instruction": "四", "output": "四", "own": "五", "text": "六", "chosen": "零",
             "rejected": "负"}
    assert parse_line(line({**value, "messages": TURNS[:1]}), "own").kind == "preference"
    found = []
    for gone in (["rejected"], ["messages"], ["conversations"], ["response"], ["output"], ["own"]):
        for name in gone:
            del value[name]
        row = parse_line(line(value), "own" if "own" in value else None)
        found.append(row.messages[0]["content"] if row.kind == "dialogue" else row.texts[0])
    assert found == ["问", "二", "三", "四", "五", "六"]


def test_D2_text_is_split_at_the_end_mark():
    row = parse_line(line({"text": "一 <|im_end|>二\n<|im_end|><|im_end|> \n<|im_end|>三"}))
    assert row.kind == "text" and row.texts == ["一 ", "二\n", "三"]


@pytest.mark.parametrize("names, text",
                         [("a", "甲"), (["a", "b"], "甲 乙"), (["b", "a"], "乙 甲"), (["a", "no"], "甲 "),
                          (["no", "a"], " 甲")])
def test_D10_text_field(names, text):
    assert parse_line(line({"a": "甲", "b": "乙", "text": "丙"}), names).texts == [text]


@pytest.mark.parametrize("value", [
    {"conversations": [{"from": "human", "value": "问"}], "chosen": "好", "rejected": "坏"},
    {"prompt": "问", "chosen": "好", "rejected": "坏"},
    {"messages": TURNS[:1], "chosen": {"role": "assistant", "content": "好"},
     "rejected": [{"role": "assistant", "content": "坏"}]},
    {"chosen": [TURNS[0], {"role": "assistant", "content": "好"}],
     "rejected": [TURNS[0], {"role": "assistant", "content": "坏"}]},
])
def test_preference_shapes(value):
    row = parse_line(line(value))
    assert (row.kind, pairs(row), row.chosen, row.rejected) == ("preference", [("user", "问")], "好", "坏")


@pytest.mark.parametrize("raw, reason", [
    (b"{", "不是合法的 JSON"), (b"[1]", "不是 JSON 对象"), (b"3", "不是 JSON 对象"), (b'{"n": ' + b"1" * 5000 + b"}", "JSON"),
    (b'{"text": "\xff"}', "UTF-8"), (b'{"text": "\xed\xa0\x80"}', "UTF-8"), (b'{"text": "a\0b"}', "NUL"),
    (rb'{"text": "a\u0000b"}', "NUL"),
    (rb'{"text": "a\ud800b"}', "代理"), (
        rb'{"messages": [{"role":"user","content":"a"},{"role":"assistant","content":"\udc00"}]}', "代理"),
    (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b', "text": "x"}', "嵌套"), (b"[" * 100_000, "JSON"),
    (line({}), "没有可识别的字段"), (line({"question": "x", "A": "y"}), "没有可识别的字段"), (line({"text": None}), "没有可识别的字段"),
    (line({"text": 3}), "字符串"), (line({"text": ["a"]}), "字符串"), (line({"text": ""}), "空"),
    (line({"text": " <|im_end|>\n"}), "空"),
    (line({"prompt": "x", "response": ""}), "空"), (line({"prompt": "x", "response": 1}), "字符串"),
    (line({"instruction": 1, "output": "a"}), "字符串"),
    (line({"messages": "x"}), "列表"), (line({"messages": []}), "没有回答"), (line({"messages": TURNS[:1]}), "没有回答"),
    (line({"messages": ["x"]}), "对象"), (line({"messages": [{"role": "user"}]}), "content"),
    (line({"messages": [{"content": "x"}]}), "role"),
    (line({"messages": [{"role": 1, "content": "x"}]}), "role"),
    (line({"messages": [TURNS[0], {"role": "assistant", "content": None}]}), "content"),
    (line({"messages": [TURNS[0], {"role": "assistant", "content": " \n"}, *TURNS]}), "空"),
    (line({"messages": [{"role": "tool", "content": "x"}, *TURNS]}), "工具"),
    (line({"prompt": "x", "chosen": "a", "rejected": ""}), "空"),
    (line({"chosen": "a", "rejected": "b"}), "提问"), (line({"messages": TURNS, "chosen": "a", "rejected": "b"}), "提问"),
    (line({"prompt": "x", "chosen": 1, "rejected": "b"}), "列表"),
    (line({"prompt": "x", "chosen": [], "rejected": "b"}), "助手"),
    (line({"instruction": "x", "output": "y", "history": ["ab"]}), "history"), (lines.TooLong(b'{"text"'), "64 MiB"),
])
def test_bad_lines_have_a_reason(raw, reason):
    got = parse_line(raw)
    assert isinstance(got, str) and reason in got


@pytest.mark.parametrize("field", ["no", ["no", "none"]])
def test_D10_nothing_in_any_field_is_bad(field):
    assert "没有内容" in parse_line(line({"text": "丙", "none": ""}), field)


def test_harmless_oddities_pass():
    assert parse_line(b'{"text": "a", "score": NaN, "deep": ' + b"[" * 100 + b"]" * 100 + b"}").texts == ["a"]
    assert parse_line('{"text": "一\u2028二\x85三"}'.encode()).texts == ["一\u2028二\x85三"]
    assert parse_line(b'{"text": "a"}\r').texts == ["a"]


def test_lines_end_at_line_feeds_only_and_a_bom_is_tolerated(tmp_path):
    texts = ["一\u2028二", "三\x0b\x0c\x85四", "五"]
    body = b"\xef\xbb\xbf" + b"\r\n".join(line({"text": t}) for t in texts[:2]) + b"\n\n \n" + line({"text": texts[2]})
    (tmp_path / "a.jsonl").write_bytes(body)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(body))
    for name in ("a.jsonl", "a.jsonl.gz"):
        rows = list(read_rows(tmp_path / name))
        assert [r.texts[0] for r in rows] == texts
        assert [r.line for r in rows] == [1, 2, 5] and rows[0].file.endswith(name)


@pytest.mark.parametrize("suffix", ["jsonl", "txt"])
def test_touching_ranges_hand_out_everything_once(tmp_path, suffix):
    rng = random.Random(0)
    path = tmp_path / f"a.{suffix}"
    for _ in range(60):
        path.write_bytes(
            b"".join(rng.choice([b"\n", b"\r\n", b"x", b"yy\n", b"zzz \n", b"\n\n"])
                     for _ in range(rng.randrange(1, 25))))
        size = path.stat().st_size
        whole = [raw for _, raw in iter_lines(path)]
        for _ in range(10):
            cuts = sorted({0, size, *(rng.randrange(size + 1) for _ in range(rng.randrange(4)))})
            parts = [raw for a, b in zip(cuts, cuts[1:]) for _, raw in iter_lines(path, a, b)]
            assert parts == whole, (path.read_bytes(), cuts)
        assert whole == [raw for _, raw in iter_lines(path, 0, size)]


def test_paragraphs_of_a_text_file(tmp_path, monkeypatch):
    path = tmp_path / "书.TXT"
    path.write_bytes("\n第一段\n还是第一段\r\n \n\n第二段<|im_end|>其后\n".encode())
    rows = list(read_rows(path))
    assert is_plain_text(path) and [(r.kind, r.texts, r.line) for r in rows] == [
        ("text", ["第一段\n还是第一段"], 2), ("text", ["第二段", "其后"], 6)]
    monkeypatch.setattr(lines, "PARAGRAPH", 20)                   # a book without blank lines comes in portions
    path.write_text("十个字节多\n" * 10, encoding="utf-8")
    assert "\n".join(r.texts[0] for r in read_rows(path)) == "\n".join(["十个字节多"] * 10)
    assert len(list(read_rows(path))) == 5


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "txt"])
def test_a_line_beyond_the_limit_is_reported_not_loaded(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(lines, "MAX_LINE", 100)
    good = b"x" * 100 if suffix == "txt" else b'{"text": "' + b"x" * 88 + b'"}'        # exactly at the limit
    blank = b"\n" if suffix == "txt" else b""
    body = b"".join(part + b"\n" + blank for part in (good, b"y" * 101, b"z" * (3 << 20), good)) + b"w" * 101
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(body) if suffix.endswith("gz") else body)
    got = list(iter_lines(path))
    assert [type(raw) is lines.TooLong for _, raw in got] == [False, True, True, False, True]
    assert [len(raw) for _, raw in got][::3] == [100, 100] and all(len(raw) <= 1000 for _, raw in got)
    assert [n for n, _ in got] == ([1, 3, 5, 7, 9] if blank else [1, 2, 3, 4, 5])
    bad = BadLines()
    assert len(list(read_rows(path, bad=bad))) == 2 and bad.count == 3


def test_bad_lines_are_counted_quoted_and_left_out(tmp_path):
    log = tmp_path / "logs" / "bad_lines.jsonl"
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\n".join([line({"text": "好"})] * 20 + [b"{" + "长".encode() * 500, b"\xff"] + [line({"text": "好"})] * 5))
    bad = BadLines(log)
    rows = list(read_rows(path, bad=bad))
    assert len(rows) == 25 and rows[-1].line == 27 and bad.count == 2
    entries = [json.loads(entry) for entry in log.read_text(encoding="utf-8").splitlines()]
    assert [(e["file"], e["line"]) for e in entries] == [(str(path), 21), (str(path), 22)]
    assert len(entries[0]["start"]) == 200 and entries[0]["start"].startswith("{长长") and "UTF-8" in entries[1]["reason"]
    bad.check(27)
    with pytest.raises(UserError) as error:                             # without a collector the first one stops
        list(read_rows(path))
    assert error.value.code == 8 and "21" in str(error.value)


@pytest.mark.parametrize("count, total, share, stops", [
    (10, 30, 0.001, False), (10, 29, 0.001, True), (10, 11, 0.001, True), (1, 3, 0.001, False), (1, 2, 0.001, True),
    (5, 11, 0.5, False),
    (10, 1000, 0.001, False), (11, 1000, 0.001, True), (11, 11_000, 0.001, False), (12, 11_000, 0.001, True),
    (100, 1000, 0.1, False),
    (101, 1000, 0.1, True), (0, 0, 0.001, False), (3, 3, 0.001, True),
])
def test_too_many_bad_lines_stop_the_run(count, total, share, stops):
    bad = BadLines(max_bad_share=share)
    for i in range(count):
        bad.add("a.jsonl", i + 1, "坏")
    if not stops:
        return bad.check(total)
    with pytest.raises(UserError) as error:
        bad.check(total)
    assert error.value.code == 8 and "a.jsonl 第 1 行" in str(error.value)


def test_the_quotes_of_a_hopeless_file_are_limited(tmp_path, monkeypatch):
    from tools.reading import bad_lines
    monkeypatch.setattr(bad_lines, "LOGGED", 5)
    bad = BadLines(tmp_path / "bad.jsonl")
    for i in range(20):
        bad.add("a", i + 1, "坏")
    assert bad.count == 20 and len((tmp_path / "bad.jsonl").read_text().splitlines()) == 5


def test_paths_one_list_pattern(tmp_path):
    names = ["b.jsonl", "a.jsonl", "c[1].jsonl", "deep/d.jsonl"]
    (tmp_path / "deep").mkdir()
    for name in names:
        (tmp_path / name).write_text('{"text": "x"}')
    (tmp_path / "empty.txt").touch()
    at = {name: str(tmp_path / name) for name in names}
    assert expand_paths(at["b.jsonl"]) == expand_paths(tmp_path / "b.jsonl") == [at["b.jsonl"]]
    assert expand_paths([at["b.jsonl"], at["a.jsonl"], at["b.jsonl"]]) == [at["a.jsonl"], at["b.jsonl"]]
    assert expand_paths(str(tmp_path / "[ab].jsonl")) == [at["a.jsonl"], at["b.jsonl"]]
    assert expand_paths(at["c[1].jsonl"]) == [at["c[1].jsonl"]]
    assert expand_paths(str(tmp_path / "**" / "*.jsonl")) == sorted(at.values())
    for wrong in (tmp_path / "no.jsonl", tmp_path / "no*.jsonl", tmp_path, tmp_path / "empty.txt", [], None,
                  [at["a.jsonl"], "no"]):
        with pytest.raises(UserError) as error:
            expand_paths(wrong if isinstance(wrong, (list, type(None))) else str(wrong))
        assert error.value.code == 2


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_file_counts_once_under_all_its_names(tmp_path, monkeypatch):
    """Other spellings, links to it, folders that lead back to themselves; what is no file is called by what it is."""
    (tmp_path / "下").mkdir()
    (tmp_path / "下" / "a.jsonl").write_text('{"text": "x"}')
    (tmp_path / "自己").symlink_to(".")
    (tmp_path / "下" / "b.jsonl").symlink_to("a.jsonl")
    monkeypatch.chdir(tmp_path)
    assert expand_paths(["下/b.jsonl"]) == ["下/b.jsonl"]
    assert expand_paths("**/*.jsonl") == expand_paths(["./下/a.jsonl", "下/a.jsonl", "下/../下/a.jsonl"]) == ["下/a.jsonl"]
    (tmp_path / "断").symlink_to("没有")
    (tmp_path / "圈").symlink_to("圈")
    os.mkfifo(tmp_path / "管")
    for name, said in (("断", "断了的链接"), ("圈", "断了的链接"), ("管", "管道"), (os.devnull, "设备"), ("无", "不存在")):
        with pytest.raises(UserError, match=said):
            expand_paths(name)


def test_a_damaged_archive_is_the_users_error(tmp_path):
    body = gzip.compress(line({"text": "x" * 10_000}) * 5)
    for harmed in (body[:-20], body[:20] + b"\0\0\0" + body[23:], b"plain text"):
        (tmp_path / "a.jsonl.gz").write_bytes(harmed)
        with pytest.raises(UserError) as error:
            list(read_rows(tmp_path / "a.jsonl.gz", bad=BadLines()))
        assert error.value.code == 2
    (tmp_path / "a.jsonl.gz").write_bytes(body)
    with pytest.raises(ValueError):
        list(iter_lines(tmp_path / "a.jsonl.gz", 5))


def test_a_sample_is_spread_evenly_and_repeatable(tmp_path):
    body = b"".join(line({"text": f"{i:06d}"}) + b"\n" for i in range(20_000))
    (tmp_path / "a.jsonl").write_bytes(body)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(body))
    plain = list(sample_texts(tmp_path / "a.jsonl", 60_000, block=4096))
    assert plain == list(sample_texts(tmp_path / "a.jsonl", 60_000, block=4096))
    zipped = list(sample_texts(tmp_path / "a.jsonl.gz", 60_000))
    for sample in (plain, zipped):
        numbers = [int(t) for t in sample]
        assert numbers == sorted(set(numbers)) and 1000 < len(numbers) < 8000
        assert all(sum(a <= n < a + 5000 for n in numbers) > 200 for a in range(0, 20_000, 5000))
    assert len(list(sample_texts([tmp_path / "a.jsonl"], 1 << 30))) == 20_000


@pytest.mark.parametrize(
    "name, kind", [("text", "text"), ("dialogue", "dialogue"), ("identity", "dialogue"), ("shopping", "dialogue"),
                                        ("preference", "preference")])
def test_real_files_read_without_a_bad_line(name, kind):
    path = SHARED / f"{name}.jsonl"
    if not path.exists():
        pytest.skip("../shared/data is missing")
    bad, end = BadLines(), min(path.stat().st_size, 3 << 20)
    rows = list(read_range(path, 0, end, bad=bad))
    assert rows and bad.count == 0 and {row.kind for row in rows} == {kind} and isinstance(rows[0], Row)
    assert all(formats.row_texts(row) for row in rows)
