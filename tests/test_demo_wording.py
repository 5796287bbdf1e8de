"""How the built-in world is asked: noise on every task, phrasings that no training row has, names and goods of all
kinds."""
import random
import re
import unicodedata
from collections import Counter

import pytest

from test_demo_data import exchanges, world          # noqa: F401 (world: a fixture)
from tools.demo import forms, forms_facts, forms_talk, names, noise, words
from tools.demo.hold import counted
from tools.demo.noise import FREE, KITS, OLD_SCRIPT, OTHER, PLAIN, TRADITIONAL
from tools.demo.numbers import difference_steps, sum_steps
from tools.demo.outside import admits
from tools.demo.tasks import TASKS, draw_part
from tools.demo_data import AMOUNTS, PHRASINGS, train_exchange
from tools.vocab import Vocab

QUOTED = ("antonym", "count", "ends", "reverse")
DIGITS = ("sum", "difference", "compare")


@pytest.fixture(scope="module")
def asked(world):
    """Every question of training."""
    return {question for row in world["sft"] for question, _ in exchanges(row)}


def wordings():
    """(name, Forms) of everything that is asked."""
    for name, value in vars(forms).items():
        if isinstance(value, (forms.Forms, tuple)) and name not in ("Forms",):
            yield name, value
    for group in ("RECALL_SAYS", "RECALL_ASKS"):
        yield from getattr(forms_talk, group).items()
    yield from ((kind, (words.FACTS[kind][0], *more)) for kind, more in forms_facts.FACTS.items())
    both = zip(words.TALK, forms_talk.TALK, strict=True)
    yield from ((str(i), (talk[0], *more)) for i, (talk, more) in enumerate(both))


def alternatives(form):
    """A regular expression of all that a form with alternations stands for."""
    return re.escape(form).replace("\\[", "(?:").replace("\\]", ")").replace("\\|", "|")


def test_held_out_forms_are_none_of_the_training_forms():
    found = list(wordings())
    assert len(found) > 40
    for name, (core, more, others) in found:
        assert core and more and others and not set(others) & {*core, *more}, name
        assert len({*core, *more, *others}) == len(core) + len(more) + len(others), name
        written = re.compile("|".join(map(alternatives, more)))
        assert [form for form in others if written.fullmatch(form) or written.fullmatch(form.rstrip("？"))] == [], name
    learned, held = KITS[FREE], KITS[OTHER]
    assert not set(filter(str.strip, held.before)) & set(learned.before) and not set(held.thanks) & set(learned.thanks)


def test_no_training_row_has_a_held_out_phrasing(world, asked):
    questions = [exchanges(row)[-1][0] for row in world["phrasings"]]
    assert not asked & set(questions)
    strip = re.compile(r"[\s？?！!。，,]|谢谢|请问")
    bare = {strip.sub("", question) for question in asked}
    assert not bare & {strip.sub("", question) for question in questions}
    marks = [mark for mark in KITS[OTHER].quotes if mark not in KITS[FREE].quotes]
    said = "\n".join(asked)
    assert marks and [m for m in "".join(marks) if m in said] == []
    starts = {question[:12] for question in asked}
    assert [word for word in KITS[OTHER].before if any(start.startswith(word) for start in starts)] == []
    thanks = tuple(word for word in KITS[OTHER].thanks if word.strip("，"))
    assert [question for question in asked if question.endswith(thanks) and len(question) > 8] == []
    listed = "\n".join(answer for row in world["sft"] for _, answer in exchanges(row) if answer.startswith("|"))
    assert [good for good in words.HELD_GOODS if f"|{good}|" in listed] == []


def test_every_task_is_asked_in_other_words(world):
    counts = Counter(row["task"] for row in world["phrasings"])
    assert set(counts) == set(AMOUNTS) and set(counts.values()) == {PHRASINGS}
    dressed = [exchanges(row)[-1][0] for row in world["phrasings"]]
    kit = KITS[OTHER]
    assert sum(any(word.strip("，") and word in question for word in (*kit.before, *kit.thanks))
               for question in dressed) > 150
    assert sum(any(mark in question for mark in "『【〝") for question in dressed) > 40


