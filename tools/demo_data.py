"""The built-in data: a small world in text, dialogues and held-out questions, written on first use.

`write_demo("data")` writes demo_pre.jsonl and demo_sft.jsonl to learn from, and files to be examined with:
demo_eval.jsonl (contents that no training row has), demo_phrasings.jsonl (ways to ask that no training row has),
demo_outside.jsonl (what is not in this world), demo_tools_*.jsonl (what tools are needed for). The tasks are in
demo/numbers, demo/tasks and demo/tool_tasks, their wordings in demo/forms and demo/noise, what is held out in
demo/hold, the hand-written rows in data/hand_*.jsonl. Everything follows from the seed.
"""
import hashlib
import json
import os
import math
import random
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from tools.process.signals import end_on_signals  # noqa: E402  (the path comes first)

if __name__ == "__main__":
    end_on_signals()            # first: a missing package ends in one line

from tools.demo.names import draw_name, rare_word  # noqa: E402
from tools.demo.noise import FREE, OTHER, PLAIN  # noqa: E402  (the path comes first)
from tools.demo.outside import admits, kinds, outside, remark, remarks, right, unheld, UNREAD  # noqa: E402
from tools.demo.tasks import HAND, TASKS, Recall, draw_part, hand_rows, to_learn  # noqa: E402
from tools.demo.tool_tasks import build_tools  # noqa: E402
from tools.cli import guarded, parse  # noqa: E402
from tools.errors import UserError  # noqa: E402
from tools.saving.atomic import write_bytes  # noqa: E402

# task -> (sentences of pre-training text, exchanges of SFT in units of FRESH, held-out questions): more for what is
# harder
AMOUNTS = {
    "sum": (10000, 2000, 120),
    "difference": (10000, 2000, 120),
    "chinese_sum": (10000, 2000, 120),
    "compare": (9000, 2400, 120),
    "chinese_compare": (9000, 2400, 120),
    "weekday": (17000, 4500, 120),
    "date": (11000, 2800, 120),
    "antonym": (4500, 2200, 120),
    "measure": (4000, 1500, 120),
    "fact": (6000, 2800, 120),
    "count": (5000, 1500, 120),
    "ends": (8000, 1400, 120),
    "reverse": (24000, 4500, 120),
    "small_talk": (3000, 2000, 120),
    "identity": (600, 1200, 120),
    "recall": (4500, 3200, 120),
    "shopping": (6000, 2600, 120),
}
FRESH = 2                 # two epochs of new questions teach more than one that is seen twice
BESIDES = {"outside": 4500, "remark": 3600, "echo": 2500}     # exchanges of SFT that belong to no task
PLAIN_SHARE = 0.25        # share of SFT questions in their plain form
PHRASINGS = 60            # held-out phrasings of each task
OUTSIDE = 200             # questions outside the world, a third of them remarks
BLANKS = 0.12             # share of recall in which what is asked for was never told
HAND_REPEATS = 4          # how often each hand-written passage or dialogue appears
CHAINED = 0.2             # share of SFT dialogues made of several unrelated exchanges
CHAIN_SIZES = (2, 2, 3, 3, 4, 5, 7)
ASKED_SHARE = 0.5         # share of the text in which something is asked and answered, not told
COPIES = 30000            # sentences in which a word that means nothing, or a name, is said twice
SENTENCES = 3             # a document is two runs of this many sentences, each run about one thing
TOP_ANSWER = 0.18         # no answer may fill more than this share of a task's held-out questions
COPYING = ("“{0}”照着写还是“{0}”。", "有人叫{0}，{0}来了。", "这个词是{0}，再念一遍：{0}。", "他说：“{0}。”我也说：“{0}。”", "{0}和{0}一样。")
ECHOES = ("跟我念：{}", "照抄一遍：{}", "重复我的话：{}", "把“{}”照着写一遍", "请你也说一遍：{}", "照着说：{}", "再写一遍{}", "我说{}，你也说")
DROP_MARK = 0.15          # share of training questions without their question mark


def turns(exchanges):
    """[(question, answer), ...] -> the messages of a dialogue."""
    return [{"role": role, "content": text} for pair in exchanges for role, text in zip(("user", "assistant"), pair)]


def pre_rows(rng):
    """Rows of running text: the same skills as in the dialogues, told instead of asked."""
    runs = []
    for name, (amount, _, _) in AMOUNTS.items():
        runs += in_runs([told(rng, name) for _ in range(amount)])
    runs += in_runs([said_twice(rng) for _ in range(COPIES)])
    runs += [row["text"] for row in hand_rows("text")] * HAND_REPEATS
    rng.shuffle(runs)
    return [{"text": "".join(runs[i:i + 2])} for i in range(0, len(runs), 2)]


def in_runs(sentences):
    return ["".join(sentences[i:i + SENTENCES]) for i in range(0, len(sentences), SENTENCES)]


def told(rng, name):
    """A sentence or two of running text about a task."""
    if name == "recall" or rng.random() >= ASKED_SHARE:
        return TASKS[name].tell(rng, draw_part(TASKS[name], rng, "train"))
    question, answer = train_exchange(rng, name)
    question = question.strip()
    return f"{question}{'' if question[-1:] in '？?！!。' else '：'}{answer}。"


