"""Tool tasks of the built-in world: what no small model can do in its head, and a tool can.

They are learned together with the other dialogues (tools/demo_data.py). `write_tools("data")` writes them alone, to be
mixed with one's own: demo_tools.jsonl, demo_tools_eval.jsonl (held-out contents) and demo_prices.jsonl, the list that
prices are looked up in. Every row offers some tools; in part of them a question needs none. Results are what the tools
of the chat give.
"""
import datetime
import random

from tools.demo import forms, forms_tools
from tools.demo.hold import clean, held
from tools.demo.noise import FREE, OTHER, PLAIN, ask
from tools.demo.offered import PARAMETERS, definition
from tools.demo.tasks import TASKS, draw_part, to_learn
from tools.formats import parse_line
from tools.template import compact, render

# task -> (exchanges to learn from, held-out questions); ordinary: what needs no tool, though some are there
AMOUNTS = {"big_sum": (550, 60), "big_difference": (300, 40), "big_product": (450, 60), "days": (420, 60),
           "price": (400, 0), "prices": (330, 60), "ordinary": (800, 120)}
TITLES = {"big_sum": "四五位数加法", "big_difference": "四五位数减法", "big_product": "四五位数乘法", "days": "隔了几天",
          "price": "查价", "prices": "查价再相加"}
ORDINARY = [name for name in TASKS if name != "recall"]
REWORDED = 3                    # one in so many of the held-out questions is asked in held-out forms as well
SHARE = 0.1                     # of all contents that are held out
SECOND = 0.3                    # share of rows in which something else is asked as well
ALL = 0.1                       # share of rows that offer every tool
PLAIN_SHARE = 0.35              # share of questions in their plain form
ROOM = 256                      # ids of a row, at most, where every character is one (strange ones are more)
GOODS = ("苹果 香蕉 梨 桃子 西瓜 葡萄 橙子 土豆 白菜 萝卜 豆腐 鸡蛋 大米 面粉 面条 牛奶 酱油 醋 盐 白糖 茶叶 饼干 面包 蛋糕 鱼 牛肉 羊肉 鸡肉 "
         "铅笔 本子 毛巾 肥皂 牙刷 雨伞 水杯 灯泡").split()
MISSING = "手机 电脑 沙发 轮船 钢琴 飞机 火箭 大象 望远镜 眼镜 帐篷 地球仪".split()      # what the list does not have
SIGNS = {"big_sum": "+", "big_difference": "-", "big_product": "*"}
ASKED = {"big_sum": forms.SUM, "big_difference": forms.DIFFERENCE, "big_product": forms_tools.PRODUCT}


def price(good):
    """The same for everybody and for ever."""
    return random.Random(f"price of {good}").randint(2, 98)


def price_rows():
    return [{good: f"{price(good)}元"} for good in GOODS]


def called(name, result, **arguments):
    return {"name": name, "arguments": arguments}, result


def exchange(question, rounds, answer):
    """Messages. rounds: lists of (call, result), one list for each time that the model calls."""
    messages = [{"role": "user", "content": question}]
    for calls in rounds:
        messages.append({"role": "assistant", "content": None,
                         "tool_calls": [{"type": "function", "function": call} for call, _ in calls]})
        messages += [{"role": "tool", "content": result} for _, result in calls]
    return [*messages, {"role": "assistant", "content": answer}]


def row(rng, task, messages):
    """With the tools that it calls, and others now and then, as far as there is room. -> None where there is none"""
    needed = {call["function"]["name"] for m in messages for call in m.get("tool_calls", ())}
    some = rng.sample(("calculate", "calendar", "look_up"), rng.choice((0, 0, 1) if needed else (1, 1, 2)))
    for more in ([*PARAMETERS] if rng.random() < ALL else some, some, some[:not needed]):
        made = {"tools": [definition(name) for name in PARAMETERS if name in needed or name in more],
                "messages": messages, "task": task}
        if size(made) <= ROOM:
            return made
    return None


class Characters:
    """A vocabulary in which every character is one id."""
    dialogue = None

    def id(self, name):
        return 0

    def encode_many(self, texts):
        return [[0] * len(text) for text in texts]


def size(made):
    """How many ids a row has where every character is one."""
    return len(render(parse_line(compact(made).encode()).messages, Characters())[0])


def number(rng):
    return rng.randint(1000, 9999) if rng.random() < 0.5 else rng.randint(10000, 99999)


def smaller(rng, task):
    """What training asks besides, for a tool to be called where it is of use: one number is short."""
    return rng.randint(11, 999 if task == "big_product" else 9999)