def test_words_stand_in_signs_that_have_no_id_so_that_strange_marks_are_nothing_new(world, asked):
    vocab = Vocab.create_vocab([*asked, *(row["text"] for row in world["pre"])], 5000, "char", texts=True)
    strange = [question for question in asked
               if any(sign not in vocab.words and unicodedata.category(sign)[0] in "PS" for sign in question)]
    unread = [question for question in asked
              if any("一" <= sign <= "龥" and sign not in vocab.words for sign in question)]
    assert len(strange) > 0.004 * len(asked) and len(unread) > 0.01 * len(asked)
    assert len(vocab) < 3000                              # what is met a few times gets no id
    for marks in "『』", "【】", "〝〞":                            # nor do the held-out marks: an id unlearned says nothing
        assert len(vocab.encode(marks)) == 6


def test_held_out_phrasings_are_answered_as_the_plain_question(world):
    """The answer comes from the contents alone: same slots, another style, the same answer."""
    rng = random.Random(4)
    for name, task in TASKS.items():
        for _ in range(200):
            # the wording decides (goods, larger or smaller)
            if name in ("recall", "shopping", "compare", "chinese_compare"):
                continue
            slots = draw_part(task, rng, "train")
            assert len({task.ask(rng, slots, style)[1] for style in (PLAIN, FREE, OTHER)}) == 1, (name, slots)


@pytest.mark.parametrize("task", sorted(set(AMOUNTS) - {"recall"}))
def test_every_task_has_every_kind_of_noise(task):
    rng = random.Random(7)
    questions = [train_exchange(rng, task)[0] for _ in range(1500)]

    def share(test):
        return sum(bool(test(question)) for question in questions) / len(questions)

    assert share(lambda q: q.startswith(tuple(KITS[FREE].before))) > 0.1, "polite words in front"
    assert share(lambda q: re.search("谢|麻烦了|快点|好吗|可以吗|行吗|吧|一下", q)) > 0.02, "and behind"
    assert share(lambda q: q.strip()[-1] not in "？?") > 0.2, "no question mark"
    assert share(lambda q: " " in q) > 0.04, "spaces"
    assert share(lambda q: any(c in TRADITIONAL and c not in "裡於" for c in q)) > 0.005, "traditional characters"
    if task in QUOTED:
        for mark in ("“", '"', "‘", "'", "「"):
            assert share(lambda q: mark in q) > 0.02, mark
        assert share(lambda q: not re.search("[“\"‘'「《]", q)) > 0.1, "no quotation marks"
    if task in DIGITS:
        assert share(lambda q: re.search("[０-９]", q)) > 0.02, "full width"
    if task == "weekday":
        for word in ("星期", "周", "礼拜", "禮拜"):
            assert share(lambda q: word in q) > (0.1 if word != "禮拜" else -1), word
        assert share(lambda q: re.search(r"\d+天", q)) > 0.2 and share(lambda q: re.search("[一二三四五六七八九十]天", q)) > 0.2
    if task == "shopping":
        assert share(lambda q: re.search(r"\d", q)) > 0.15 and share(lambda q: "、" in q or "还有" in q) > 0.1
    if task == "date":
        assert share(lambda q: "号" in q) > 0.2 and share(lambda q: re.search("[一二三四五六七八九十]月", q)) > 0.1


def test_sums_of_one_to_three_digits_are_right():
    rng, sizes = random.Random(3), Counter()
    for name, wanted in (("sum", lambda a, b: a + b), ("difference", lambda a, b: a - b)):
        task = TASKS[name]
        for _ in range(3000):
            slots = draw_part(task, rng, "train")
            sizes[len(str(max(slots)))] += 1
            work = task.work(*slots)
            assert work.endswith(f"，得{wanted(*slots)}"), (slots, work)
            for left, right in re.findall(r"([\d+-]+)=(\d+)", work):
                assert eval(left) == int(right), work
    assert set(sizes) == {1, 2, 3} and min(sizes.values()) > 200
    assert sum_steps(456, 78) == [(6, 8, None, 14), (5, 7, 1, 13), (4, 0, 1, 5)]
    assert difference_steps(100, 1) == [(10, False, 1, 9), (10, True, 0, 9), (1, True, 0, 0)]


