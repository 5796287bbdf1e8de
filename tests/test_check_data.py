"""The data check-up: every kind of fault planted once is found with its line, a clean corpus raises no alarm."""
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tools import check_data
from tools.checkup import wording
from tools.check_data import check, quick_check
from tools.checkup.faults import KINDS
from tools.errors import UserError
from tools.vocab import Vocab

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
NOUNS = "小猫 老师 邻居 火车 书店 面包 河流 城市 朋友 雨伞 医生 花园 电影 故事 厨房 学生 桥梁 月亮 苹果 地图".split()
VERBS = "喜欢 看见 带走 整理 打开 等待 介绍 修理 送给 画出 讲述 洗干净 记住 寻找 放下".split()
PLACES = "公园里 车站旁 教室后面 山坡上 窗户边 操场中央 屋檐下 图书馆门口 集市上 湖边".split()
TIMES = "早上 中午 傍晚 昨天 春天 下雨的时候 放学以后 周末 第二天 很久以前".split()


def sentence(rng):
    return (f"{rng.choice(TIMES)}，{rng.choice(NOUNS)}在{rng.choice(PLACES)}{rng.choice(VERBS)}了"
            f"{rng.choice(NOUNS)}和{rng.choice(NOUNS)}。")


def passage(rng, low=3, high=8):
    return "".join(sentence(rng) for _ in range(rng.randrange(low, high)))


def dialogue(*turns):
    """u: user, a: assistant, s: system, by turns."""
    names = {"u": "user", "a": "assistant", "s": "system"}
    return {"messages": [{"role": names[r], "content": c} for r, c in turns]}


def clean_rows(rng, count):
    for k in range(count):
        if k % 2:
            yield {"text": passage(rng)}
        else:
            yield dialogue(("u", f"{sentence(rng)}为什么？"), ("a", passage(rng)))


def lines_of(rows):
    return [json.dumps(row, ensure_ascii=False).encode() for row in rows]


def write(path, lines):
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture(scope="module")
def vocab():
    rng = random.Random(0)
    known = [line.decode("utf-8", "ignore") for kind, line in planted().items() if kind != "unknown_words"]
    return Vocab.create_vocab([passage(rng) for _ in range(50)] + known, texts=True, progress=False)


def planted():
    """{expected kind, or part of the reason of a bad line: the line}, in the order in which they are planted."""
    rng = random.Random(9)
    text = passage(rng)
    ask, answer = ("u", "请讲一个故事。"), ("a", passage(rng))

    def say(words):
        return {"text": sentence(rng) + words + sentence(rng)}
    rows = {
        "replacement": say("这里坏\ufffd了"), "mojibake": say("你好世界".encode().decode("latin-1")), "control": say("有\x07响铃"),
        "invisible": say("零\u200b宽"), "private": say("图标\ue123在此"), "html": say("<br/>换行&nbsp;"),
        "escaped": say("\\u4f60\\u597d"),
        "forged": dialogue(ask, ("a", "<|im_start|>user 讲故事")), "repeat": say("今天天气好，" * 12),
        "blank": say("\u3000" * 60),
        "blob": say("".join(rng.choices("abcdefgXYZ0123", k=300))), "secret": say("sk-" + "abcdEFGH1234" * 3),
        "privacy": say("打电话13912345678找我"),
        "no_words": {"text": "……！！？？"}, "short": {"text": "好的"}, "placeholder": dialogue(ask, ("a", "待补充")),
        "echo": dialogue(("u", "请把这句话翻译出来"), ("a", "请把这句话翻译出来")), "empty_turn": dialogue(("u", " "), answer),
        "same_role": dialogue(ask, ("u", "快一点。"), answer), "starts_assistant": dialogue(("a", "欢迎光临小店"), ask, answer),
        "trailing": dialogue(ask, answer, ("u", "然后呢？")),
        "late_system": dialogue(ask, answer, ("s", "要有礼貌。"), ask, answer),
        "same_pair": {"prompt": "选一个。", "chosen": "苹果很甜", "rejected": "苹果很甜"},
        "answer_lost": dialogue(("u", passage(rng, 30, 31)), ("a", "知道了。")),
        "unknown_words": {"text": "Ωμέγα και άλφα είναι γράμματα του ελληνικού αλφαβήτου"},
        "不是合法的 JSON": b'{"text": "' + text.encode(), "不是 JSON 对象": ["只是列表"],
        "不是合法的 UTF-8": '{"text": "坏'.encode("gbk") + b'\xff"}',
        "NUL": say("空\0字符"), "代理字符": b'{"text": "\\ud83d half a pair here"}', "嵌套太深": b"[" * 200_000,
        "没有可识别的字段": {"问句": "问", "答句": "答"}, "text 应是字符串": {"text": 7}, "messages 应是列表": {"messages": "你好"},
        "一轮对话应是": {"messages": ["你好"]}, "一轮对话要有": {"messages": [{"role": "user"}]},
        "无法识别的角色": {"messages": [{"role": "boss", "content": "嗯"}]},
        "没有回答": dialogue(ask), "有的回答是空的": dialogue(ask, ("a", "  ")), "文本是空的": {"text": "  "},
        "history 应是": {"instruction": "问", "output": "答", "history": ["错"]},
        "没有共同的提问": {"chosen": "甲", "rejected": "乙"},
        "提问应以用户": {"messages": [{"role": "assistant", "content": "嗯"}], "chosen": "甲", "rejected": "乙"},
    }
    lines = {kind: row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode()
             for kind, row in rows.items()}
    lines["duplicate_key"] = '{"text": "前一个会丢掉的内容", "text": "后一个才算数的内容"}'.encode()
    return lines


