"""Reinforcement learning with tools, from one model that has learned to use them: does it become surer of them, and
does it still leave them alone where none is needed?

    python bench/reinforce_tools.py --model out/TinySeek_SFT4_1_s1500.pkl [--train_minutes 3.3] [--seeds 0 1]
        [--tasks big_sum ordinary ...] [any key of the stage rl]

The questions are the training rows of the built-in tool tasks (--tasks: some of them), which no exam has;
single-threaded. Scores are shares of demo_tools_eval.jsonl: for each task how often a tool is called, and how often the
answer is right, of replies sampled at temperature 1 and of the greedy one. Last line of stdout: one JSON object.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from bench.reinforce import EXTRA as OF_BOTH
from bench.reinforce import arm
from chat_agent.load import load
from tools.acting.toolbox import toolbox
from tools.checkpoint import read_checkpoint
from tools.cli import guarded, parse
from tools.demo.tool_tasks import AMOUNTS, write_tools
from tools.template import render_prompt
from train_agent.trainers.rewards.episodes import Speaker
from train_agent.trainers.rewards.named import exact
from train_agent.trainers.rewards.questions import read_question

ROOM, CONTEXT = 128, 384
EXTRA = [*(one for one in OF_BOTH if one[0] in ("--model", "--seeds", "--train_minutes")),
         ("--folder", {"default": "out/reinforce_tools", "metavar": "D", "help": "放数据和各次训练的文件夹"}),
         ("--tasks", {"nargs": "+", "default": list(AMOUNTS), "choices": AMOUNTS, "help": "拿哪些任务的题来学"})]


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def scores(path, exam, box):
    """{"T 1" | "greedy": {"tasks": mean share of right answers over the tasks that need a tool, "needless": share of
    the others in which one was called, task: [called, right]}}."""
    model, vocab, payload = load(path)
    speaker = Speaker(vocab, payload["talk"]["acts"], model.config.vocab_size, CONTEXT, box)
    lines, found = lines_of(exam), {}
    asked = [(json.loads(line)["task"], read_question(line.encode(), None, i, box)) for i, line in enumerate(lines)]
    for name, how in (("T 1", {"temperature": 1.0, "guard": False}), ("greedy", {})):
        told = speaker.episodes(model, [(q.talk, render_prompt(q.talk, vocab)) for _, q in asked], ROOM,
                                [f"exam/{i}" for i in range(len(asked))], **how)
        marks = {}
        for (task, question), episode in zip(asked, told):
            right = exact(question.talk, episode.said, question.row, {})
            marks.setdefault(task, []).append((bool(episode.used), right))
        shares = {task: [round(sum(part) / len(part), 4) for part in zip(*given)] for task, given in marks.items()}
        needing = [share[1] for task, share in shares.items() if task != "ordinary"]
        found[name] = {"tasks": round(sum(needing) / len(needing), 4), "needless": shares["ordinary"][0], **shares}
    return found


def main(argv=None):
    _, command = parse(argv, "用工具的强化学习：学完是不是用得更稳，不需要时还乱不乱用", stage="rl", extra=EXTRA)
    torch.set_num_threads(1)
    folder = Path(command.folder)
    paths = write_tools(folder)
    tools = ["all", str(paths["prices"])]
    data = folder / "questions.jsonl"
    data.write_text("".join(line for line in lines_of(paths["tools"]) if json.loads(line)["task"] in command.tasks),
                    encoding="utf-8")
    box, found = toolbox(tools), {}
    found["start"] = scores(command.model, paths["tools_eval"], box)
    print(found, flush=True)
    own = {"tools": tools, "reward": "tool_result", "max_len": CONTEXT, "max_new_tokens": ROOM, "batch_size": 8,
           "init_lr": 2e-4, "eval_share": 0.02}
    for seed in command.seeds:
        begin = time.process_time()
        path = arm("rl", own, command, folder / f"rl_{seed}", data, seed)
        spent = {"cpu_minutes": round((time.process_time() - begin) / 60, 2), "steps": read_checkpoint(path)["step"]}
        found[f"rl_{seed}"] = spent | scores(path, paths["tools_eval"], box)
        print(seed, found[f"rl_{seed}"], flush=True)
    print(json.dumps(found, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)
