"""Small models with lively logits for the tests of the exports, and texts to try them on."""
import json
import random
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from model import ModelConfig, TinySeek
from tools.formats import read_rows
from tools.safe_file import write_torch
from tools.vocab import Vocab

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
BASE = dict(n_layer=3, n_head=4, d_model=64, d_c=32, d_q=40, d_r=8, hidden=48, other_experts=6, shared_experts=2, keep=2,
            n_dense_layer=1, dense_hidden=80, routed_scaling=1.5)
GQA = dict(attention="gqa", n_kv_head=2, use_moe=False)
GPT2 = dict(attention="gqa", position="learned", max_position=160, norm="layer", activation="gelu", use_moe=False)
SHAPES = {
    "moe": {}, "moe_tied": {"tie_embedding": True}, "dense": {"use_moe": False}, "dense_tied": {"use_moe": False, "tie_embedding": True},
    "all_moe": {"n_dense_layer": 0, "d_q": None, "use_fc2": False}, "sigmoid": {"router": "sigmoid"},
    "llama": GQA, "llama_tied": {**GQA, "tie_embedding": True, "norm_eps": 1e-5, "ro_theta": 5000.0},
    "gpt2": GPT2, "gpt2_tied": {**GPT2, "tie_embedding": True, "use_fc2": False},
}


def hand_texts():
    """Lines of the repository's own texts."""
    lines = [json.loads(line) for line in (ROOT / "data" / "hand_text.jsonl").open(encoding="utf-8")]
    return [line["text"] for line in lines]


def toy_vocab(size=900, kind="jieba"):
    return Vocab.create_vocab(hand_texts(), size, kind, texts=True, progress=False)


def lively(model, seed=0):
    """Weights that make every part matter: branches of the residual stream's own size, uneven norms, a router that decides."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.state_dict().items():
            noise = torch.randn(p.shape, generator=numbers)
            if p.dim() == 1:
                p.copy_(noise * 0.2 + (1 if name.endswith("norm.weight") else 0))
            else:
                p.copy_(noise * (0.5 if "embed" in name or "fc" in name or "place" in name else 1.2 / p.shape[-1] ** 0.5))
    return model.eval()


def toy_payload(vocab, seed=0, size=None, stage="SFT", **changes):
    """A full checkpoint, and its model."""
    config = ModelConfig(vocab_size=size or len(vocab), **{**BASE, **changes})
    model = lively(TinySeek(config), seed)
    payload = {"format": 1, "kind": "model", "stage": stage, "config": config.to_dict(), "vocab_hash": vocab.hash, "vocab": vocab.state(),
               "weights": dict(model.state_dict()), "adapter": None, "base": None, "step": 1234,
               "metrics": {"loss": 2.5, "bpc": 1.2345678, "best": "step 1000"},
               "run": {"max_len": 128, "seed": 3, "json_data_path": "a.jsonl"}}
    return payload, model


def saved(path, payload):
    write_torch(path, payload)
    return str(path)


def rows_of(name, count, texts=True):
    """The first `count` rows of a shared file: their first texts, or their conversations."""
    rows = islice(read_rows(SHARED / name), count)
    return [row.texts[0] if texts else row.messages for row in rows]


def random_texts(count, seed=0):
    """Strings of every kind of character that Unicode has, except lone surrogates."""
    numbers = random.Random(seed)
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x2000, 0x206F), (0x2580, 0x25FF), (0x3000, 0x30FF), (0x4E00, 0x9FFF),
              (0xFE00, 0xFFFF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0, 0x10FFFF)]
    found = []
    for _ in range(count):
        text = []
        while len(text) < numbers.randint(1, 40):
            code = numbers.randint(*numbers.choice(ranges))
            if not 0xD800 <= code <= 0xDFFF:
                text.append(chr(code))
        found.append("".join(text))
    return found


def marked(text):
    """Whether a text holds something that looks like a special token of the exports."""
    return "<|" in text and "|>" in text


def plain_step(model):
    """ids -> (logits of the next id (V,), smallest distance between the k-th and the next router score of the last token)."""
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

    "equal"; "tie" when they part after the path was undecided (best two logits, or k-th and next router score, within `tie`);
    else the position where they part.
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
