"""Does DPO learn a preference that holds for pairs it has not seen? k-fold held-out accuracy with its interval, before
and after.

    python bench/preference.py --data preference.jsonl --text text.jsonl --dialogue dialogue.jsonl [--out FOLDER] [any
    key of the stage dpo] python bench/preference.py --data preference.jsonl --base out/TinySeek_SFT_final.pkl

Without --base a small dense model is trained first: --base_steps of pre-training on --text, half as many of SFT on
--dialogue. Every pair is held out once. Four judges are counted: the model's own log-probability of both replies, the
same per token, the implicit reward (against the start), and the longer reply, which takes no model at all. Run again to
go on where it was stopped.
"""

import json
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import numpy as np

from bench.adapt import shape_of
from tools.cli import guarded, parse
from tools.config_manager import ConfigManager
from tools.errors import UserError
from tools.formats import BadLines, not_a_pair, read_rows
from tools.reading.lines import iter_lines
from tools.logs.reader import read_log
from tools.pictures.others import PREFERENCE, draw_run, held_out
from tools.saving.archive import read_json, write_json
from train_agent.trainers import dpo_tuning, pre_training, sft_training
from train_agent.trainers.hardware import machine
from tools.mask import last_reply
from train_agent.trainers.loop import Loop

LENGTH = 256
DENSE = {"use_moe": False, "tie_embedding": True}       # what the base is, beside the configuration's own shape
JUDGES = {"log_p": "log p", "log_p_per_token": "log p 每词元", "reward": "奖励（相对起点）", "longer": "只看谁更长"}
EXTRA = [("--data", {"required": True, "metavar": "F", "help": "偏好数据（JSONL）"}),
         ("--base", {"metavar": "P", "help": "起点模型；不写就先用 --text 和 --dialogue 训练一个"}),
         ("--text", {"metavar": "F", "help": "预训练起点模型的文本"}),
         ("--dialogue", {"metavar": "F", "help": "微调起点模型的对话"}),
         ("--base_steps", {"type": int, "default": 400, "metavar": "N", "help": "起点模型预训练多少步，SFT 再走一半（400）"}),
         ("--folds", {"type": int, "default": 5, "metavar": "K", "help": "几折（5）"}),
         ("--out", {"default": str(ROOT / "out/preference"), "metavar": "文件夹", "help": "检查点、结果和图片的文件夹"}),
         ("--quick", {"action": "store_true", "help": "很小的模型、几步，只看能不能跑"})]


def wilson(right, count, z=1.96):
    """95 % interval of a share."""
    p, d = right / count, 1 + z * z / count
    middle, half = (p + z * z / (2 * count)) / d, z * math.sqrt(p * (1 - p) / count + z * z / (4 * count * count)) / d
    return middle - half, middle + half


def by_chance(right, count):
    """Probability of at least so many right answers from coin tosses."""
    total = sum(math.comb(count, k) for k in range(math.ceil(right), count + 1))
    return total / 2 ** count


