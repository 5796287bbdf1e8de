"""The tasks about words: antonyms, measure words, facts, character puzzles, small talk, identity, recall.

Same four methods as in demo/numbers. `TASKS` holds all tasks by name.
`held_wordings` are the questions whose very wording is held out.
"""
import json
import random
import re
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path

from tools.demo import forms, forms_facts, forms_talk, words
from tools.demo.hold import chinese, counted, held, held_dish, held_place, held_string, split
from tools.demo.names import RARE, draw_name, held_name
from tools.demo.noise import OTHER, PLAIN, ask, pick, spelled
from tools.demo.numbers import NUMBER_TASKS
from tools.demo.shopping import Shopping
from tools.errors import UserError

HAND = Path(__file__).resolve().parents[2] / "data"


def hand_rows(name):
    """The hand-written rows of data/hand_<name>.jsonl."""
    path = HAND / f"hand_{name}.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"读不了手写数据 {path}（{error}）。请从项目里恢复这个文件。") from error


def draw_dish(rng):
    return rng.choice(words.PLAIN_DISHES if rng.random() < 0.25 else words.FOODS) if rng.random() < 0.4 else (
        rng.choice(words.COOKING) + rng.choice(words.FOODS))


def draw_place(rng):
    return rng.choice(words.CITIES) + (rng.choice(words.CORNERS) if rng.random() < 0.7 else "")


class Antonym:
    """Slots: (pair, which side is asked, phrasing). Both words of a pair are held out with a phrasing."""
    title = "反义词"

    def every(self):
        return product(words.ANTONYMS, range(2), range(len(forms.ANTONYM.core)))

    def draw(self, rng):
        return rng.choice(words.ANTONYMS), rng.randrange(2), rng.randrange(len(forms.ANTONYM.core))

    def split(self, slots):
        return split(held("antonym", "".join(slots[0]) + str(slots[2]), 0.11))

    def ask(self, rng, slots, style=PLAIN):
        pair, side, phrasing = slots
        return ask(rng, forms.ANTONYM._replace(core=[forms.ANTONYM.core[phrasing]]), style,
                   w=pair[side]), pair[1 - side]

    def tell(self, rng, slots):
        one, other = slots[0][slots[1]], slots[0][1 - slots[1]]
        return rng.choice(["“{}”和“{}”意思相反。", "“{}”的反义是“{}”。", "“{}”反着说就是“{}”。"]).format(one, other)


class Measure:
    """Slots: (noun, number)."""
    title = "量词"

    def draw(self, rng):
        return rng.choice(sorted(words.MEASURES)), rng.randint(1, 30)

    def split(self, slots):
        return split(held("measure", "{},{}".format(*slots), 0.07))

    def phrase(self, slots):
        return counted(slots[1]) + words.MEASURES[slots[0]] + slots[0]

    def ask(self, rng, slots, style=PLAIN):
        return ask(rng, forms.MEASURE, style, n=spelled(rng, slots[1], style, counted, 0.2),
                   s=slots[0]), self.phrase(slots)

    def tell(self, rng, slots):
        return rng.choice(["这里有{}。", "我看见了{}。", "图上画着{}。", "故事里说到{}。"]).format(self.phrase(slots))


class Fact:
    """Slots: (fact, phrasing)."""
    title = "常识"

    @cached_property
    def rows(self):
        return [(row["kind"], row["subject"], row["answer"]) for row in hand_rows("facts")]

    def every(self):
        return product(self.rows, range(5))

    def draw(self, rng):
        return rng.choice(self.rows), rng.randrange(5)

    def split(self, slots):
        return split(held("fact", "/".join(slots[0]) + str(slots[1]), 0.13))

    def ask(self, rng, slots, style=PLAIN):
        (kind, subject, answer), phrasing = slots
        return ask(rng, ([words.FACTS[kind][0][phrasing]], *forms_facts.FACTS[kind]), style, s=subject), answer

    def tell(self, rng, slots):
        kind, subject, answer = slots[0]
        return rng.choice(words.FACTS[kind][1]).format(s=subject, o=answer)


class Puzzle:
    """Slots: (string of distinct characters, which question)."""
    lengths = (2, 3, 4, 5)

    def draw(self, rng):
        """Some of the characters are those of names: what a puzzle copies and turns round, a name needs copied."""
        chosen = rng.sample(words.CHARACTERS, rng.choice(self.lengths))
        chosen = dict.fromkeys(rng.choice(RARE) if rng.random() < 0.08 else one for one in chosen)
        return ("".join(chosen) if len(chosen) > 1 else "山水"), rng.randrange(2)

    def split(self, slots):
        return split(held_string(slots[0]))


