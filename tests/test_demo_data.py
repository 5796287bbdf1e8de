"""The built-in world: rows are re-read by extractors of their own, which know the wording but not the generator."""
import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

from tools import demo_data
from tools.demo import words as demo_words
from tools.demo_data import build_demo, chance, grade, write_demo
from tools.demo import forms
from tools.demo.hold import clean, held_pair
from tools.demo.outside import admits
from tools.demo.noise import SIMPLE, TRADITIONAL
from tools.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NUMERAL = "零一二两三四五六七八九十百"
NUMBER = rf"(?:\d+|[{NUMERAL}]+)"


def plain(text):
    """The wording without its clothes: one kind of marks, widths, characters, one word for the week and for the day of
    a month."""
    text = re.sub("(?<=[\n。，])|[ ]", "",
                  unicodedata.normalize("NFKC", text).translate(str.maketrans(TRADITIONAL, SIMPLE)))
    text = re.sub("[\"'‘’「」『』【】〝〞《》“”]([^\"'‘’「」『』【】〝〞《》“”]+)[\"'‘’「」『』【】〝〞《》“”]", r"“\1”", text)
    return re.sub("礼拜|周(?=[一二三四五六日天几])", "星期", text).replace("号", "日").replace("星期天", "星期日").replace(",",
        "，").replace("?", "？")


@pytest.fixture(scope="module")
def world():
    return build_demo(0)


def exchanges(row):
    texts = [turn["content"] for turn in row["conversations"]]
    return list(zip(texts[::2], texts[1::2]))


@pytest.fixture(scope="module")
def units(world):
    """Every training sentence of the text and every exchange of the dialogues, as one string each."""
    told = [sentence for row in world["pre"] for sentence in re.split("。", row["text"])]
    return told + [plain(question) + "\n" + answer for row in world["sft"] for question, answer in exchanges(row)]


def held_items(world, *tasks):
    """(question, answer) of the tasks' held-out items."""
    return [exchanges(row)[-1] for row in world["eval"] if row["task"] in tasks]


def read_chinese(text):
    """十七 -> 17, 一百零五 -> 105, by adding up, not by asking the generator."""
    total, digit = 0, 0
    for char in text:
        if char in "十百":
            total, digit = total + (digit or 1) * (10 if char == "十" else 100), 0
        else:
            digit = "零一二三四五六七八九".index(char.replace("两", "二"))
    return total + digit


def numbers(text):
    return [int(t) if t.isdigit() else read_chinese(t) for t in re.findall(rf"\d+|[{NUMERAL}]+", text)]


def is_arithmetic(unit):
    told = not re.search("[月日周期“|（]", unit) and not admits(unit.split("\n")[-1])       # what is refused has no result
    return told and bool(re.search(rf"(\d|[{NUMERAL}])(\+|-|加|减|和|与|比|个，)(\d|[{NUMERAL}])", unit))


def number_pairs(unit):
    found = [n for n in set(numbers(unit)) if 10 <= n <= 99]
    doubled = {frozenset((n, n)) for n in found if numbers(unit.split("\n")[0])[:2] == [n, n]}
    return {frozenset((a, b)) for a in found for b in found if a != b} | doubled


def test_sizes_tasks_and_goods(world):
    counts = Counter(row["task"] for row in world["eval"])
    assert set(counts) == set(demo_data.AMOUNTS) and len(counts) >= 10 and min(counts.values()) >= 100
    assert len(demo_words.GOODS) >= 40
    assert {row["conversations"][-1]["role"] for row in world["eval"]} == {"assistant"}
    assert 1_500_000 <= sum(len(row["text"]) for row in world["pre"]) <= 5_000_000
    assert 15_000 <= len(world["sft"]) <= 90_000
    asked = [json.dumps(row["conversations"][:-1]) for row in world["eval"]]
    assert len(set(asked)) == len(asked)


def test_answers_are_varied_and_short(world):
    for task in demo_data.AMOUNTS:
        answers = Counter(answer for _, answer in held_items(world, task))
        assert max(answers.values()) <= 0.2 * sum(answers.values()), task
        assert max(map(len, answers)) <= (40 if task == "shopping" else 29), task


