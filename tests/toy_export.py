"""Small models with lively logits for the tests of the exports, and texts to try them on."""
import json
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from bench.lively import lively, marked, random_texts                    # noqa: F401  the tests import them from here
from bench.lively import lively_payload as toy_payload                   # noqa: F401
from tools.formats import read_rows
from tools.saving.archive import write_torch
from tools.vocab import Vocab

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
GQA = dict(attention="gqa", n_kv_head=2, use_moe=False)
GPT2 = dict(attention="gqa", position="learned", max_position=160, norm="layer", activation="gelu", use_moe=False)
SHAPES = {
    "moe": {}, "moe_tied": {"tie_embedding": True}, "dense": {"use_moe": False},
    "dense_tied": {"use_moe": False, "tie_embedding": True},
    "all_moe": {"n_dense_layer": 0, "d_q": None, "use_fc2": False}, "sigmoid": {"router": "sigmoid"},
    "llama": GQA, "llama_tied": {**GQA, "tie_embedding": True, "norm_eps": 1e-5, "ro_theta": 5000.0},
    "qwen3": {**GQA, "qk_norm": True}, "qwen3_wide": {**GQA, "qk_norm": True, "head_dim": 24, "tie_embedding": True,
                                                      "use_fc2": False},
    "qwen2": {**GQA, "bias": "qkv", "rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 40},
    "mistral": {**GQA, "sliding_window": 9},
    "mla_yarn": {"rope_scaling": "yarn", "rope_factor": 8.0, "rope_original": 40, "head_dim": 8},
    "gpt2": GPT2, "gpt2_biased": {**GPT2, "bias": "all", "activation": "gelu_tanh"},
    "gpt2_tied": {**GPT2, "tie_embedding": True, "use_fc2": False},
}


def hand_texts():
    """Lines of the repository's own texts."""
    lines = [json.loads(line) for line in (ROOT / "data" / "hand_text.jsonl").open(encoding="utf-8")]
    return [line["text"] for line in lines]


def toy_vocab(size=900, kind="jieba"):
    return Vocab.create_vocab(hand_texts(), size, kind, texts=True, progress=False)


def saved(path, payload):
    write_torch(path, payload)
    return str(path)


def rows_of(name, count, texts=True):
    """The first `count` rows of a shared file: their first texts, or their conversations."""
    rows = islice(read_rows(SHARED / name), count)
    return [row.texts[0] if texts else row.messages for row in rows]


def plain_step(model):
    """ids -> (logits of the next id (V,), smallest distance between the k-th and the next router score of the last
    token)."""
    margins = []

    def watch(router, _, out):
        scores = out[2] if router.config.router == "softmax" else out[3].sigmoid() + router.bias
        best = scores[-1].topk(min(router.config.keep + 1, len(scores[-1]))).values
        margins.append(float(best[-2] - best[-1]) if len(best) > router.config.keep else float("inf"))

    for block in model.blocks:
        if hasattr(block.mlp, "router"):
            block.mlp.router.register_forward_hook(watch)

    @torch.no_grad()
    def step(ids):
        margins.clear()
        logits = model(torch.tensor([ids])).logits_1[0, -1]
        return logits.numpy(), min(margins, default=float("inf"))
    return step


def compare_greedy(step, theirs, ids, tie=1e-4):
    """Follow `theirs`, the ids that another program wrote after the prompt `ids`, with our plain greedy path.

    "equal"; "tie" when they part after the path was undecided (best two logits, or k-th and next router score, within
    `tie`); else the position where they part.
    """
    ids, undecided = list(ids), False
    for position, new in enumerate(theirs):
        logits, margin = step(ids)
        first, second = np.sort(logits)[::-1][:2]
        undecided |= bool(first - second < tie or margin < tie)
        if int(np.argmax(logits)) != new:
            return "tie" if undecided else position
        ids.append(new)
    return "equal"