class Count(Puzzle):
    title = "数字数"
    lengths = (2, 3, 4, 5, 6, 7)

    def ask(self, rng, slots, style=PLAIN):
        return ask(rng, forms.COUNT, style, s=slots[0]), self.work(slots[0])

    def work(self, string):
        """Counted aloud: 花一鸟二，两个."""
        return "".join(one + chinese(i) for i, one in enumerate(string, 1)) + f"，{counted(len(string))}个"

    def tell(self, rng, slots):
        return f"“{slots[0]}”有几个字：{self.work(slots[0])}。"


class Ends(Puzzle):
    title = "首尾的字"

    def ask(self, rng, slots, style=PLAIN):
        string, last = slots
        return ask(rng, forms.LAST if last else forms.FIRST, style, s=string), string[-1 if last else 0]

    def tell(self, rng, slots):
        string, last = slots
        return f"“{string}”的最后一个字是{string[-1]}。" if last else f"“{string}”的第一个字是{string[0]}。"


class Reverse(Puzzle):
    title = "倒写"

    def ask(self, rng, slots, style=PLAIN):
        return ask(rng, forms.REVERSE, style, s=slots[0]), slots[0][::-1]

    def tell(self, rng, slots):
        return rng.choice(["“{}”倒过来是{}。", "“{}”反着念是{}。"]).format(slots[0], slots[0][::-1])


class SmallTalk:
    """Slots: (template number, ((slot, word), ...))."""
    title = "寒暄"
    pools = {"time": words.TIMES, "relative": words.RELATIVES, "city": words.CITIES, "gift": words.GIFTS,
             "contest": words.CONTESTS}

    def draw(self, rng):
        number = rng.randrange(len(words.TALK))
        ways, _, _ = words.TALK[number]
        filled = []
        for slot in ("time", "name", "relative", "city", "dish", "gift", "contest"):
            if "{" + slot + "}" in ways[0]:
                word = draw_name(rng) if slot == "name" else draw_dish(rng) if slot == "dish" else rng.choice(
                    self.pools[slot])
                filled.append((slot, word))
        return number, tuple(filled)

    def split(self, slots):
        number, filled = slots
        if any(slot == "name" and held_name(word) or slot == "dish" and held_dish(word) for slot, word in filled):
            return "eval"                                        # what recall keeps back is kept back here too
        return split(held("talk", f"{number}," + ",".join(word for _, word in filled), 0.1))

    def ask(self, rng, slots, style=PLAIN):
        ways, reply, _ = words.TALK[slots[0]]
        return ask(rng, (ways, *forms_talk.TALK[slots[0]]), style, **dict(slots[1])), reply.format(**dict(slots[1]))

    def tell(self, rng, slots):
        return words.TALK[slots[0]][2].format(**dict(slots[1]))


class Identity:
    """Slots: (intent, phrasing, opening)."""
    title = "我是谁"
    openings = ["", "你好，", "请问，", "对了，", "我想问一下，", "打扰一下，", "嗨，", "朋友问我，", "顺便问问，"]

    @cached_property
    def rows(self):
        return hand_rows("identity")

    def every(self):
        return ((i, asked, opening) for i, row in enumerate(self.rows)
                for asked, opening in product(range(len(row["asks"])), range(len(self.openings))))

    def draw(self, rng):
        intent = rng.randrange(len(self.rows))
        return intent, rng.randrange(len(self.rows[intent]["asks"])), rng.randrange(len(self.openings))

    def split(self, slots):
        return split(held("identity", self.question(slots), 0.18))

    def question(self, slots):
        return self.openings[slots[2]] + self.rows[slots[0]]["asks"][slots[1]]

    def ask(self, rng, slots, style=PLAIN):
        """The held-out wordings are asked without an opening."""
        row = self.rows[slots[0]]
        return ask(rng, ([self.question(slots)], row["more"], row["others"]), style), row["reply"]

    def tell(self, rng, slots):
        return self.rows[slots[0]]["text"]


