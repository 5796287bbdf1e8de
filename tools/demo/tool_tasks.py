"""Tool tasks of the built-in world: what no small model can do in its head, and a tool can.

`write_tools("data")` writes demo_tools.jsonl to learn from (beside demo_sft.jsonl), demo_tools_eval.jsonl (held-out
contents) and demo_prices.jsonl, the list that prices are looked up in. Every row offers some tools; in a third of them
the question needs none. Results are what the tools of the chat give.
"""
import datetime
import random

from tools.demo.hold import held
from tools.demo.noise import PLAIN
from tools.demo.offered import definition
from tools.demo.tasks import TASKS, draw_part

AMOUNTS = {"big_sum": (700, 60), "big_product": (700, 60), "days": (600, 60), "prices": (600, 60)}
TITLES = {"big_sum": "四五位数加法", "big_product": "四五位数乘法", "days": "隔了几天", "prices": "查价再相加"}
ORDINARY = ("sum", "compare", "antonym", "measure", "fact", "count", "identity", "small_talk", "chinese_sum")
ORDINARY_AMOUNTS = (1200, 120)
SHARE = 0.1                     # of all contents that are held out
GOODS = ("苹果 香蕉 梨 桃子 西瓜 葡萄 橙子 土豆 白菜 萝卜 豆腐 鸡蛋 大米 面粉 面条 牛奶 酱油 醋 盐 白糖 茶叶 饼干 面包 蛋糕 鱼 牛肉 羊肉 鸡肉 "
         "铅笔 本子 毛巾 肥皂 牙刷 雨伞 水杯 灯泡").split()
SUMS = ("{}加{}等于几？", "{}+{}等于多少？", "算一下{}加{}", "请问{}加上{}是多少？", "{}＋{}=？")
PRODUCTS = ("{}乘{}等于几？", "{}×{}等于多少？", "算一下{}乘以{}", "请问{}乘{}是多少？", "{}*{}=？")
DAYS = ("从{}到{}有多少天？", "{}到{}一共几天？", "算一下{}和{}隔了几天", "{}离{}有多少天？")
PRICES = ("{}和{}一共多少钱？", "买一份{}和一份{}要多少钱？", "{}加{}总共几元？", "我要{}和{}，一共多少钱？")


def price(good):
    """The same for everybody and for ever."""
    return random.Random(f"price of {good}").randint(2, 98)


def price_rows():
    return [{"名称": good, "价钱": price(good)} for good in GOODS]


def called(name, result, **arguments):
    return {"name": name, "arguments": arguments}, result


def row(rng, task, question, rounds, answer, extra=()):
    """rounds: lists of (call, result), one list for each time that the model calls."""
    names = sorted({call["name"] for calls in rounds for call, _ in calls} | set(extra))
    messages = [{"role": "user", "content": question}]
    for calls in rounds:
        messages.append({"role": "assistant", "content": None,
                         "tool_calls": [{"type": "function", "function": call} for call, _ in calls]})
        messages += [{"role": "tool", "content": result} for _, result in calls]
    messages.append({"role": "assistant", "content": answer})
    return {"tools": [definition(name) for name in names], "messages": messages, "task": task}


def number(rng):
    return rng.randint(1000, 9999) if rng.random() < 0.5 else rng.randint(10000, 99999)


def arithmetic(rng, part, forms, sign, task):
    a, b = number(rng), number(rng)
    while held(task, f"{a},{b}", SHARE) != (part == "eval"):
        a, b = number(rng), number(rng)
    result = str(a + b if sign == "+" else a * b)
    extra = rng.sample(("calendar", "look_up"), rng.randrange(2))
    return row(rng, task, rng.choice(forms).format(a, b), [[called("calculate", result, expression=f"{a}{sign}{b}")]],
               result, extra)


def big_sum(rng, part):
    return arithmetic(rng, part, SUMS, "+", "big_sum")


def big_product(rng, part):
    return arithmetic(rng, part, PRODUCTS, "*", "big_product")


def days(rng, part):
    first, last = datetime.date(1990, 1, 1).toordinal(), datetime.date(2040, 1, 1).toordinal()
    while True:
        start, end = sorted(datetime.date.fromordinal(rng.randrange(first, last)) for _ in range(2))
        said = [f"{day.year}年{day.month}月{day.day}日" for day in (start, end)]
        if held("days", ",".join(said), SHARE) == (part == "eval") and start != end:
            break
    count = (end - start).days
    call = called("calendar", f"{count} 天", date=said[0], until=said[1])
    return row(rng, "days", rng.choice(DAYS).format(*said), [[call]], f"{count}天",
               rng.sample(("calculate", "look_up"), rng.randrange(2)))


def prices(rng, part):
    one, other = rng.sample(GOODS, 2)
    while held("prices", ",".join(sorted((one, other))), SHARE) != (part == "eval"):
        one, other = rng.sample(GOODS, 2)
    looked = [called("look_up", f"名称：{good}，价钱：{price(good)}", query=good) for good in (one, other)]
    total = price(one) + price(other)
    added = called("calculate", str(total), expression=f"{price(one)}+{price(other)}")
    return row(rng, "prices", rng.choice(PRICES).format(one, other), [looked, [added]], f"一共{total}元")


def ordinary(rng, part):
    """A question that needs no tool, though some are there."""
    task = TASKS[rng.choice(ORDINARY)]
    question, answer = task.ask(rng, draw_part(task, rng, part), PLAIN)
    offered = rng.sample(("calculate", "calendar", "look_up"), rng.choice((1, 2)))
    return row(rng, "ordinary", question, [], answer, offered)


MAKERS = {"big_sum": big_sum, "big_product": big_product, "days": days, "prices": prices, "ordinary": ordinary}


def rows(rng, part):
    """Rows of one part, "train" or "eval", no question twice in the latter."""
    made, asked = [], set()
    for name, amounts in {**AMOUNTS, "ordinary": ORDINARY_AMOUNTS}.items():
        wanted = amounts[part == "eval"]
        while wanted:
            one = MAKERS[name](rng, part)
            question = one["messages"][0]["content"]
            if part == "train" or question not in asked:
                asked.add(question)
                made.append(one)
                wanted -= 1
    if part == "train":
        rng.shuffle(made)
    return made


def write_tools(folder, seed=0):
    """Write the files unless they are there already -> {"tools": Path, "tools_eval": Path, "prices": Path}."""
    from tools.demo_data import write_once
    return write_once(folder, "tool_tasks", seed, lambda: {
        "tools": rows(random.Random(f"{seed}/tools"), "train"),
        "tools_eval": rows(random.Random(f"{seed}/tools_eval"), "eval"), "prices": price_rows()})