def every(source, target, count):
    """About `count` lines of a file, spread evenly over it, none of them a held-out one (number divisible by 50)."""
    lines = [bytes(raw) for number, raw in iter_lines(source) if (number - 1) % 50]
    Path(target).write_bytes(b"\n".join(lines[::max(1, len(lines) // count)]) + b"\n")
    return str(target)


def settings(folder, name, stage, given, preset="dense", **keys):
    """Options of one run in its own folder."""
    return ConfigManager(ROOT / "model_config.json", {
        **given, "out_dir": str(folder / name), "cache_dir": str(folder / "cache"),
        "log_dir": str(folder / name / "logs"),
        "log_file": str(folder / name / "log.txt"), "vocab_trg_path": str(folder / "vocab.json"), "max_len": LENGTH,
        "eval_steps": None,
        "save_steps": 50, "save_total_limit": 1, **keys}, preset, stage).stage(stage)


def train_base(folder, command, shape):
    """-> path of a small model that has seen text and dialogues."""
    rows = 60 if command.quick else 2500
    text, dialogue = (every(source, folder / f"{name}.jsonl", rows)
                      for name, source in (("text", command.text), ("dialogue", command.dialogue)))
    common = {**shape, "vocab_data_path": [text, dialogue], "max_bad_share": 0.01, "max_epochs": 100}
    pre = settings(folder, "base", "pre", common, json_data_path=text, max_steps=command.base_steps, eval_share=0.0)
    final = folder / "base/TinySeek_Pre_final.pkl"
    if not final.exists():
        Loop(pre_training.build_stage(pre)).run()
    sft = settings(folder, "base", "sft", common, json_data_path=dialogue, max_steps=command.base_steps // 2,
                   eval_share=0.0,
                   pretraining_model_path=str(final))
    if not (folder / "base/TinySeek_SFT_final.pkl").exists():
        Loop(sft_training.build_stage(sft)).run()
    return str(folder / "base/TinySeek_SFT_final.pkl")


def good_pairs(data):
    """The lines of the file that hold a pair of different replies."""
    kept = {row.line for row in read_rows(data, bad=BadLines()) if not not_a_pair(row)}
    return [bytes(raw) for number, raw in iter_lines(data) if number in kept]


def fold_files(lines, folder, fold, folds):
    """Training and held-out rows of one fold -> two paths. Rows are dealt out in turn."""
    parts = {"train": [l for i, l in enumerate(lines) if i % folds != fold], "held": lines[fold::folds]}
    for name, own in parts.items():
        (folder / f"{name}_{fold}.jsonl").write_bytes(b"\n".join(own) + b"\n")
    return [str(folder / f"{name}_{fold}.jsonl") for name in parts]


def run_fold(folder, base, fold, lines, command, given):
    """Train on all other folds -> {"before", "after": log p of both replies (P, 2), "tokens": the replies' lengths,
    "log": path}."""
    train, held = fold_files(lines, folder, fold, command.folds)
    options = settings(folder, f"fold_{fold}", "dpo", given, command.preset or "dense", json_data_path=train,
                       eval_data_path=held,
                       pretraining_model_path=base, logging_steps=1, eval_steps=20, save_best_model=False)
    stage = dpo_tuning.build_stage(options)
    Loop(stage).run()
    data, device = stage.held["held"], machine.choose_device(options["device"])
    documents = dpo_tuning.both(data.documents)
    tokens = [int(last_reply(data.cache.document(d)[1])[1:LENGTH + 1].sum()) for d in documents]
    after = dpo_tuning.scored(stage.model, data, stage.options, device)
    return {"before": data.reference[documents].tolist(), "after": after[documents].tolist(), "tokens": tokens,
            "log": str(max((folder / f"fold_{fold}" / "logs").glob("dpo_2*.jsonl")))}


def judged(folds):
    """-> {"before" | "after": {judge: share, low, high, p}}, margins (P,) of the held-out pairs."""
    before, after, tokens = (np.concatenate([np.reshape(f[k], (-1, 2)) for f in folds])
                             for k in ("before", "after", "tokens"))
    scores = {"before": {"log_p": before, "log_p_per_token": before / tokens, "longer": tokens},
              "after": {"log_p": after, "log_p_per_token": after / tokens, "reward": after - before}}
    told = {when: {judge: accuracy(values) for judge, values in judges.items()} for when, judges in scores.items()}
    margins = (after - before)[:, 0] - (after - before)[:, 1]
    longer = tokens[:, 0] > tokens[:, 1]
    for name, chosen in (("where_chosen_is_longer", longer), ("where_chosen_is_not_longer", ~longer)):
        if chosen.any():
            told["after"][f"reward_{name}"] = accuracy((after - before)[chosen])
    return told, margins


def accuracy(values):
    """values (P, 2): chosen, rejected. A tie is half right."""
    right, count = float((values[:, 0] > values[:, 1]).sum() + 0.5 * (values[:, 0] == values[:, 1]).sum()), len(values)
    low, high = wilson(right, count)
    return {"share": round(right / count, 4), "low": round(low, 4), "high": round(high, 4),
            "by_chance": round(by_chance(right, count), 4),
            "pairs": count}


def main(argv=None):
    manager, command = parse(argv, "DPO 学到的偏好，对没见过的回答还成立吗？", stage="dpo", extra=EXTRA)
    folder = Path(command.out)
    folder.mkdir(parents=True, exist_ok=True)
    shape = shape_of(command.base) if command.base else dict(DENSE)
    if command.quick and not command.base:
        shape |= {"d_model": 32, "n_head": 2, "n_layer": 1, "vocab_size": 600, "batch_size": 2}
    given = {**shape, **command.overrides} | ({"max_steps": 3} if command.quick else {})
    if command.quick:
        command.base_steps = 4
    if not command.base and not (command.text and command.dialogue):
        raise UserError("请用 --base 指定起点模型，或用 --text 和 --dialogue 给出训练它的数据。")
    base = command.base or train_base(folder, command, shape)
    lines, path = good_pairs(command.data)[:30 if command.quick else None], folder / "folds.json"
    folds = read_json(path)["folds"] if path.exists() else []
    for fold in range(len(folds), command.folds):
        folds.append(run_fold(folder, base, fold, lines, command, given))
        write_json(path, {"folds": folds})
        print(f"第 {fold + 1}/{command.folds} 折完成", file=sys.stderr, flush=True)
    told, margins = judged(folds)
    for when, judges in told.items():
        for judge, a in judges.items():
            print(
                f"{'之前' if when == 'before' else '之后'} {JUDGES.get(judge, judge)}：{a['share']:.1%}（95% 区间 "
                f"{a['low']:.1%} 至 {a['high']:.1%}，"
                  f"{a['pairs']} 对，靠运气的概率 {a['by_chance']:.3g}）")
    runs = [read_log(f["log"])[-1] for f in folds]
    picture = draw_run(runs[0], folder / "preference.png", "DPO", PREFERENCE)
    # a smaller fold may have one point less
    curve = np.mean(list(zip(*(held_out(run, "accuracy")[1] for run in runs))), 1).tolist()
    stage = manager.stage("dpo")
    print(
        json.dumps({**told, "margin_mean": round(float(margins.mean()), 4), "margin_sd": round(float(margins.std()), 4),
                      "held_accuracy_curve": [round(v, 4) for v in curve], "folds": command.folds,
                      "beta": stage["beta"],
                      "init_lr": stage["init_lr"], "epochs": stage["max_epochs"], "base": base, "picture": picture},
                      ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)
