"""The tasks about words: shopping lists, antonyms, measure words, facts, character puzzles, small talk, identity, recall.

Same four methods as in `demo_numbers`. `TASKS` holds all tasks of both files by name.
"""
import json
from functools import cached_property
from pathlib import Path

from tools.demo import words as words
from tools.demo.hold import counted, held, held_dish, held_name, held_place, held_string, split
from tools.demo.numbers import NUMBER_TASKS
from tools.errors import UserError

HAND = Path(__file__).resolve().parents[2] / "data"


def hand_rows(name):
    """The hand-written rows of data/hand_<name>.jsonl."""
    path = HAND / f"hand_{name}.jsonl"
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"读不了手写数据 {path}（{error}）。请从项目里恢复这个文件。") from error


def draw_name(rng):
    return rng.choice(words.SURNAMES) + "".join(rng.choice(words.GIVEN) for _ in range(rng.choice((1, 2))))


def draw_dish(rng):
    return rng.choice(words.COOKING) + rng.choice(words.FOODS)


def draw_place(rng):
    return rng.choice(words.CITIES) + rng.choice(words.CORNERS)


class Shopping:
    """Slots: (item, ...), an item = (goods, number, specification or None). A request is held out when all its items are."""
    title = "购物清单"

    def item(self, rng):
        good = rng.choice(sorted(words.GOODS))
        return good, rng.randint(1, 10), rng.choice(words.GOODS[good][1]) if rng.random() < 0.55 else None

    def is_held(self, item):
        return held("goods", "{},{},{}".format(*item), 0.06)

    def draw(self, rng, part="train"):
        """1-3 different goods, all of them held out or none."""
        items, wanted = {}, rng.choice((1, 1, 2, 2, 3))
        while len(items) < wanted:
            item = self.item(rng)
            if self.is_held(item) == (part == "eval"):
                items[item[0]] = item
        return tuple(items.values())

    def split(self, slots):
        return split(self.is_held(slots[0]))

    def request(self, rng, slots):
        spoken, number_first = [], rng.random() < 0.65
        for good, n, spec in slots:
            amount = counted(n) + words.GOODS[good][0]
            spoken.append(amount + (f"{spec}的" if spec else "") + good if number_first else good + amount + (f"要{spec}的" if spec else ""))
        return "，".join(spoken[:-1]) + ("和" if number_first else "，还有") + spoken[-1] if len(spoken) > 1 else spoken[0]

    def table(self, slots):
        return "|" + "".join(f"{good}|{counted(n)}{words.GOODS[good][0]}|{spec or '没有'}|" for good, n, spec in slots)

    def ask(self, rng, slots):
        return rng.choice(words.BUY_FRAMES).format(x=self.request(rng, slots)), self.table(slots)

    def tell(self, rng, slots):
        who = rng.choice(words.RELATIVES)
        return f"{who}要{self.request(rng, slots)}，记成{self.table(slots)}。"


class Antonym:
    """Slots: (pair, which side is asked, phrasing). Both words of a pair are held out with a phrasing."""
    title = "反义词"

    def draw(self, rng):
        return rng.choice(words.ANTONYMS), rng.randrange(2), rng.randrange(len(words.ANTONYM_ASKS))

    def split(self, slots):
        return split(held("antonym", "".join(slots[0]) + str(slots[2]), 0.11))

    def ask(self, rng, slots):
        pair, side, phrasing = slots
        return words.ANTONYM_ASKS[phrasing].format(w=pair[side]), pair[1 - side]

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

    def ask(self, rng, slots):
        form = rng.choice(["填量词：{n}（）{s}", "{n}什么{s}？请补上量词", "把{n}和{s}用量词连起来", "数{s}，数到{n}，该怎么说？"])
        return form.format(n=counted(slots[1]), s=slots[0]), self.phrase(slots)

    def tell(self, rng, slots):
        return rng.choice(["这里有{}。", "我看见了{}。", "图上画着{}。", "故事里说到{}。"]).format(self.phrase(slots))


class Fact:
    """Slots: (fact, phrasing)."""
    title = "常识"

    @cached_property
    def rows(self):
        return [(row["kind"], row["subject"], row["answer"]) for row in hand_rows("facts")]

    def draw(self, rng):
        return rng.choice(self.rows), rng.randrange(5)

    def split(self, slots):
        return split(held("fact", "/".join(slots[0]) + str(slots[1]), 0.13))

    def ask(self, rng, slots):
        (kind, subject, answer), phrasing = slots
        return words.FACTS[kind][0][phrasing].format(s=subject), answer

    def tell(self, rng, slots):
        kind, subject, answer = slots[0]
        return rng.choice(words.FACTS[kind][1]).format(s=subject, o=answer)


class Puzzle:
    """Slots: (string of distinct characters, which question)."""
    lengths = (2, 3, 4, 5)

    def draw(self, rng):
        return "".join(rng.sample(words.CHARACTERS, rng.choice(self.lengths))), rng.randrange(2)

    def split(self, slots):
        return split(held_string(slots[0]))


class Count(Puzzle):
    title = "数字数"
    lengths = (2, 3, 4, 5, 6, 7)

    def ask(self, rng, slots):
        return rng.choice(["“{}”有几个字？", "数一数，“{}”是几个字？"]).format(slots[0]), f"{counted(len(slots[0]))}个"

    def tell(self, rng, slots):
        return f"“{slots[0]}”一共{counted(len(slots[0]))}个字。"