class Recall:
    """Slots: ((kind, value), ...), the first one is asked for. Values are held out whole: no training row contains
    one."""
    title = "多轮记忆"
    draws = {"name": (draw_name, held_name), "dish": (draw_dish, held_dish), "place": (draw_place, held_place)}
    hears = {"name": "你好，{}", "dish": "{}很好吃", "place": "{}是个好地方"}
    replies = {"name": "你叫{}", "dish": "你喜欢吃{}", "place": "你住在{}"}
    unknown = {"name": "你还没告诉我你的名字", "dish": "你还没告诉我你爱吃什么", "place": "你还没告诉我你住在哪里"}
    distractors = ("fact", "antonym", "measure", "compare", "ends", "identity", "sum", "weekday")
    room = 190                      # characters that are told before the question: it fits the context

    def draw(self, rng, part="train"):
        kinds = rng.sample(sorted(self.draws), rng.choice((1, 2, 2, 3)))
        slots = []
        for kind in kinds:
            make, is_held = self.draws[kind]
            value = make(rng)
            while is_held(value) != (part == "eval"):
                value = make(rng)
            slots.append((kind, value))
        return tuple(slots)

    def split(self, slots):
        return split(self.draws[slots[0][0]][1](slots[0][1]))

    def exchanges(self, rng, slots, style=PLAIN):
        """[(user, assistant), ...] ending with the question; at least one distracting exchange before it."""
        ends = ("",) if style == PLAIN else ("", "", "", "。", "！", "呀", "，你好", "，记住了", "~")
        told = [
            (pick(rng, forms_talk.RECALL_SAYS[kind], style).format(value) + rng.choice(ends),
             self.hears[kind].format(value)) for kind, value in slots]
        rng.shuffle(told)
        for _ in range(rng.choice((1, 1, 2, 3) if style == PLAIN else (0, 1, 1, 2, 3, 5, 8)) if len(told) < 3 else 1):
            task = TASKS[rng.choice(self.distractors[:6] if style == PLAIN else self.distractors)]
            told.append(to_learn(rng, task, PLAIN if style == OTHER else style))
            if sum(len(text) for pair in told for text in pair) > self.room:
                break
        kind, value = slots[0]
        return told + [(ask(rng, forms_talk.RECALL_ASKS[kind], style), self.replies[kind].format(value))]

    def blank(self, rng, style):
        """Asked for what nobody has told: [(user, assistant), ...]."""
        *slots, (kind, _) = self.draw(rng) + self.draw(rng)
        slots = [slot for slot in dict(slots).items() if slot[0] != kind]
        said = self.exchanges(rng, slots, style)[:-1] if slots and rng.random() < 0.5 else []
        return said + [(ask(rng, forms_talk.RECALL_ASKS[kind], style), self.unknown[kind])]

    def tell(self, rng, slots):
        told = {"name": "他叫{}", "dish": "他喜欢吃{}", "place": "他住在{}"}
        start = "，".join(told[kind].format(value) for kind, value in slots)
        other = TASKS[rng.choice(("fact", "antonym", "measure"))]
        again = "，".join(told[kind].format(value) for kind, value in rng.sample(slots, len(slots)))
        return f"有个人，{start}。{other.tell(rng, draw_part(other, rng, 'train'))}前面说的那个人，{again}。"


def to_learn(rng, task, style):
    """(question, answer) of a training row, in none of the wordings that are held out."""
    while True:
        question, answer = task.ask(rng, draw_part(task, rng, "train"), style)
        if bare(question) not in held_wordings():
            return question, answer


def draw_part(task, rng, part):
    """Slots of the wanted part, "train" or "eval"."""
    if isinstance(task, (Shopping, Recall)):
        return task.draw(rng, part)
    slots = task.draw(rng)
    while task.split(slots) != part:
        slots = task.draw(rng)
    return slots


TASKS = {**NUMBER_TASKS, "antonym": Antonym(), "measure": Measure(), "fact": Fact(), "count": Count(), "ends": Ends(),
         "reverse": Reverse(), "small_talk": SmallTalk(), "identity": Identity(), "recall": Recall(),
         "shopping": Shopping()}


def bare(question):
    """Its words alone: no marks, no white space."""
    return re.sub(r"\W", "", question)


@lru_cache(maxsize=None)
def held_wordings():
    """Every held-out question, bare, of the tasks whose contents are few and whose wordings are held out with them."""
    tasks = [TASKS[name] for name in ("antonym", "fact", "identity")]
    rng = random.Random(0)                                        # one plain form each: nothing is left to chance
    return {bare(task.ask(rng, slots)[0])
            for task in tasks for slots in task.every() if task.split(slots) == "eval"}