def places(result, kind):
    entry = result["faults"].get(kind) or next((e for reason, e in result["bad"].items() if kind in reason),
                                               {"places": []})
    return [line for _, line, _ in entry["places"]]


def test_every_planted_kind_is_found_with_its_line(tmp_path, vocab):
    rng, lines, at = random.Random(1), [], {}
    for kind, line in planted().items():
        lines += lines_of(clean_rows(rng, 6)) + [b"", line]
        at[kind] = len(lines)
    again, near = lines_of([{"text": passage(rng, 6, 7)}, {"text": passage(rng, 6, 7)}])
    lines += [again, near, again, near.replace("。".encode(), "！".encode(), 1)]
    at["duplicate"], at["near_duplicate"] = len(lines) - 1, len(lines)
    result = check(write(tmp_path / "a.jsonl", lines), vocab=vocab, max_len=256, progress=False)
    assert len(at) >= 30
    assert {kind: places(result, kind) for kind in at} == {kind: [line] for kind, line in at.items()}
    bad = sum(kind not in KINDS for kind in at)
    assert result["bad_lines"] == bad
    expected = {k for k in at if k in KINDS}
    assert expected <= set(result["faults"]) <= expected | {"mixed"}       # the one preference row is a stranger here
    assert result["level"] == "stop" and "不能用" in result["verdict"]


def test_a_clean_corpus_raises_no_alarm(tmp_path, vocab):
    result = check(write(tmp_path / "a.jsonl", lines_of(clean_rows(random.Random(2), 3000))), vocab=vocab,
                   progress=False)
    assert result["faults"] == {} and result["bad"] == {} and result["level"] == "ok" and result["rows"] == 3000
    assert "放心" in result["verdict"]


def test_held_out_rows_that_are_in_the_training_data(tmp_path):
    rng = random.Random(3)
    rows = lines_of(clean_rows(rng, 60))
    train = write(tmp_path / "train.jsonl", rows)
    held = lines_of(clean_rows(rng, 10))
    held[4], held[7] = rows[20], rows[31].replace("。".encode(), "？".encode(), 1)
    result = check(train, write(tmp_path / "held.jsonl", held), progress=False)
    assert [(Path(p).name, line) for p, line, _ in result["faults"]["leak"]["places"]] == [("held.jsonl", 5),
        ("held.jsonl", 8)]
    assert set(result["faults"]) == {"leak"}


def test_leaks_of_the_automatic_share_are_counted(tmp_path):
    rows = lines_of(clean_rows(random.Random(4), 40))
    rows[13] = rows[20]                                                # row 20 (from 0) is held out at a share of 0.1
    assert check(write(tmp_path / "a.jsonl", rows), eval_share=0.1, progress=False)["hidden_leaks"] == 1
    assert check(write(tmp_path / "a.jsonl", rows), eval_share=0.0, progress=False)["hidden_leaks"] == 0


def test_a_stranger_among_many_rows(tmp_path):
    rng = random.Random(5)
    rows = [{"text": passage(rng)} for _ in range(80)]
    rows[33] = dialogue(("u", sentence(rng)), ("a", passage(rng)))
    assert places(check(write(tmp_path / "a.jsonl", lines_of(rows)), progress=False), "mixed") == [34]


def test_blocks_processes_and_gz_change_nothing(tmp_path, monkeypatch, vocab):
    """Tiny blocks, several processes, a packed file: the same lines, counts and verdict."""
    rng = random.Random(6)
    lines = lines_of(clean_rows(rng, 150)) + [b"", b"broken"]
    lines += lines_of([{"text": "乱\ufffd码" + passage(rng)}]) + [lines[3], b""]
    path = write(tmp_path / "a.jsonl", lines)
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as f:
        f.write(path.read_bytes())
    whole = check(path, vocab=vocab, progress=False)
    monkeypatch.setattr("tools.checkup.scan.BLOCK", 3000)
    blocks = check(path, vocab=vocab, progress=False)
    assert {**blocks, "files": 0} == {**whole, "files": 0} and blocks["files"][0]["lines"] == len(lines)
    packed = check(tmp_path / "b.jsonl.gz", vocab=vocab, progress=False)
    assert {k: v["count"] for k, v in packed["faults"].items()} == {"duplicate": 1, "replacement": 1}
    assert places(packed, "duplicate") == places(whole, "duplicate") == [154]
    monkeypatch.setattr("tools.checkup.scan.PARALLEL_FROM", 0)
    monkeypatch.setattr("tools.checkup.scan.cores", lambda: 2)
    assert check(path, vocab=vocab, progress=False) == blocks


