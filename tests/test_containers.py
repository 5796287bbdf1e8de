"""A file is read for what its first bytes say it is: encodings, arrays, objects, tables; the rest is refused."""

import gzip
import io
import json
import os
import pickle
import sqlite3
import tracemalloc
import zipfile

import pytest

from tools.check_data import check
from tools.errors import UserError
from tools.formats import BadLines, read_rows
from tools.reading import json_items, lines
from tools.reading.containers import kind_of
from tools.vocab import Vocab
from train_agent.trainers.data.token_cache import open_cache

ROWS = [
    {"instruction": f"第{i}次渡河，带{i}只羊，怎么走？", "input": "", "output": f'先过{i}只，"慢慢来"，\n再回头。{{[,'}
    for i in range(12)
]
WANTED = [(r["instruction"], r["output"]) for r in ROWS]


def dumps(value, **how):
    return json.dumps(value, ensure_ascii=False, **how)


def jsonl(rows=ROWS, **how):
    return "".join(dumps(row, **how) + "\n" for row in rows)


def columns(rows=ROWS):
    return {name: [row[name] for row in rows] for name in rows[0]}


def table(mark, rows=ROWS):
    import csv

    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=mark)
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return out.getvalue()


LAYOUTS = {
    "lines": jsonl(),
    "lines with commas": jsonl().replace("}\n", "},\n"),
    "array": dumps(ROWS),
    "pretty array": dumps(ROWS, indent=2),
    "one object a line": "[\n" + ",\n".join(map(dumps, ROWS)) + "\n]\n",
    "tabs": dumps(ROWS, indent="\t"),
    "blanks before": "\n\n  " + dumps(ROWS),
    "windows": dumps(ROWS, indent=1).replace("\n", "\r\n"),
    "trailing comma": dumps(ROWS)[:-1] + ",\n]",
    "pretty objects": jsonl(indent=2),
    "objects in one line": "".join(map(dumps, ROWS)),
    "data": dumps({"version": 1, "data": ROWS}, indent=1),
    "one line of data": dumps({"data": ROWS}),
    "hub rows": dumps({"features": [], "rows": [{"row_idx": i, "row": r} for i, r in enumerate(ROWS)]}),
    "columns": dumps(columns()),
    "pandas columns": dumps({n: {str(i): v for i, v in enumerate(c)} for n, c in columns().items()}),
    "pandas split": dumps(
        {"columns": list(ROWS[0]), "index": list(range(12)), "data": [list(r.values()) for r in ROWS]}
    ),
    "by id": dumps({f"r{i}": r for i, r in enumerate(ROWS)}),
    "two arrays": dumps(ROWS[:5]) + "\n" + dumps(ROWS[5:]),
    "csv": table(","),
    "tsv": table("\t"),
    "semicolons": table(";"),
}


def said(rows):
    return [tuple(m["content"] for m in row.messages) for row in rows]


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".jsonl.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "gb18030"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_in_every_encoding_gives_every_row(ram_path, layout, encoding, suffix):
    raw = LAYOUTS[layout].encode(encoding)
    path = ram_path / ("a" + suffix)
    path.write_bytes(gzip.compress(raw, 1) if suffix.endswith("gz") else raw)
    rows = list(read_rows(path))
    assert said(rows) == WANTED and not any(row.dropped for row in rows)
    if "lines" not in layout:
        assert [row.line for row in rows] == list(range(1, 13))


@pytest.mark.parametrize("layout", ["pretty array", "csv", "columns"])
@pytest.mark.parametrize("suffix", [".json", ".json.gz"])
def test_training_vocabulary_and_check_up_read_the_same(ram_path, layout, suffix):
    raw = LAYOUTS[layout].encode("gb18030")
    path, plain = ram_path / ("a" + suffix), ram_path / "plain.jsonl"
    path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
    plain.write_text(jsonl(), encoding="utf-8")
    vocab = Vocab.create_vocab(path, vocab_size=500, token_kind="char", progress=False)
    assert vocab == Vocab.create_vocab(plain, vocab_size=500, token_kind="char", progress=False)
    for a, b in zip(
        *(open_cache(p, vocab, "instruction_finetuning", ram_path / "cache").tokens for p in (path, plain)), strict=True
    ):
        assert a == b
    found = check(path, vocab=vocab, progress=False)
    assert found["rows"] == 12 and found["bad_lines"] == 0 and found["level"] != "stop"