def copied_word(rng):
    return unheld(rng, draw_name) if rng.random() < 0.4 else rare_word(rng)


def said_twice(rng):
    """A sentence that only copying completes."""
    return rng.choice(COPYING).format(copied_word(rng))


def echo(rng):
    """Asked to say something again: (question, answer)."""
    word = copied_word(rng)
    return rng.choice(ECHOES).format(word), word


def train_exchange(rng, name):
    if name in BESIDES:
        return {"outside": outside, "remark": remark, "echo": echo}[name](rng)
    if rng.random() >= PLAIN_SHARE:
        return to_learn(rng, TASKS[name], FREE)
    question, answer = to_learn(rng, TASKS[name], PLAIN)
    if question.endswith("？") and rng.random() < DROP_MARK:
        question = question[:-1]
    return question, answer


def recall_dialogue(rng):
    recall, style = TASKS["recall"], PLAIN if rng.random() < PLAIN_SHARE else FREE
    if rng.random() < BLANKS:
        return recall.blank(rng, style)
    return recall.exchanges(rng, recall.draw(rng), style)


def sft_rows(rng):
    """Dialogues of every task; some hold several exchanges, so that a long conversation is nothing new."""
    done = [recall_dialogue(rng) for _ in range(FRESH * AMOUNTS["recall"][1])]
    amounts = {**{name: amount for name, (_, amount, _) in AMOUNTS.items() if name != "recall"}, **BESIDES}
    single = [train_exchange(rng, name) for name, amount in amounts.items() for _ in range(FRESH * amount)]
    rng.shuffle(single)
    while single:
        size = rng.choice(CHAIN_SIZES) if rng.random() < CHAINED else 1
        done.append(single[-size:])
        del single[-size:]
    rows = [{"conversations": turns(exchanges)} for exchanges in done] + hand_rows("small_talk") * HAND_REPEATS * FRESH
    rng.shuffle(rows)
    return rows


def eval_rows(rng, style=PLAIN):
    """Held-out questions, no two alike, no answer too frequent; other wordings of one content only when contents run
    out."""
    rows = []
    for name, (_, _, amount) in AMOUNTS.items():
        amount = amount if style == PLAIN else min(amount, PHRASINGS)
        task, asked, contents, answers = TASKS[name], set(), set(), Counter()
        for attempt in range(300 * amount):
            slots = draw_part(task, rng, "eval")
            if slots in contents and attempt < 50 * amount:
                continue
            exchanges = task.exchanges(rng, slots, style) if isinstance(task, Recall) else [task.ask(rng, slots, style)]
            question, answer = exchanges[-1]
            key = "\n".join(text for pair in exchanges for text in pair)
            if key in asked or answers[answer] + 1 > max(1, TOP_ANSWER * amount):
                continue
            asked.add(key)
            contents.add(slots)
            answers[answer] += 1
            rows.append({"conversations": turns(exchanges), "task": name})
            if len(asked) == amount:
                break
        else:
            raise UserError(f"内置任务“{name}”凑不出 {amount} 道互不相同的考题，请把 tools/demo_data.py 里 AMOUNTS 的数目改小。")
    return rows


def phrasing_rows(rng):
    """The same tasks in held-out forms, marks and polite words."""
    return eval_rows(rng, OTHER)


