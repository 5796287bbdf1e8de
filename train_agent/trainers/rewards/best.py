"""Sampling without learning: the best of a group as rows for SFT, the best and the worst as pairs for DPO."""

import sys

import torch
from tqdm import tqdm

from tools.errors import UserError
from tools.saving.atomic import write_bytes
from train_agent.trainers import parallel
from train_agent.trainers.hardware import machine
from train_agent.trainers.rewards.lines import best_row, pair_row, text_of


def write_replies(stage):
    """Ask the training questions (max_steps batches of them, else all once) and write what --write_best and
    --write_pairs name. -> counts"""
    if parallel.world() > 1:
        raise UserError("--write_best 和 --write_pairs 只用一个进程：请不用 torchrun。")
    options, player = stage.options, stage.player()
    stage.model.to(machine.choose_device(options["device"])).eval()
    best, pairs, asked = [], [], 0
    try:
        for place in tqdm(stage.train.places()[:options["max_steps"]], desc="取回答", delay=0.5):
            with torch.inference_mode():
                groups = player.play(stage.model, stage.train.batch(place))
            asked += len(groups)
            for text in player.unscored(groups):
                print(text, file=sys.stderr)
            best += [row for group in groups if (row := best_row(group))]
            pairs += [row for group in groups if (row := pair_row(group))]
    finally:                                               # also when it is stopped: what was asked for has been paid
        told = f"问了 {asked} 题，每题 {options['group_size']} 个回答"
        written(options["write_best"], best, told, "--json_data_path 给 sft_train.py", "没有一个回答得满分（第一个奖励不小于 1）")
        written(options["write_pairs"], pairs, told, "--json_data_path 给 dpo_train.py", "没有一题的回答有好有坏")
    return {"asked": asked, "best": len(best), "pairs": len(pairs)}


def written(path, rows, told, use, why):
    """Write rows and say what they are for; without any there is no file, and why."""
    if not path:
        return
    if not rows:
        print(f"没有写 {path}：{told}，{why}。", file=sys.stderr)
        return
    write_bytes(path, text_of(rows).encode("utf-8", "surrogatepass"))
    print(f"{path}：{len(rows)} 行（{told}），用 {use}。", file=sys.stderr)
