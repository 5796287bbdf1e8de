"""A chatbot from real text: how good is it after so many CPU seconds of pre-training and fine-tuning?

    python bench/real_chat.py --text text.jsonl --dialogue dialogue.jsonl --preset chat --threads 1
    python bench/real_chat.py … --held 25 --first text --pre_seconds 120 --sft_seconds 60     # to choose a recipe

Rows whose zero-based number is divisible by 50 are never trained on; they are scored with --held 0, once, when all is
chosen. To choose, --held 25 leaves out and scores every 50th row from 25 on. Both clocks count the training steps and
the counting of the tables; reading data, vocabulary and scoring are left out, for everybody alike. Bits per character
of texts and of replies; "clean" replies share no run of eight characters with the dialogues trained on. Prints one JSON
line; --results appends it to a file.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

from bench.quality_per_minute import COUNTING, BudgetLoop, commit
from chat_agent.evaluation.scoring import bits_per_char
from chat_agent.load import load
from tools.cli import guarded, parse
from tools.config_manager import ConfigManager
from tools.formats import Row, as_dialogue, parse_line
from train_agent.trainers import pre_training, sft_training

EVERY, RUN = 50, 8      # one row in so many is held out; so many characters in a row are no coincidence
STAGES = {"pre": pre_training, "sft": sft_training}
EXTRA = [("--text", {"required": True, "metavar": "F", "help": "预训练的文本（JSONL）"}),
         ("--dialogue", {"required": True, "metavar": "F", "help": "微调的对话（JSONL）"}),
         ("--held", {"type": int, "default": 0, "help": "评分用行号除以 50 余几的行；余 0 的从不训练（0）"}),
         ("--first", {"choices": ("text", "both", "dialogue"), "default": "both", "help": "预训练看什么（both）"}),
         ("--longest", {"type": int, "help": "微调只用不超过这么多字的对话"}),
         ("--pre_seconds", {"type": float, "default": 900.0, "help": "预训练多少 CPU 秒（900）"}),
         ("--sft_seconds", {"type": float, "default": 900.0, "help": "微调多少 CPU 秒（900）"}),
         ("--wall_seconds", {"type": float, "nargs": 2, "metavar": ("PRE", "SFT"),
                             "help": "两个阶段最多各走多少秒：机器太忙时按它提前结束，学习率也按它降完"}),
         ("--shuffled", {"action": "store_true", "help": "把训练对话的回答打乱：评分应该变差的对照"}),
         ("--work", {"help": "放检查点、词表和缓存的文件夹；默认临时"}),
         ("--label", {"help": "这一次的名字，写进结果"}),
         ("--results", {"help": "把结果（一行 JSON）追加到这个文件"})]


def split(path, held, work):
    """-> paths of the rows to train on and of those to score."""
    rows = [line for line in open(path, "rb") if line.strip()]
    scored = [i % EVERY == held for i in range(len(rows))]
    parts = {"train": [r for i, r in enumerate(rows) if i % EVERY and not scored[i]],
             "held": [r for r, one in zip(rows, scored) if one]}
    for name, own in parts.items():
        write(work / f"{Path(path).stem}_{name}.jsonl", own)
    return [work / f"{Path(path).stem}_{name}.jsonl" for name in parts]


def write(path, lines):
    path.write_bytes(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))
    return path


def short(path, longest):
    """The dialogues of at most so many characters."""
    rows = [line for line in open(path, "rb") if said(line) <= longest]
    return write(path.with_name(f"short_{longest}.jsonl"), rows)


def said(line):
    return sum(len(m["content"] or "") for m in messages_of(line))


def messages_of(line):
    """The turns of a row in any shape that training reads, [] of one that it does not."""
    row = parse_line(line)
    return as_dialogue(row).messages if isinstance(row, Row) else []


def shuffled(path):
    """The same questions, each with the replies of another dialogue with the same turns; tools are not called."""
    alike = {}
    for line in open(path, "rb"):
        row = [{"role": m["role"], "content": m["content"]} for m in messages_of(line) if m["content"]]
        alike.setdefault(tuple(m["role"] for m in row), []).append(row)
    mixed = [[other if mine["role"] == "assistant" else mine for mine, other in zip(row, after)]
             for group in alike.values() for row, after in zip(group, group[len(group) // 2:] + group)]
    lines = [json.dumps({"conversations": row}, ensure_ascii=False).encode() for row in mixed if row]
    return write(path.with_name("shuffled.jsonl"), lines)


def clean(held, trained):
    """The held-out rows none of whose replies shares a run of characters with what was trained on."""
    known = {text[i:i + RUN] for text in replies(trained) for i in range(len(text) - RUN + 1)}
    rows = [line for line in open(held, "rb")
            if not any(text[i:i + RUN] in known for text in said_by(line) for i in range(len(text) - RUN + 1))]
    return write(held.with_name("clean.jsonl"), rows)


def said_by(line):
    return [m["content"] for m in messages_of(line) if m["role"] == "assistant" and m["content"]]


def replies(path):
    return [text for line in open(path, "rb") for text in said_by(line)]


class Hurry:
    """A clock of CPU seconds that runs ahead where `wall` seconds would otherwise not do for `seconds` of them."""

    def __init__(self, seconds, wall):
        self.cpu, self.since, self.rate = time.process_time(), time.perf_counter(), seconds / wall if wall else 0
        COUNTING[self] = COUNTING[time.process_time]

    def __call__(self):
        return max(time.process_time() - self.cpu, (time.perf_counter() - self.since) * self.rate)


def train(name, command, work, data, words, seconds, **keys):
    """One stage for so many CPU seconds -> its final checkpoint and what it cost."""
    given = {**command.overrides, "out_dir": str(work), "cache_dir": str(work / "cache"), "log_dir": str(work),
             "log_file": str(work / "log.txt"), "vocab_trg_path": str(work / "vocab.json"), "resume": "none",
             "json_data_path": data, "vocab_data_path": words, "eval_share": 0.0, "eval_steps": None,
             "save_steps": None, "max_epochs": 1000, **keys}
    begun = time.process_time()
    stage = STAGES[name].build_stage(ConfigManager(command.config or ROOT / "model_config.json", given,
                                                   command.preset, name).stage(name))
    wall = command.wall_seconds[name == "sft"] if command.wall_seconds else None
    loop = BudgetLoop(stage, seconds, Hurry(seconds, wall), 1, None)
    since, cpu = time.perf_counter(), time.process_time()
    loop.run()
    spent = time.process_time() - cpu + sum(stage.notes.get(name, 0.0) for name in COUNTING[time.process_time])
    return work / f"TinySeek_{stage.label}_final.pkl", {
        "steps": loop.step, "tokens": loop.tokens, "epochs": loop.position.epoch + 1,
        "cpu_seconds": round(spent, 1), "wall_seconds": round(time.perf_counter() - since, 1),
        "with_data": round(time.process_time() - begun, 1)}


def run(command, folder):
    work = Path(command.work or folder).resolve()
    work.mkdir(parents=True, exist_ok=True)
    (text, held_text), (dialogue, held) = (split(p, command.held, work) for p in (command.text, command.dialogue))
    rare = clean(held, dialogue)
    dialogue = shuffled(dialogue) if command.shuffled else dialogue
    first = {"text": [text], "dialogue": [dialogue], "both": [text, dialogue]}[command.first]
    words, start, cost = [str(text), str(dialogue)], None, {}
    if command.pre_seconds:
        start, cost["pre"] = train("pre", command, work, list(map(str, first)), words, command.pre_seconds)
    own = short(dialogue, command.longest) if command.longest else dialogue
    final, cost["sft"] = train("sft", command, work, [str(own)], words, command.sft_seconds,
                               pretraining_model_path=str(start) if start else None)
    model, vocab, _ = load(final, "cpu")
    scored = {"text": held_text, "replies": held, "clean": rare}
    scores = {name: bits_per_char(model, vocab, [str(path)], every=5 if name == "text" and command.held else 1,
                                  precision="bf16") for name, path in scored.items()}
    return {"bits_per_char": {name: round(one["bits_per_char"], 4) for name, one in scores.items()},
            "characters": {name: one["characters"] for name, one in scores.items()}, **cost,
            "parameters": sum(p.numel() for p in model.parameters()), "vocab": len(vocab)}


def main(argv=None):
    manager, command = parse(argv, "用真实文本训练聊天机器人：多少 CPU 秒，多好？", stage="sft", extra=EXTRA)
    with tempfile.TemporaryDirectory() as folder:
        result = run(command, folder)
    asked = {name: getattr(command, name) for name in ("held", "first", "longest", "shuffled")}
    result = {"label": command.label or command.preset or "default", **result, **asked, "preset": command.preset,
              "keys": command.overrides, "threads": manager.config["threads"], "commit": commit()}
    if command.results:
        with open(command.results, "a", encoding="utf-8") as file:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
    print(json.dumps(result, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)