def test_held_out_number_pairs_never_meet_in_training(world, units):
    held = {frozenset(numbers(question)[:2])
            for question, _ in held_items(world, "sum", "difference", "compare", "chinese_sum", "chinese_compare")}
    assert len(held) >= 100 and all(held_pair(min(pair), max(pair)) for pair in held)
    met, seen = set(), 0
    for unit in units:
        if is_arithmetic(unit):
            seen += 1
            met |= number_pairs(unit)
    assert seen > 30_000 and not met & held


def test_no_step_calculates_with_a_held_out_pair(units):
    for unit in units:
        for a, b, c in re.findall(r"(\d+)[+-](\d+)=(\d+)", unit):
            assert clean(int(a), int(b), int(c)), unit


def number_in(word):
    return int(word) if word.isdigit() else read_chinese(word)


BACK = rf"(?<!当)前|倒|退|早了?(?=[\d{NUMERAL}])|减|往回|回头|过去第"


WHEN = re.compile(
    rf"({NUMBER})[天日](?:以|之)?([后前])|再?(过)({NUMBER})天|往([后前])数({NUMBER})天|[一1](?:周|个?星期)([后前])|"
    "(明天|昨天|后天|前天)")


def weekdays(text):
    """(earlier day, distance) of a weekday question or statement."""
    question = re.split("[:：？\n]", plain(text))[0]
    day = re.search("星期([一二三四五六日])", question)
    when = day and (WHEN.search(question[day.end():]) or WHEN.search(question))
    if not when:
        asked = day and re.search("几|哪", question) and re.search(rf"({NUMBER})(?:[天日]|昼夜|整天)",
                                                                 question.replace(day[0], ""))
        if not asked:
            return set()
        n, back = number_in(asked[1]), re.search(BACK, question)
    else:
        n, side, over, passed, counted_to, counted_n, week, near = when.groups()
        n, back = {"明天": (1, 0), "昨天": (1, 1), "后天": (2, 0), "前天": (2, 1)}.get(near) or (
            (7, week == "前") if week else (number_in(passed or counted_n or n), "前" in (side or counted_to or "")))
    day = "一二三四五六日".index(day[1])
    return {((day - n) % 7 if back else day, n)}


def dates(text):
    """(earlier date, distance) of a date question or statement; computed with datetime in a common year."""
    question = re.split("[:：\n]", plain(text))[0]
    found = re.search(rf"({NUMBER})月({NUMBER})日(.*)", question)
    rest = found and re.search(rf"({NUMBER})[天日]|的([后前])一天", found[3])
    if not rest:
        return set()
    n = number_in(rest[1]) if rest[1] else 1
    back = bool(re.search(BACK, found[3]))
    date = datetime.date(2023, number_in(found[1]), number_in(found[2])) - datetime.timedelta(n * back)
    return {(date.month, date.day, n)}


def form_of(form):
    """A form with alternations as a regular expression; the string that is asked about in a group."""
    form = re.escape(form.rstrip("？")).replace("“\\{s\\}”", "“?([^“”，。？！：]+?)”?")
    return re.compile(form.replace("\\[", "(?:").replace("\\]", ")").replace("\\|", "|") + "$")


PUZZLES = [form_of(form) for ways in (forms.COUNT, forms.FIRST, forms.LAST, forms.REVERSE) for part in ways
           for form in part]


def strings(text):
    """Puzzle strings, forwards = backwards, with quotation marks or without."""
    text = plain(text)
    if not re.search("字|倒|反着念|反过来|反着写|从后往前|颠倒|反向|调个头|由后到前", text):
        return set()
    quoted = re.findall("“([^”]+)”", text)
    bare = [found[1] for found in (form.search(text.split("\n")[0]) for form in PUZZLES) if found]
    return {min(s, s[::-1]) for s in quoted or bare}


def table_items(text):
    """(goods, amount, specification) of every table |a|b|c|a|b|c|."""
    cells = [table.strip("|").split("|") for table in re.findall(r"\|[^\n。]+\|", text)]
    return {tuple(row[i:i + 3]) for row in cells for i in range(0, len(row), 3)}


@pytest.mark.parametrize("tasks, extract", [
    (("weekday",), weekdays), (("date",), dates), (("count", "ends", "reverse"), strings),
    (("shopping",), table_items)])
def test_held_out_slots_are_not_in_training(world, units, tasks, extract):
    items = held_items(world, *tasks)
    held = [extract(f"{question}\n{answer}") for question, answer in items]
    assert all(held), "the extractor must understand every question"
    trained = set().union(*map(extract, units))
    assert len(trained) > 200 and not trained & set().union(*held)