class Ends(Puzzle):
    title = "首尾的字"

    def ask(self, rng, slots):
        string, last = slots
        forms = ["“{}”的最后一个字是什么？", "“{}”结尾是哪个字？"] if last else ["“{}”的第一个字是什么？", "“{}”开头是哪个字？"]
        return rng.choice(forms).format(string), string[-1 if last else 0]

    def tell(self, rng, slots):
        string, last = slots
        return f"“{string}”的最后一个字是{string[-1]}。" if last else f"“{string}”的第一个字是{string[0]}。"


class Reverse(Puzzle):
    title = "倒写"

    def ask(self, rng, slots):
        return rng.choice(["把“{}”倒过来写", "“{}”反过来念是什么？", "请倒着写出“{}”"]).format(slots[0]), slots[0][::-1]

    def tell(self, rng, slots):
        return rng.choice(["“{}”倒过来是{}。", "“{}”反着念是{}。"]).format(slots[0], slots[0][::-1])


class SmallTalk:
    """Slots: (template number, ((slot, word), ...))."""
    title = "寒暄"
    pools = {"time": words.TIMES, "relative": words.RELATIVES, "city": words.CITIES, "gift": words.GIFTS, "contest": words.CONTESTS}

    def draw(self, rng):
        number = rng.randrange(len(words.TALK))
        ways, _, _ = words.TALK[number]
        filled = []
        for slot in ("time", "name", "relative", "city", "dish", "gift", "contest"):
            if "{" + slot + "}" in ways[0]:
                word = draw_name(rng) if slot == "name" else draw_dish(rng) if slot == "dish" else rng.choice(self.pools[slot])
                filled.append((slot, word))
        return number, tuple(filled)

    def split(self, slots):
        number, filled = slots
        if any(slot == "name" and held_name(word) or slot == "dish" and held_dish(word) for slot, word in filled):
            return "eval"                                        # what recall keeps back is kept back here too
        return split(held("talk", f"{number}," + ",".join(word for _, word in filled), 0.1))

    def ask(self, rng, slots):
        ways, reply, _ = words.TALK[slots[0]]
        return rng.choice(ways).format(**dict(slots[1])), reply.format(**dict(slots[1]))

    def tell(self, rng, slots):
        return words.TALK[slots[0]][2].format(**dict(slots[1]))


class Identity:
    """Slots: (intent, phrasing, opening)."""
    title = "我是谁"
    openings = ["", "你好，", "请问，", "对了，", "我想问一下，", "打扰一下，", "嗨，", "朋友问我，", "顺便问问，"]

    @cached_property
    def rows(self):
        return hand_rows("identity")

    def draw(self, rng):
        intent = rng.randrange(len(self.rows))
        return intent, rng.randrange(len(self.rows[intent]["asks"])), rng.randrange(len(self.openings))

    def split(self, slots):
        return split(held("identity", self.question(slots), 0.18))

    def question(self, slots):
        return self.openings[slots[2]] + self.rows[slots[0]]["asks"][slots[1]]

    def ask(self, rng, slots):
        return self.question(slots), self.rows[slots[0]]["reply"]

    def tell(self, rng, slots):
        return self.rows[slots[0]]["text"]


class Recall:
    """Slots: ((kind, value), ...), the first one is asked for. Values are held out whole: no training row contains one."""
    title = "多轮记忆"
    draws = {"name": (draw_name, held_name), "dish": (draw_dish, held_dish), "place": (draw_place, held_place)}
    says = {"name": (["我叫{}", "我的名字是{}", "你好，我叫{}"], "你好，{}"),
            "dish": (["我喜欢吃{}", "我最爱吃的是{}"], "{}很好吃"),
            "place": (["我住在{}", "我家在{}"], "{}是个好地方")}
    questions = {"name": (["我叫什么名字？", "你还记得我叫什么吗？", "我叫什么？"], "你叫{}"),
                 "dish": (["我喜欢吃什么？", "你还记得我爱吃什么吗？"], "你喜欢吃{}"),
                 "place": (["我住在哪里？", "你还记得我家在哪儿吗？"], "你住在{}")}
    distractors = ("fact", "antonym", "measure", "compare", "ends", "identity")

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

    def exchanges(self, rng, slots):
        """[(user, assistant), ...] ending with the question; at least one distracting exchange before it."""
        told = [(rng.choice(self.says[kind][0]).format(value), self.says[kind][1].format(value)) for kind, value in slots]
        rng.shuffle(told)
        for _ in range(rng.choice((1, 1, 2, 3)) if len(told) < 3 else 1):
            task = TASKS[rng.choice(self.distractors)]
            told.append(task.ask(rng, draw_part(task, rng, "train")))
        asks, reply = self.questions[slots[0][0]]
        return told + [(rng.choice(asks), reply.format(slots[0][1]))]

    def tell(self, rng, slots):
        told = {"name": "他叫{}", "dish": "他喜欢吃{}", "place": "他住在{}"}
        start = "，".join(told[kind].format(value) for kind, value in slots)
        other = TASKS[rng.choice(("fact", "antonym", "measure"))]
        again = "，".join(told[kind].format(value) for kind, value in rng.sample(slots, len(slots)))
        return f"有个人，{start}。{other.tell(rng, draw_part(other, rng, 'train'))}前面说的那个人，{again}。"


def draw_part(task, rng, part):
    """Slots of the wanted part, "train" or "eval"."""
    if isinstance(task, (Shopping, Recall)):
        return task.draw(rng, part)
    slots = task.draw(rng)
    while task.split(slots) != part:
        slots = task.draw(rng)
    return slots


TASKS = {**NUMBER_TASKS, "antonym": Antonym(), "measure": Measure(), "fact": Fact(), "count": Count(), "ends": Ends(),
         "reverse": Reverse(), "small_talk": SmallTalk(), "identity": Identity(), "recall": Recall(), "shopping": Shopping()}