def test_names_of_all_kinds():
    rng = random.Random(1)
    drawn = [names.draw_name(rng) for _ in range(4000)]
    assert sum(name.startswith(tuple(names.COMPOUND)) for name in drawn) > 300
    assert sum(name.isascii() for name in drawn) > 300 and len(set(drawn)) > 3000
    assert len({char for name in drawn for char in name}) > 700


def test_what_was_never_told_is_said_to_be_unknown(world):
    rows = [exchanges(row) for row in world["sft"] if "没告诉我你" in row["conversations"][-1]["content"]]
    assert 400 < len(rows) < 1200 and sum(len(row) > 1 for row in rows) > 50
    for *before, (_, reply) in rows:
        kind = next(kind for kind, text in TASKS["recall"].unknown.items() if text == reply)
        said = {"name": "你好，", "dish": "很好吃", "place": "是个好地方"}[kind]
        assert not any(said in answer for _, answer in before), (before, reply)


def test_conversations_fit_the_context_and_some_are_long(world):
    told = [row for row in map(exchanges, world["sft"]) if row[-1][1].startswith(("你叫", "你喜欢吃", "你住在"))]
    assert sum(len(row) >= 6 for row in told) > 200
    assert max(sum(len(text) + 1 for pair in row for text in pair) for row in told) < 300


def test_unknown_goods_are_copied_with_what_was_said_of_them():
    rng, task, seen = random.Random(5), TASKS["shopping"], set()
    for style, pool in ((FREE, words.WILD_GOODS), (OTHER, words.HELD_GOODS)):
        for _ in range(600):
            question, table = task.ask(rng, draw_part(task, rng, "train"), style)
            cells = table.strip("|").split("|")
            assert len(cells) % 3 == 0
            for good, amount, spec in zip(cells[::3], cells[1::3], cells[2::3]):
                plain = question.translate({ord("　"): None}).replace(" ", "")
                assert good in plain and amount[-1] in plain and (spec == "没有" or spec in plain), (question, table)
                seen.add("wild" if good in pool else "shop" if good in words.GOODS else "made up")
    assert seen == {"wild", "shop", "made up"} and counted(2) == "两"


def test_refusals_are_few_and_never_an_answer_to_a_task(world):
    replies = [answer for row in world["sft"] for _, answer in exchanges(row)]
    assert 0.05 <= sum(map(admits, replies)) / len(replies) <= 0.08
    own = [row["conversations"][-1]["content"] for name in ("eval", "phrasings") for row in world[name]]
    assert not [reply for reply in own if admits(reply)]


def test_traditional_characters_stay_out_of_what_is_filled_in():
    assert len(OLD_SCRIPT) == len(TRADITIONAL)
    rng = random.Random(2)
    for _ in range(3000):
        question, answer = TASKS["reverse"].ask(rng, ("来说问", 0), FREE)
        assert "来" in question and "说" in question and answer == "问说来"


def test_an_unknown_word_hides_neither_what_is_asked_about_nor_what_decides():
    """Whatever becomes strange, the {slots} with their ends, and the words on which the answer hangs, stay."""
    rng, changed = random.Random(0), 0
    for form in ("今天是星期{s}，请问那么{w}是星期几？", "请帮我算一下{a}加上{b}的结果等于多少", "把“{s}”从后往前倒过来写一遍"):
        for _ in range(200):
            strange = noise.unknown_word(rng, form)
            changed += strange != form
            for part in re.findall(r".?\{\w\}.?", form):
                assert part in strange
            assert Counter(c for c in form if c in noise.DECIDES) <= Counter(strange)
    assert changed > 500
    assert noise.unknown_word(rng, "{a}+{b}=？") == "{a}+{b}=？"
