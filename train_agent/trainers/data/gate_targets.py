"""What every expert's answer to every sample would cost: computed once, kept beside the token cache."""

import numpy as np
import torch
from tqdm import tqdm

from model.kernels.cross_entropy import IGNORE, target_losses
from model.segments import Segments
from tools.mask import last_reply
from train_agent.trainers.data.disk_table import stored
from train_agent.trainers.data.split import kept

TOKENS = 8192     # padded tokens of one forward pass


def answered(cache):
    """The documents that hold a reply with something before it: the others tell a gate nothing, and their rows are
    named."""
    return kept(cache, np.arange(len(cache)), is_answered(cache), "没有用户的话，或没有回答，门无从挑选")


def is_answered(cache):
    return np.array([(s := cache.document(d)[1]).any() and s.argmax() > 1 for d in range(len(cache))], dtype=bool)


def expert_losses(experts, hashes, cache, options, device):
    """{document: (X,) float32} for all documents with a reply: CE1 + CE2 in nats per token of the last reply, for each
    expert."""
    documents = np.flatnonzero(is_answered(cache))
    table = stored("gate", [cache.name, hashes, options["max_len"]], options["cache_dir"],
                   (len(documents), len(experts)), lambda: np.stack(
        [scored(model, cache, documents, options["max_len"], device, f"候选模型 {i + 1}/{len(experts)}")
         for i, model in enumerate(experts)], 1))
    return {int(d): row for d, row in zip(documents, table)}


@torch.inference_mode()
def scored(model, cache, documents, max_len, device, title):
    """-> (D,) float32: one expert's loss on the last reply of every document."""
    model.to(device).eval()
    if model.config.position == "learned":
        max_len = min(max_len, model.config.max_position)
    sizes = np.diff(np.stack(cache.bounds(documents)), axis=0)[0]
    order, losses, at = np.argsort(sizes, kind="stable"), np.zeros(len(documents), np.float32), 0
    with tqdm(total=len(documents), desc=title, delay=2, leave=False) as bar:
        while at < len(order):
            take = max(1, TOKENS // min(max_len, int(sizes[order[min(at + 64, len(order) - 1)]])))
            part = order[at:at + take]
            losses[part] = _losses(model, [cache.document(documents[i]) for i in part], max_len, device)
            at += len(part)
            bar.update(len(part))
    return losses


def _losses(model, pairs, max_len, device):
    """pairs: (ids, supervised) of several documents -> (B,) mean CE1 + mean CE2 of their last replies. A long one keeps
    its end."""
    pairs = [(ids[-max_len - 1:], last_reply(learned)[-max_len - 1:]) for ids, learned in pairs]
    width = max(len(ids) for ids, _ in pairs)
    ids, goals = np.zeros((len(pairs), width), np.int64), np.full((len(pairs), width), IGNORE)
    for row, (one, learned) in enumerate(pairs):
        ids[row, :len(one)] = one
        goals[row, :len(one)] = np.where(learned, one, IGNORE)
    hidden, before, _ = model.encode(torch.from_numpy(ids[:, :-1]).to(device),
                                     layout=Segments.dense(len(ids), width - 1))
    total = 0
    for ahead, head in zip((1, 2), model.heads()):
        labels = np.full_like(ids[:, :-1], IGNORE)
        labels[:, :width - ahead] = goals[:, ahead:]
        labels = torch.from_numpy(labels).to(device)
        ce = target_losses(hidden, head, labels.flatten(), before).view_as(labels).sum(1)
        total = total + ce / (labels >= 0).sum(1).clamp_min(1)
    return total.float().cpu().numpy()
