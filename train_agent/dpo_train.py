"""Preference alignment (DPO): pairs of a chosen and a rejected reply in, out/TinySeek_DPO_final.pkl out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

import torch

from tools.cli import guarded, parse
from train_agent.trainers.dpo_tuning import dpo_train


def main(argv=None):
    torch.multiprocessing.freeze_support()
    config = parse(argv, "偏好对齐（DPO）：让模型更倾向于人选中的回答", stage="dpo")[0].stage("dpo")
    dpo_train(config, json_data_path=config["json_data_path"], pretraining_model_path=config["pretraining_model_path"],
              beta=config["beta"],
              max_len=config["max_len"], batch_size=config["batch_size"], init_lr=config["init_lr"])


if __name__ == "__main__":
    guarded(main)