def outside_rows(rng):
    """Questions outside the world, all kinds alike, and remarks; `right` grades them."""
    asked, rows, names = set(), [], [*kinds(), *UNREAD]
    for number in range(2 * OUTSIDE // 3):
        question, reply = fresh(asked, lambda: outside(rng, OTHER, names[number % len(names)]))
        rows.append({"conversations": turns([(question, reply)]), "task": "outside", "outside": True})
    for row in rng.sample(remarks() * 2, OUTSIDE - len(rows)):
        pair = fresh(asked, lambda: remark(rng, OTHER, row))
        rows.append({"conversations": turns([pair]), "task": "outside", "accept": [pair[1]]})
    return rows


def fresh(seen, make):
    """A pair of `make()` whose question is not in `seen`; it is then."""
    pair = make()
    while pair[0].strip("？?！。!～~ ") in seen:
        pair = make()
    seen.add(pair[0].strip("？?！。!～~ "))
    return pair


def graded(row, reply):
    """Is this reply to an evaluation row right? Exact, unless the row says what it accepts."""
    if row.keys() & {"accept", "hints", "outside"}:
        return right(row, reply)
    return grade(row["conversations"][-1]["content"], reply)


def refused(row, reply):
    """A false refusal: it says that it cannot, where the right answer does not."""
    return admits(reply) and not row.get("outside") and not admits(row["conversations"][-1]["content"])


def grade(expected, reply):
    """Exact match, white space at both ends aside."""
    return expected.strip() == reply.strip()


def guess_chance(task, question, answer):
    """Probability that a guess which knows only the form of the answers hits; 0.0 where only the constant answer is a
    sensible guess.

    compare, chinese_compare: one of the two numbers, 1/2. weekday: the steps given, any of seven days, 1/7. count: any
    of 2..7, 1/6.
    ends: any character of the string, 1/length. reverse: the characters in any order, 1/length!.
    """
    length = len(question.split("“")[1].split("”")[0]) if task in ("ends", "reverse") else 1
    return {"compare": 1 / 2, "chinese_compare": 1 / 2, "weekday": 1 / 7, "count": 1 / 6, "ends": 1 / length,
            "reverse": 1 / math.factorial(length)}.get(task, 0.0)


def chance(rows):
    """Evaluation rows -> {task: the better of the most frequent answer's share and the mean of `guess_chance`}, each in
    0..1."""
    tasks = {}
    for row in rows:
        question, answer = (turn["content"] for turn in row["conversations"][-2:])
        tasks.setdefault(row["task"], []).append((question, answer))
    scores = {}
    for name, pairs in tasks.items():
        constant = Counter(answer for _, answer in pairs).most_common(1)[0][1] / len(pairs)
        scores[name] = max(constant, sum(guess_chance(name, *pair) for pair in pairs) / len(pairs))
    return scores


def source_key(seed):
    """Changes when the seed, the generator or a hand-written row does; files of another key are written anew."""
    digest = hashlib.sha256(f"seed {seed}".encode())
    for path in [Path(__file__), *sorted((Path(__file__).parent / "demo").glob("*.py"))] + sorted(
            HAND.glob("hand_*.jsonl")):
        digest.update(path.name.encode() + path.read_bytes().replace(b"\r\n", b"\n"))
    return digest.hexdigest()


def file_digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def write_once(folder, name, seed, make):
    """Write what `make()` -> {name: rows} returns as folder/demo_<name>.jsonl, unless a good copy is there.

    demo_<name>.key keeps the content key and every file's digest, so that a damaged or older file is noticed. Returns
    {name: Path}.
    """
    folder = Path(folder)
    keeper, key = folder / f"demo_{name}.key", source_key(seed)
    try:
        kept = json.loads(keeper.read_text(encoding="utf-8"))
        names = kept["files"]
        if kept["key"] == key and all(file_digest(folder / f"demo_{n}.jsonl") == digest for n, digest in names.items()):
            return {n: folder / f"demo_{n}.jsonl" for n in names}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass                                                     # no key, or not a whole one: write everything
    paths = {}
    for n, rows in make().items():
        paths[n] = folder / f"demo_{n}.jsonl"
        write_bytes(paths[n], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode("utf-8"))
    kept = {"key": key, "files": {n: file_digest(path) for n, path in paths.items()}}
    write_bytes(keeper, json.dumps(kept).encode("utf-8"))
    return paths


def build_demo(seed=0):
    """{"pre": rows, "sft": rows, "eval": rows, "phrasings": rows, "outside": rows, and what `build_tools` gives}; no
    stream of random numbers touches another."""
    makers = {"pre": pre_rows, "sft": sft_rows, "eval": eval_rows, "phrasings": phrasing_rows, "outside": outside_rows}
    return {**{name: make(random.Random(f"{seed}/{name}")) for name, make in makers.items()}, **build_tools(seed)}


def whole_world(seed):
    """As it is written: what is learned of tools is learned with the other dialogues."""
    world = build_demo(seed)
    world["sft"] += world.pop("tools")
    random.Random(f"{seed}/mixed").shuffle(world["sft"])
    return world


def demo_home(out_dir):
    """Where the built-in world lies: the project's data/, or out_dir/data where that cannot be written."""
    return HAND if os.access(HAND, os.W_OK) or (HAND / "demo_world.key").is_file() else Path(out_dir, "data")


def write_demo(folder, seed=0):
    """Write the built-in world into `folder` unless it is there already: {"pre": Path, "sft": Path, "eval": Path,
    ...}."""
    return write_once(folder, "world", seed, lambda: whole_world(seed))


OPTIONS = [("--out", {"default": str(HAND), "metavar": "文件夹", "help": "写到哪个文件夹（默认是项目的 data）"}),
           ("--seed", {"type": int, "default": 0, "metavar": "整数", "help": "随机种子（默认 0），种子相同则内容相同"}),
           ("--tools", {"action": "store_true", "help": "只写出学用工具的对话、考题和一张价目表（与自己的对话一起学）"}),
           ("--adapters", {"action": "store_true", "help": "另外写出三个专家和门控的小数据集"})]


def main(argv=None):
    options = parse(argv, "生成内置的小世界：预训练文本、对话和考题。", extra=OPTIONS, reads=())[1]
    from tools.demo.tool_tasks import write_tools
    paths = (write_tools if options.tools else write_demo)(options.out, options.seed)
    if options.adapters:
        from tools.demo.adapters import write_adapters
        paths.update(write_adapters(options.out, options.seed))
    for path in paths.values():
        with open(path, encoding="utf-8") as lines:
            print(f"{path}：{sum(1 for _ in lines)} 行")


if __name__ == "__main__":
    guarded(main)
