"""Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290): what people chose becomes likelier than what
they rejected, measured from the model that training starts from.

    reward(reply) = beta * (log p(reply) - log p_reference(reply));  loss = -log sigmoid(reward(chosen) -
    reward(rejected))
"""

import sys
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from tools.pictures.others import draw_preference
from train_agent.trainers import parallel
from train_agent.trainers.hardware import machine
from train_agent.trainers.data.count_ngrams import leave_out
from train_agent.trainers.losses import share_of_step
from train_agent.trainers.data.preference_pairs import PreferenceData, both, joined, usable_pairs
from train_agent.trainers.build_stage import cached, identity, prepare_machine, speaking_start, training_and_held
from train_agent.trainers.data.split import divided
from train_agent.trainers.stage import Stage
from train_agent.trainers.run_stage import start
from train_agent.trainers.data.disk_table import stored

PAIRS = 8       # scored at once by the reference


def log_probabilities(model, batch):
    """-> log p of each reply (2 * P,), chosen and rejected in turn, and the model's output."""
    out = model(batch.ids, labels_1=batch.labels, positions=batch.positions, layout=batch.layout, valid=batch.valid,
                each=True, left_out=batch.left_out)
    totals = torch.zeros(len(batch.reference), dtype=out.losses_1.dtype, device=batch.ids.device)
    return -totals.index_add(0, batch.owner, out.losses_1.flatten()), out


def preference_loss(beta, model, batch, totals):
    """One micro-batch's share of the step: the mean loss of its pairs, and the experts' balance as in every stage."""
    scores, out = log_probabilities(model, batch)
    rewards = (beta * (scores - batch.reference)).view(-1, 2)                    # (P, 2): chosen, rejected
    # False: a rank without pairs in this step
    margin, counted = rewards[:, 0] - rewards[:, 1], batch.targets_1 > 0
    out.loss_sums = (-F.logsigmoid(margin).sum() * counted,)
    loss, sums = share_of_step(out, batch, totals)
    told = {"accuracy": margin > 0, "margin": margin, "reward_chosen": rewards[:, 0], "reward_rejected": rewards[:, 1]}
    return loss, sums | {name: values.detach().sum() * counted for name, values in told.items()}


def reference_scores(model, digest, data, options, device):
    """(documents of the cache,) float32: the start model's log-probability of every reply in `data`, 0 elsewhere.
    Kept on the disk."""
    key = [data.cache.name, digest, options["max_len"], options["mixed_precision"], device.type]
    key += [data.documents.tolist()]
    key += [] if data.counted is None else ["left out"]
    return stored("dpo", key, options["cache_dir"], (len(data.cache),), lambda: scored(model, data, options, device))


@torch.no_grad()
def scored(model, data, options, device):
    pairs, found, was_training = data.documents, np.zeros(len(data.cache), np.float32), model.training
    model.to(device).eval()
    with tqdm(total=len(pairs), desc="参考模型打分", delay=2, leave=False) as bar:
        for first in range(0, len(pairs), PAIRS):
            documents = both(pairs[first:first + PAIRS])
            batch = joined(data.cache, documents, options["max_len"], torch.zeros(len(documents)), counted=data.counted)
            batch = batch.to(device)
            with machine.autocast(device, options["mixed_precision"]):
                found[documents] = log_probabilities(model, batch)[0].float().cpu().numpy()
            bar.update(len(documents) // 2)
    model.train(was_training)
    return found


def build_stage(options):
    device = prepare_machine(options)
    options, vocab, model, described, digest = speaking_start(
        "dpo", options, device, "偏好数据", '{"prompt": …, "chosen": …, "rejected": …}')
    split = divided(options, partial(pair_cache, options, vocab), partial(usable_pairs, width=options["max_len"]))
    train, held = training_and_held(split, partial(pairs_of, model, digest, options, device))
    same = identity(vocab, split.cache, 起点模型=digest[:16])
    return Stage("dpo", options, model, train, held, described, same, partial(preference_loss, options["beta"]),
                 notes=split.notes())


def pair_cache(options, vocab, data):
    """Of these files only the rows with chosen and rejected; the others are bad lines."""
    return cached({**options, "training_mode": "preference"}, vocab, data)


def pairs_of(model, digest, options, device, cache, pairs, shuffle):
    data = PreferenceData(cache, pairs, None, options, shuffle)
    leave_out(model, data)
    data.reference = parallel.main_first(lambda: reference_scores(model, digest, data, options, device))
    return data


def dpo_train(config, **parameters):
    """Train on the options of the stage `dpo`, `parameters` on top. Returns the last metrics; see Loop for exit
    codes."""
    return start(build_stage, {**config, **parameters}, told)


def told(stage, metrics):
    """Say how well the held-out pairs are told apart -> metrics."""
    picture, words = draw_preference(stage.options["log_dir"]), ""
    if "eval_accuracy" in metrics and "eval_margin" in metrics:
        words = (f"留出的 {stage.notes['rows']['held']} 对上，偏好准确率 {metrics['eval_accuracy']:.1%}，"
                 f"间隔 {metrics['eval_margin']:.3f}；")
    print(f"{words}奖励、间隔和准确率的曲线：{picture}", file=sys.stderr)
    return metrics
