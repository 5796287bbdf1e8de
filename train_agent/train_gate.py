"""The gate: dialogues and experts in, out/TinySeek_gate_final.pkl out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

import torch

from tools.cli import guarded, parse
from train_agent.trainers.gated_training import gate_train


def main(argv=None):
    torch.multiprocessing.freeze_support()
    config = parse(argv, "选择门：学会把每个问题交给最合适的候选模型", stage="gate")[0].stage("gate")
    gate_train(config, json_data_path=config["json_data_path"], vocab_trg_path=config["vocab_trg_path"],
               max_len=config["max_len"],
               batch_size=config["batch_size"], num_workers=config["num_workers"],
               accumulation_steps=config["accumulation_steps"], init_lr=config["init_lr"])


if __name__ == "__main__":
    guarded(main)