def test_held_out_measure_phrases_are_not_in_training(world, units):
    text = re.sub(rf"(?<![{NUMERAL}])(?=[{NUMERAL}])", "#", "\n".join(units))      # 十三只猫 contains 三只猫, and may
    assert [answer for _, answer in held_items(world, "measure") if "#" + answer in text] == []


@pytest.mark.parametrize("task", ["antonym", "fact", "identity"])
def test_held_out_wordings_are_not_in_training(world, task):
    """The fact may be known, this wording of it not; antonyms are held out with both words of the pair."""
    def key(question, answer):
        question = re.sub("[？。！!~ ]+$", "", plain(question))
        words = re.findall("“(.+?)”", question)
        return (re.sub("“.+?”", "“”", question),
                frozenset((words[0], answer))) if task == "antonym" and words else question
    trained = {key(*pair) for row in world["sft"] for pair in exchanges(row)}
    assert not trained & {key(*pair) for pair in held_items(world, task)}
    told = "".join(row["text"] for row in world["pre"])
    if task == "fact":
        assert all(answer in told for _, answer in held_items(world, task))


def test_held_out_small_talk_and_recalled_values_are_not_in_training(world, units):
    text = "\n".join(unit for unit in units if "“" not in unit)          # puzzles shuffle characters into any word
    replies = {answer for row in world["sft"] for _, answer in exchanges(row)}
    assert not replies & {answer for _, answer in held_items(world, "small_talk")}
    values = {re.sub("你叫|你喜欢吃|你住在", "", answer) for _, answer in held_items(world, "recall")}
    assert len(values) >= 60 and any(value.isascii() for value in values)
    assert [value for value in values if len(value) > 2 and value in text] == []       # two may meet by chance


def test_recall_is_asked_two_or_more_turns_later(world):
    for row in world["eval"]:
        if row["task"] == "recall":
            *earlier, (_, answer) = exchanges(row)
            value = re.sub("你叫|你喜欢吃|你住在", "", answer)
            told = [i for i, (question, _) in enumerate(earlier) if value in question]
            assert len(told) == 1 and told[0] <= len(earlier) - 2
            assert all(role == turn["role"] for role, turn in zip(("user", "assistant") * 9, row["conversations"]))


def steps_are_right(answer):
    return all(eval(left) == int(right) for left, right in re.findall(r"([\d+-]+)=(\d+)", answer))