def test_pieces_do_not_matter(tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text(dumps(ROWS, indent=3), encoding="utf-8")
    for size in (1, 2, 3, 7, 64, 1000):
        monkeypatch.setattr(json_items, "PIECE", size)
        assert said(read_rows(tmp_path / "a.json")) == WANTED


def test_one_bad_item_does_not_take_the_others_along(tmp_path):
    items = [dumps(row) for row in ROWS]
    items[3] = items[3].replace('"output":', '"output"')
    items[5] = "{'single': 1}"
    (tmp_path / "a.json").write_text("[" + ",\n".join(items) + "]", encoding="utf-8")
    bad = BadLines()
    assert (
        said(read_rows(tmp_path / "a.json", bad=bad)) == [w for i, w in enumerate(WANTED) if i not in (3, 5)]
        and bad.count == 2
    )


def test_an_array_that_was_cut_off_says_so(tmp_path):
    whole = dumps(ROWS, indent=1)
    for cut in (len(whole) - 1, len(whole) // 2, len(whole) // 3):
        (tmp_path / "a.json").write_text(whole[:cut], encoding="utf-8")
        bad = BadLines()
        rows = said(read_rows(tmp_path / "a.json", bad=bad))
        assert rows == WANTED[: len(rows)] and bad.count == 1 and "没有下载完" in bad.first[2]


def test_line_breaks_inside_a_string_stay(tmp_path):
    (tmp_path / "a.json").write_text('[{"text": "上\n下"},\n {"text": "左"}]', encoding="utf-8")
    assert [row.texts for row in read_rows(tmp_path / "a.json")] == [["上\n下"], ["左"]]


def test_an_item_beyond_the_limit_is_reported_not_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(json_items, "LIMIT", 5000)
    monkeypatch.setattr(json_items, "PIECE", 1000)
    (tmp_path / "a.json").write_text(
        dumps([{"text": "短"}, {"text": ["长" * 40] * 300}, {"text": "短"}]), encoding="utf-8"
    )
    bad = BadLines()
    assert [row.texts for row in read_rows(tmp_path / "a.json", bad=bad)] == [["短"], ["短"]] and bad.count == 1


def test_memory_of_a_large_array_is_a_few_pieces(tmp_path):
    with open(tmp_path / "a.json", "w", encoding="utf-8") as out:
        out.write("[" + ",\n".join(dumps({"text": "渡" * 1000, "id": i}) for i in range(10_000)) + "]")
    tracemalloc.start()
    rows, peak = sum(1 for _ in read_rows(tmp_path / "a.json")), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 10_000 and peak < 8 << 20 < os.path.getsize(tmp_path / "a.json")


# ---- encodings that need a second look ----


def test_one_bad_line_does_not_make_a_file_gbk(tmp_path):
    raw = [dumps(row).encode() for row in ROWS] + [dumps(ROWS[0]).encode("gbk")]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(raw))
    bad = BadLines()
    assert len(list(read_rows(tmp_path / "a.jsonl", bad=bad))) == 12 and bad.first[2] == "不是合法的 UTF-8"


def test_chinese_after_much_english_is_still_recognised(tmp_path):
    rows = [{"text": f"line {i} " + "abcdefgh " * 40} for i in range(3000)] + [
        {"text": f"船到了第{i}个渡口。"} for i in range(3000)
    ]
    (tmp_path / "a.jsonl").write_bytes("".join(dumps(r) + "\n" for r in rows).encode("gbk"))
    assert kind_of(tmp_path / "a.jsonl").encoding == "gb18030"
    assert list(read_rows(tmp_path / "a.jsonl"))[-1].texts == ["船到了第2999个渡口。"]


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-8-sig"])
def test_books_in_other_encodings(tmp_path, encoding):
    (tmp_path / "书.txt").write_bytes("第一段，船来了。\n还是第一段。\r\n\r\n第二段：河很宽。\n".encode(encoding))
    assert [row.texts[0] for row in read_rows(tmp_path / "书.txt")] == [
        "第一段，船来了。\n还是第一段。",
        "第二段：河很宽。",
    ]


@pytest.mark.parametrize("encoding", ["big5", "euc-jp", "euc-kr", "shift-jis"])
def test_other_encodings_are_refused_by_name_not_misread(tmp_path, encoding):
    text = {
        "big5": "這個渡口的船夫說明天會下雨",
        "euc-jp": "渡し船はあした来ません",
        "shift-jis": "渡し船はあした来ません",
        "euc-kr": "나룻배는 내일 오지 않습니다",
    }[encoding]
    (tmp_path / "a.jsonl").write_bytes("".join(dumps({"text": text}) + "\n" for _ in range(40)).encode(encoding))
    with pytest.raises(UserError) as error:
        list(read_rows(tmp_path / "a.jsonl", bad=BadLines()))
    assert error.value.code == 2 and "UTF-8" in str(error.value)


def test_json_lines_and_arrays_called_txt_are_what_they_are(tmp_path):
    for layout in ("lines", "pretty array"):
        (tmp_path / "a.txt").write_text(LAYOUTS[layout], encoding="utf-8")
        assert said(read_rows(tmp_path / "a.txt")) == WANTED
    (tmp_path / "b.txt").write_text("[注] 河很宽。\n\n{渡口} 无人。", encoding="utf-8")
    assert [row.kind for row in read_rows(tmp_path / "b.txt")] == ["text", "text"]


# ---- what is refused, each with its cure ----


def _zip(**files):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in files.items():
            archive.writestr(name.replace("__", "/").replace("_", "."), text)
    return out.getvalue()


def _sqlite(tmp_path):
    base = sqlite3.connect(tmp_path / "b.db")
    base.execute("create table t(a)")
    base.commit()
    return (tmp_path / "b.db").read_bytes()


KINDS = {
    "parquet": (b"PAR1\x15\x04" + b"\0" * 400, "hf:"),
    "arrow": (b"ARROW1\0\0" + b"\0" * 100, "hf:"),
    "zip": (_zip(a_jsonl=jsonl()), "python -m zipfile -e"),
    "xlsx": (_zip(xl__workbook_xml="x"), "CSV UTF-8"),
    "docx": (_zip(word__document_xml="x"), ".txt"),
    "old office": (b"\xd0\xcf\x11\xe0" + b"\0" * 600, "另存为"),
    "pickle": (pickle.dumps(ROWS), "pickle"),
    "html": (b"<!DOCTYPE html>\n<html><body>login</body></html>", "网页"),
    "pdf": (b"%PDF-1.7\n\xff\xfe", "pdftotext"),
    "rar": (b"Rar!\x1a\x07\0" + b"\0" * 50, "unrar"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + b"\0" * 50, "7z x"),
    "xz": (b"\xfd7zXZ\0\0\x04" + b"\1" * 50, "lzma"),
    "bz2": (b"BZh91AY&SY" + b"\1" * 50, "bz2"),
    "zstd": (b"\x28\xb5\x2f\xfd" + b"\1" * 50, "zstd -d"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
    "tar.gz": (gzip.compress(b"a.jsonl" + b"\0" * 250 + b"ustar\x0000" + b"\0" * 800), "tar xf"),
    "npy": (b"\x93NUMPY\1\0" + b"\0" * 60, "NumPy"),
}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".data"])
@pytest.mark.parametrize("kind", [*KINDS, "sqlite"])
def test_other_kinds_are_refused_with_their_cure(tmp_path, kind, suffix):
    raw, cure = KINDS[kind] if kind != "sqlite" else (_sqlite(tmp_path), "sqlite3")
    path = tmp_path / ("a" + suffix)
    path.write_bytes(raw)
    for read in (
        lambda: list(read_rows(path, bad=BadLines())),
        lambda: check(path, progress=False),
        lambda: Vocab.create_vocab(path, vocab_size=500, token_kind="char", progress=False),
    ):
        with pytest.raises(UserError) as error:
            read()
        assert error.value.code == 2 and cure in str(error.value) and "max_bad_share" not in str(error.value)


