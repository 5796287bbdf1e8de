"""Three small specialist sets from the built-in world, and the mixed set of a gate that chooses between them.

identity: the same questions, answered under another name (小舟). shopping: the same requests, another table. greeting:
couplets in rhyme. All three begin with the same openings, among them ones that sound like another specialist, so that
no single word tells them apart.
"""
import random

from tools.demo import words
from tools.demo_data import turns, write_once
from tools.demo.hold import counted, held
from tools.demo.tasks import TASKS, draw_part, hand_rows

EXPERTS = ("identity", "shopping", "greeting")
OTHER_NAME = "小舟"
OPENINGS = ["", "你好，", "请问，", "早上好，", "小寻，", "帮个忙，", "谢谢你，", "我刚买了三斤苹果，", "你是小寻吧，", "对了，", "打扰一下，",
            "听说你会写诗，", "今天真热闹，", "我想问你一件事，", "祝你天天快乐，"]
SHOPPING_ROWS = 1100      # training rows of the one specialist whose contents do not run out
EVAL_ROWS = 120           # held-out rows of each specialist
GATE_ROWS = 700           # training rows of the gate from each specialist


def identity_pairs(rng):
    """(question, reply, held out?). The last wording of every question is held out whole, under each opening.

    Half of the question marks go: otherwise they alone would give this specialist away.
    """
    return [(opening + (ask.rstrip("？") if rng.random() < 0.5 else ask), row["other_reply"], ask == row["asks"][-1])
            for row in hand_rows("identity") for ask in row["asks"] for opening in OPENINGS]


def greeting_pairs():
    """(greeting, couplet, held out?). Held out are combinations of wording and opening."""
    return [(opening + ask, row["reply"], held("greeting", opening + ask, 0.15))
            for row in hand_rows("rhymes") for ask in row["asks"] for opening in OPENINGS]


def other_table(slots):
    """(("牛奶", 3, None), ("苹果", 2, "进口")) -> 牛奶×三盒；苹果×两斤（进口）"""
    return "；".join(f"{good}×{counted(n)}{words.GOODS[good][0]}" + (f"（{spec}）" if spec else "")
                    for good, n, spec in slots)


def shopping_pairs(rng):
    """(request, table, held out?). Held out are the same items as in the built-in world."""
    task, pairs = TASKS["shopping"], {}
    for part, amount in (("train", SHOPPING_ROWS), ("eval", EVAL_ROWS)):
        for _ in range(amount):
            slots = draw_part(task, rng, part)
            pairs[rng.choice(OPENINGS) + task.ask(rng, slots)[0]] = (other_table(slots), part == "eval")
    return [(request, *rest) for request, rest in pairs.items()]


def build_adapters(seed=0):
    """{"identity": rows, "identity_eval": rows, ... "gate": rows, "gate_eval": rows}; the gate's rows also have the
    field expert."""
    rng = random.Random(f"{seed}/adapters")
    pairs = {"identity": identity_pairs(rng), "shopping": shopping_pairs(rng), "greeting": greeting_pairs()}
    sets, gate = {}, {"gate": [], "gate_eval": []}
    for name in EXPERTS:
        rng.shuffle(pairs[name])
        train = [{"conversations": turns([pair])} for *pair, is_held in pairs[name] if not is_held]
        tested = [{"conversations": turns([pair]), "task": f"lora_{name}"} for *pair, is_held in pairs[name]
                  if is_held][:EVAL_ROWS]
        sets[name], sets[f"{name}_eval"] = train, tested
        gate["gate"] += [{**row, "expert": name} for row in train[:GATE_ROWS]]
        gate["gate_eval"] += [{**row, "task": "gate", "expert": name} for row in tested]
    for rows in gate.values():
        rng.shuffle(rows)
    return {**sets, **gate}


def write_adapters(folder, seed=0):
    """Write demo_identity.jsonl, demo_identity_eval.jsonl, ... demo_gate_eval.jsonl into `folder`: {name: Path}."""
    return write_once(folder, "adapters", seed, lambda: build_adapters(seed))
