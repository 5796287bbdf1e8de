"""Material that lets a comparison fail: random models in which every part matters, and strings of every kind of
character."""

import random

import torch

from model import ModelConfig, TinySeek

SMALL = dict(n_layer=3, n_head=4, d_model=64, d_c=32, d_q=40, d_r=8, hidden=48, other_experts=6, shared_experts=2,
             keep=2,
             n_dense_layer=1, dense_hidden=80, routed_scaling=1.5)
RANGES = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x2000, 0x206F), (0x2580, 0x25FF), (0x3000, 0x30FF),
          (0x4E00, 0x9FFF),
          (0xFE00, 0xFFFF), (0x1F300, 0x1FAFF), (0x20000, 0x2A6DF), (0, 0x10FFFF)]


def lively(model, seed=0):
    """Weights that make every part matter: branches of the residual stream's own size, uneven norms, a router that
    decides."""
    numbers = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.state_dict().items():
            noise = torch.randn(p.shape, generator=numbers)
            if p.dim() == 1:
                p.copy_(noise * 0.2 + (1 if name.endswith("norm.weight") else 0))
            else:
                p.copy_(
                    noise * (0.5 if "embed" in name or "fc" in name or "place" in name else 1.2 / p.shape[-1] ** 0.5))
    return model.eval()


def lively_payload(vocab, seed=0, size=None, stage="SFT", **changes):
    """A full checkpoint (see tools/checkpoint.py) with random weights, and its model. changes: keys of ModelConfig
    besides SMALL's."""
    config = ModelConfig(vocab_size=size or len(vocab), **{**SMALL, **changes})
    model = lively(TinySeek(config), seed)
    return {"format": 1, "kind": "model", "stage": stage, "config": config.to_dict(), "vocab_hash": vocab.hash,
            "vocab": vocab.state(),
            "weights": dict(model.state_dict()), "adapter": None, "base": None, "step": 1234,
            "metrics": {"loss": 2.5, "bpc": 1.2345678, "best": "step 1000"},
            "run": {"max_len": 128, "seed": 3, "json_data_path": "a.jsonl"}}, model


def random_texts(count, seed=0):
    """Strings of up to 40 characters of every kind that Unicode has, except lone surrogates."""
    numbers = random.Random(seed)
    found = []
    for _ in range(count):
        text = []
        while len(text) < numbers.randint(1, 40):
            code = numbers.randint(*numbers.choice(RANGES))
            if not 0xD800 <= code <= 0xDFFF:
                text.append(chr(code))
        found.append("".join(text))
    return found


def marked(text):
    """Whether a text holds something that looks like a special token of the exports."""
    return "<|" in text and "|>" in text
