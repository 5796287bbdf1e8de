"""Reinforcement learning: questions and rewards in, out/TinySeek_RL_final.pkl out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

import torch

from tools.cli import guarded, parse
from train_agent.trainers.reward_tuning import reward_train


def main(argv=None):
    torch.multiprocessing.freeze_support()
    config = parse(argv, "强化学习：模型自己回答，得分高的说法变得更常说", stage="rl")[0].stage("rl")
    reward_train(config, json_data_path=config["json_data_path"],
                 pretraining_model_path=config["pretraining_model_path"], reward=config["reward"],
                 max_len=config["max_len"], batch_size=config["batch_size"], init_lr=config["init_lr"])


if __name__ == "__main__":
    guarded(main)
