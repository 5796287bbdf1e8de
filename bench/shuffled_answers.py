"""Can the score fail? SFT on the built-in dialogues with their answers dealt out at random, then the same held-out
questions.

    python bench/shuffled_answers.py [--steps N] [--quick]

Needs a finished run.py (its pre-trained model is the start). Every task must end near what guessing gets.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

from chat_agent.load import load
from chat_agent.evaluation.scoring import exact_scores
from tools.cli import guarded, parse
from train_agent.trainers.sft_training import sft_train

EXTRA = [("--steps", {"type": int, "help": "SFT 步数，默认与 run.py 那次相同"}),
         ("--quick", {"action": "store_true", "help": "不到一分钟的试跑"})]


def shuffle_answers(source, target, seed=0):
    """Every dialogue keeps its questions; all replies of the file are dealt out again in random order. What uses tools
    is left out."""
    rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "conversations" in row]
    replies = [m["content"] for row in rows for m in row["conversations"] if m["role"] == "assistant"]
    random.Random(seed).shuffle(replies)
    dealt = iter(replies)
    for row in rows:
        for message in row["conversations"]:
            if message["role"] == "assistant":
                message["content"] = next(dealt)
    Path(target).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main(argv=None):
    manager, command = parse(argv, "对照实验：答案打乱后再做 SFT，分数必须掉到随机猜测的水平。", stage="sft", extra=EXTRA)
    options = manager.stage()
    report = json.loads((Path(options["out_dir"]) / "report.json").read_text(encoding="utf-8"))
    steps = 20 if command.quick else command.steps or report["steps"]["sft"]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "shuffled.jsonl"
        shuffle_answers(options["json_data_path"], data)
        own = {"json_data_path": str(data), "out_dir": folder, "cache_dir": folder, "log_dir": folder,
               "log_file": str(Path(folder) / "log.txt"), "max_steps": steps, "eval_steps": None,
               "vocab_trg_path": str(Path(folder) / "v.json")}
        sft_train(options, **own)
        model, vocab, _ = load(Path(folder) / "TinySeek_SFT_final.pkl")
        scores = exact_scores(model, vocab, Path(options["json_data_path"]).parent / "demo_eval.jsonl",
                              every=20 if command.quick else 1, progress=True)
    above = {task: round(value - scores["chance"][task], 4) for task, value in scores["by_task"].items()}
    for task, value in sorted(above.items(), key=lambda item: -item[1]):
        print(f"{scores['by_task'][task]:>8.1%}  随机猜测 {scores['chance'][task]:>6.1%}  差 {value:>+7.1%}  {task}")
    print(json.dumps({"overall": scores["overall"], "by_task": scores["by_task"], "chance": scores["chance"],
                      "most_above_chance": max(above.values()), "steps": steps}, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)
