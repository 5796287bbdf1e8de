"""LoRA: dialogues and a base in, out/TinySeek_Lora_final.pkl (the adapter alone) out."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

import torch

from tools.cli import guarded, parse
from train_agent.trainers.lora_tuning import lora_train


def main(argv=None):
    torch.multiprocessing.freeze_support()
    config = parse(argv, "LoRA 微调：只学一小组低秩权重，底座不变", stage="lora")[0].stage("lora")
    lora_train(config, json_data_path=config["json_data_path"], vocab_trg_path=config["vocab_trg_path"],
               max_len=config["max_len"],
               batch_size=config["batch_size"], num_workers=config["num_workers"],
               accumulation_steps=config["accumulation_steps"], init_lr=config["init_lr"])


if __name__ == "__main__":
    guarded(main)