def arithmetic(rng, part, style, task):
    def draw():
        pair = [number(rng), smaller(rng, task) if part == "train" and rng.random() < 0.25 else number(rng)]
        return sorted(pair, reverse=True) if task == "big_difference" else rng.sample(pair, 2)
    a, b = draw()
    while held(task, f"{a},{b}", SHARE) != (part == "eval") or a == b:
        a, b = draw()
    result = {"+": a + b, "-": a - b, "*": a * b}[SIGNS[task]]
    return exchange(ask(rng, ASKED[task], style, a=a, b=b),
                    [[called("calculate", str(result), expression=f"{a}{SIGNS[task]}{b}")]], str(result))


def days(rng, part, style, task):
    first, last = datetime.date(1990, 1, 1).toordinal(), datetime.date(2040, 1, 1).toordinal()
    while True:
        start, end = sorted(datetime.date.fromordinal(rng.randrange(first, last)) for _ in range(2))
        said = [f"{day.year}年{day.month}月{day.day}日" for day in (start, end)]
        if held("days", ",".join(said), SHARE) == (part == "eval") and start != end:
            break
    count = (end - start).days
    call = called("calendar", f"{count} 天", date=said[0], until=said[1])
    return exchange(ask(rng, forms_tools.DAYS, style, a=said[0], b=said[1]), [[call]], f"{count}天")


def looked_up(good):
    return called("look_up", f"{good}：{price(good)}元" if good in GOODS else f"出错：没有查到 {good}", query=good)


def one_price(rng, part, style, task):
    """What is not in the list is asked for as well; what is, is learned with every other good beside it."""
    good = rng.choice(GOODS if rng.random() < 0.75 else MISSING)
    answer = f"{price(good)}元" if good in GOODS else f"没有查到{good}"
    return exchange(ask(rng, forms_tools.PRICE, style, a=good), [[looked_up(good)]], answer)


def prices(rng, part, style, task):
    """No sum that the world holds back is learned from a calculator."""
    while True:
        one, other = rng.sample(GOODS, 2)
        total = price(one) + price(other)
        if held("prices", ",".join(sorted((one, other))), SHARE) == (part == "eval") and (
                part == "eval" or clean(price(one), price(other), total)):
            break
    added = called("calculate", str(total), expression=f"{price(one)}+{price(other)}")
    return exchange(ask(rng, forms_tools.PRICES, style, a=one, b=other), [[looked_up(one), looked_up(other)], [added]],
                    f"一共{total}元")


def ordinary(rng, part, style, task):
    task = TASKS[rng.choice(ORDINARY)]
    if part == "train":
        question, answer = to_learn(rng, task, style)
    else:
        question, answer = task.ask(rng, draw_part(task, rng, part), style)
    return exchange(question, [], answer)


MAKERS = {**dict.fromkeys(SIGNS, arithmetic), "days": days, "price": one_price, "prices": prices, "ordinary": ordinary}


def made(rng, part, style, task):
    """A row about one exchange."""
    while True:
        found = row(rng, task, MAKERS[task](rng, part, style, task))
        if found:
            return found


def train_rows(rng):
    """Rows to learn from; in some of them a second thing is asked."""
    wanted = [name for name, (amount, _) in AMOUNTS.items() for _ in range(amount)]
    rng.shuffle(wanted)
    rows = []
    for task in wanted:
        one = made(rng, "train", PLAIN if rng.random() < PLAIN_SHARE else FREE, task)
        if rows and rng.random() < SECOND:
            both = row(rng, task, rows[-1]["messages"] + one["messages"])
            if both:
                rows[-1] = both
                continue
        rows.append(one)
    return rows


def eval_rows(rng, style=PLAIN):
    """Held-out contents, no question twice; with the style OTHER fewer of them, in held-out forms."""
    rows, asked = [], set()
    for task, (_, amount) in AMOUNTS.items():
        while amount > 0:
            one = made(rng, "eval", style, task)
            if one["messages"][0]["content"] not in asked:
                asked.add(one["messages"][0]["content"])
                rows.append(one)
                amount -= 1 if style == PLAIN else REWORDED
    return rows


def build_tools(seed=0):
    """{"tools": rows to learn from, "tools_eval", "tools_phrasings": to be examined with, "prices": the list}."""
    def of(name):
        return random.Random(f"{seed}/{name}")
    return {"tools": train_rows(of("tools")), "tools_eval": eval_rows(of("tools_eval")),
            "tools_phrasings": eval_rows(of("tools_phrasings"), OTHER), "prices": price_rows()}


def write_tools(folder, seed=0):
    """Write the files unless they are there already -> {"tools": Path, …} as in `build_tools`."""
    from tools.demo_data import write_once
    return write_once(folder, "tool_tasks", seed, lambda: build_tools(seed))