def test_a_gz_that_is_none_says_so(tmp_path):
    (tmp_path / "a.jsonl.gz").write_text(jsonl(), encoding="utf-8")
    with pytest.raises(UserError, match="内容却不是"):
        list(read_rows(tmp_path / "a.jsonl.gz"))


def test_ranges_only_of_what_can_be_entered(tmp_path):
    for name, raw, able in (
        ("a.jsonl", jsonl().encode(), True),
        ("b.json", dumps(ROWS).encode(), False),
        ("c.jsonl", jsonl().encode("gbk"), False),
        ("d.csv", table(",").encode(), False),
        ("e.jsonl.gz", gzip.compress(jsonl().encode()), False),
    ):
        (tmp_path / name).write_bytes(raw)
        assert lines.rangeable(tmp_path / name) is able
        plain, whole = lines.unpacked(tmp_path / name, tmp_path)
        assert whole and lines.rangeable(plain) and said(read_rows(plain)) == WANTED


def test_advice_never_is_to_allow_more_bad_lines_than_good(tmp_path):
    for good, advised in ((1, False), (19, False), (30, True)):
        bad = BadLines(max_bad_share=0.001)
        for i in range(20):
            bad.add("a", i + 1, "坏")
        with pytest.raises(UserError) as error:
            bad.check(20 + good)
        assert ("max_bad_share" in str(error.value)) is advised


def test_csv_records_of_many_columns_and_repeated_names(tmp_path):
    (tmp_path / "a.csv").write_text(
        'question,answer,answer\n"问,\n一",答一,另答\n问二,答二,,多出来的\n', encoding="utf-8-sig"
    )
    rows = list(read_rows(tmp_path / "a.csv"))
    assert said(rows) == [("问,\n一", "答一"), ("问二", "答二")]
    assert rows[0].dropped == {"answer_3": 2} and rows[1].dropped == {"第4列": 4}


@pytest.mark.parametrize("read, other", [("train", "test"), ("data", "eval"), ("train", "validation")])
def test_tables_of_one_object_that_are_not_read_are_named(tmp_path, read, other):
    path = tmp_path / "both.json"
    path.write_text(dumps({"about": "两份", other: ROWS[:5], read: ROWS}), encoding="utf-8")
    bad = BadLines(None)
    assert len(list(read_rows(path, bad=bad))) == len(ROWS)
    assert bad.count == 1 and f"{other}（5 行）没有读" in str(bad.first)
    assert f"{other}（5 行）没有读" in str(check(path, vocab=None, progress=False)["bad"])


def test_an_array_that_breaks_off_is_called_so_by_the_check_up_too(tmp_path):
    path = tmp_path / "half.json"
    path.write_text(dumps(ROWS, indent=1)[:-40], encoding="utf-8")
    assert [why for why in check(path, vocab=None, progress=False)["bad"] if "断了" in why]
