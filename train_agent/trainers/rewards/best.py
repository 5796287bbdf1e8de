"""Sampling without learning: the best of a group as rows for SFT, the best and the worst as pairs for DPO."""

import sys

import torch
from tqdm import tqdm

from tools.errors import UserError
from tools.saving.atomic import write_bytes
from train_agent.trainers import parallel
from train_agent.trainers.dataset import Position
from train_agent.trainers.hardware import machine
from train_agent.trainers.rewards.lines import best_row, pair_row, text_of


def write_replies(stage):
    """Ask the training questions (max_steps batches of them, else all once) and write what --write_best and
    --write_pairs name. -> counts"""
    if parallel.world() > 1:
        raise UserError("--write_best 和 --write_pairs 只用一个进程：请不用 torchrun。")
    options, player = stage.options, stage.player()
    stage.model.to(machine.choose_device(options["device"])).eval()
    places = [Position(0, chunk, n) for chunk in range(stage.train.chunks)
              for n in range(stage.train.batches_in(0, chunk))][:options["max_steps"]]
    best, pairs, asked = [], [], 0
    for place in tqdm(places, desc="取回答", delay=0.5):
        with torch.inference_mode():
            groups = player.play(stage.model, stage.train.batch(place))
        asked += len(groups)
        best += [row for group in groups if (row := best_row(group))]
        pairs += [row for group in groups if (row := pair_row(group))]
    for path, rows, what in ((options["write_best"], best, "--json_data_path 给 sft_train.py"),
                             (options["write_pairs"], pairs, "--json_data_path 给 dpo_train.py")):
        if path:
            write_bytes(path, text_of(rows).encode("utf-8", "surrogatepass"))
            print(f"{path}：{len(rows)} 行（问了 {asked} 题，每题 {options['group_size']} 个回答），用 {what}。", file=sys.stderr)
    return {"asked": asked, "best": len(best), "pairs": len(pairs)}