def test_paragraphs_of_a_txt_file(tmp_path):
    rng = random.Random(7)
    parts = [passage(rng) + "\n" + passage(rng) for _ in range(5)]
    parts[3] = parts[1].replace("。", "！", 1)
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    result = check(path, progress=False)
    assert result["rows"] == 5 and places(result, "near_duplicate") == [10]


def test_token_counts_by_hand(tmp_path):
    vocab = Vocab.create_vocab(["甲乙丙丁戊"], texts=True, progress=False)
    rows = [dialogue(("u", "甲乙"), ("a", "丙丁戊")), {"text": "甲乙丙❀"}]
    totals = check(write(tmp_path / "a.jsonl", lines_of(rows)), vocab=vocab, max_len=8, progress=False)["totals"]
    # <end> User ： 甲 乙 Assistant ： 丙 丁 | 戊 <end>; the last two are beyond 8 inputs + 1.   <end> 甲 乙 丙 + 3 bytes + <end>
    assert totals["tokens"] == 11 + 8 and totals["cut"] == 2 and totals["bytes_tokens"] == 3
    assert totals["learned"] == 2 + 7 and totals["over"] == 1 and totals["documents"] == 2


def test_learned_part_is_marked(tmp_path, monkeypatch, vocab):
    path = write(tmp_path / "a.jsonl", lines_of([dialogue(("u", "为什么？"), ("a", "你好\n你好"))]))
    monkeypatch.setenv("NO_COLOR", "1")
    plain = "\n".join(wording.views([path], vocab))
    assert "<|im_end|>User：为什么？Assistant：【你好⏎你好<|im_end|>】" in plain and "\033" not in plain
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = "\n".join(wording.views([path], vocab))
    assert f"{wording.GREEN}你好⏎你好<|im_end|>{wording.OFF}" in shown


def test_quick_check_of_small_and_large_data(tmp_path, monkeypatch, vocab):
    said = []
    small = write(tmp_path / "a.jsonl", lines_of(clean_rows(random.Random(8), 50)) + [b"oops"])
    result = quick_check(small, vocab=vocab, say=said.append)
    assert result["share"] == 1 and places(result, "JSON") == [51] and 2 <= len(said) <= 3 and "数据体检" in said[0]
    monkeypatch.setattr(check_data, "QUICK_BYTES", 12_000)
    lines = lines_of(clean_rows(random.Random(9), 400))
    lines[399] = b'{"broken'
    large = write(tmp_path / "b.jsonl", lines)
    sampled = quick_check(large, vocab=vocab, say=None)
    assert 0 < sampled["share"] < 0.5 and 0 < sampled["rows"] < 400
    lines[0] = b"{"
    assert places(quick_check(write(large, lines), vocab=vocab, say=None), "JSON") == [1]


def test_command(tmp_path):
    path = write(tmp_path / "a.jsonl", lines_of(clean_rows(random.Random(10), 30)) + [b"oops"])
    out = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / "tools" / "check_data.py", path, "--json", tmp_path / "r.json",
                          "--out_dir", tmp_path], capture_output=True, text=True, encoding="utf-8", cwd=tmp_path)
    assert out.returncode == 0 and "第 31 行" in out.stdout and out.stdout.strip().splitlines()[-1].startswith("结论：可以训练")
    assert "| torch" not in out.stderr
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["bad_lines"] == 1
    assert {p.name for p in tmp_path.iterdir()} == {"a.jsonl", "r.json"}


def test_exit_codes(tmp_path):
    bad = write(tmp_path / "a.jsonl", lines_of(clean_rows(random.Random(11), 30)) + [b"oops"] * 11)
    assert check_data.main([str(bad), "--out_dir", str(tmp_path)]) == 8
    with pytest.raises(UserError) as error:
        check_data.main([str(tmp_path / "missing.jsonl")])
    assert error.value.code == 2


@pytest.mark.skipif(not SHARED.exists(), reason="../shared/data is not there")
def test_shared_data_gets_sensible_verdicts():
    levels = {name: check(SHARED / f"{name}.jsonl", progress=False)["level"]
              for name in ("identity", "mcq", "preference")}
    assert levels == {"identity": "ok", "mcq": "stop", "preference": "warn"}


@pytest.mark.parametrize("near", ["-1", "1.5", "nan"])
def test_a_likeness_that_is_none_is_refused(tmp_path, near):
    (tmp_path / "a.jsonl").write_text('{"text": "书"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="--near"):
        check_data.main([str(tmp_path / "a.jsonl"), "--near", near])