def check_sum(question, answer):
    a, b = numbers(question)[:2]
    assert [numbers(part)[:2] for part in answer.split("，")[:2]] == [[a % 10, b % 10], [a // 10, b // 10]]
    assert numbers(answer)[-1] == a + b and steps_are_right(answer)


def check_difference(question, answer):
    a, b = numbers(question)[:2]
    assert numbers(answer)[-1] == a - b and steps_are_right(answer)


def check_compare(question, answer):
    assert numbers(answer) == [max(numbers(question)) if "大" in question else min(numbers(question))]


def check_weekday(question, answer):
    (day, n), = weekdays(question)
    back = "前" in question or "昨" in question
    assert answer[-1] == "一二三四五六日"[day if back else (day + n) % 7]
    if n >= 7:
        assert divmod(n, 7) == (read_chinese(re.search("(?:是|正好)(.)周", answer)[1]),
                                numbers(answer)[2] if "零" in answer else 0)


def check_date(question, answer):
    (month, day, n), = dates(question)
    date = datetime.date(2023, month, day)
    if "前" not in question:
        date += datetime.timedelta(n)
    assert answer.endswith(f"，{date.month}月{date.day}日") and steps_are_right(answer)


def check_puzzle(question, answer):
    string = re.search("“(.+)”", question)[1]
    if "，" in answer:                                           # counted aloud: 花一鸟二，两个
        aloud, answer = answer.split("，")
        assert re.sub(f"[{NUMERAL}]", "", aloud) == string and aloud[1::2] == "一二三四五六七"[:len(string)]
    wanted = ("".join(reversed(string)) if re.search("倒|反", question) else string[0] if re.search("第一|开头", question)
              else string[-1] if re.search("最后|结尾", question) else None)
    assert len(set(string)) == len(string)
    assert answer == wanted if wanted else read_chinese(answer[:-1]) == len(string)


def check_shopping(question, answer):
    cells = answer.strip("|").split("|")
    assert len(cells) % 3 == 0 and 3 <= len(cells) <= 9
    for good, amount, spec in zip(cells[::3], cells[1::3], cells[2::3]):
        asked = [amount + good, good + amount] if spec == "没有" else [f"{amount}{spec}的{good}",
                                                                     f"{good}{amount}要{spec}的"]
        assert any(form in question for form in asked) and not (spec == "没有" and f"{good}{amount}要" in question)
        question = question.replace(asked[0], "").replace(asked[1], "")
    assert not any(good in question for good in demo_words.GOODS), "an item is missing from the table"


CHECKS = {"sum": check_sum, "difference": check_difference, "chinese_sum": check_sum, "compare": check_compare,
          "chinese_compare": check_compare, "weekday": check_weekday, "date": check_date, "count": check_puzzle,
          "ends": check_puzzle,
          "reverse": check_puzzle, "shopping": check_shopping}


@pytest.mark.parametrize("task", sorted(CHECKS))
def test_answers_are_right(world, task):
    for question, answer in held_items(world, task):
        try:
            CHECKS[task](question.replace("平年", ""), answer)
        except AssertionError as error:
            raise AssertionError(f"{question} -> {answer}") from error


def test_word_lists_have_no_double_meaning():
    words = [word for pair in demo_words.ANTONYMS for word in pair]
    assert len(set(words)) == len(words) and len(set(demo_words.CHARACTERS)) == len(demo_words.CHARACTERS) >= 200
    assert not set(demo_words.GOODS) & set(demo_words.MEASURES)


def test_chance_and_grade(world):
    def row(task, question, answer):
        return {"task": task, "conversations": demo_data.turns([(question, answer)])}
    rows = [row("compare", "37和48哪个大？", "48"), row("compare", "12和30哪个小？", "12"),
            row("reverse", "把“天地”倒过来写", "地天"), row("reverse", "把“山水火”倒过来写", "火水山"),
            row("ends", "“天地”开头是哪个字？", "天"), row("fact", "甲？", "乙"), row("fact", "丙？", "乙"), row("fact", "丁？", "戊")]
    got = chance(rows)
    assert got["compare"] == 0.5 and got["reverse"] == 0.5 and got["ends"] == 1.0 and got["fact"] == pytest.approx(2
        / 3)
    assert grade("48", " 48\n") and not grade("48", "48。")
    scores = chance(world["eval"])
    assert scores["compare"] == 0.5 and all(score < 0.35 for task, score in scores.items() if "compare" not in task)


def test_same_rows_in_another_process(world):
    command = ("import hashlib, json; from tools.demo_data import build_demo; "
               "print(hashlib.sha256(json.dumps(build_demo(0)).encode()).hexdigest())")
    out = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True,
                         env={**os.environ, "PYTHONHASHSEED": "7"})
    assert out.stdout.strip() == hashlib.sha256(json.dumps(world).encode()).hexdigest(), out.stderr


def test_write_once_and_repair(tmp_path, monkeypatch):
    small = {name: (6, 3, 2) for name in demo_data.AMOUNTS}
    monkeypatch.setattr(demo_data, "AMOUNTS", small)
    monkeypatch.setattr(demo_data, "TOP_ANSWER", 1.0)
    paths = write_demo(tmp_path / "a", 3)
    assert sorted(path.name for path in paths.values()) == [
        f"demo_{name}.jsonl"
        for name in ("eval", "outside", "phrasings", "pre", "prices", "sft", "tools_eval", "tools_phrasings")]
    stamps = {path: path.stat().st_mtime_ns for path in paths.values()}
    assert write_demo(tmp_path / "a", 3) == paths and {path: path.stat().st_mtime_ns
                                                       for path in paths.values()} == stamps
    whole = paths["sft"].read_bytes()
    paths["sft"].write_bytes(whole[:-20])
    write_demo(tmp_path / "a", 3)
    assert paths["sft"].read_bytes() == whole
    write_demo(tmp_path / "a", 4)
    assert paths["sft"].read_bytes() != whole
    assert not list((tmp_path / "a").glob("*.tmp"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError) as caught:
        write_demo(tmp_path / "file", 3)
    assert caught.value.code == 2
