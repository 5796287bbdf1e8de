"""Small checkpoints for the tests of saving and loading."""
import hashlib

import torch

from tools.saving.archive import MARK


def toy_payload(step=0, stage="Pre", numbers=64, **changes):
    """A valid payload whose weights are full of `step`, so that a test sees which save it came from."""
    weights = {"embed": torch.full((numbers,), float(step)), "half": torch.ones(3, dtype=torch.bfloat16),
               "count": torch.tensor(step)}
    payload = {"format": 1, "kind": "model", "stage": stage, "config": {"n_layer": 2}, "vocab_hash": "ab",
               "vocab": {"words": ["小"]},
               "weights": weights, "adapter": None, "base": None, "step": step, "metrics": {"loss": 1.5},
               "run": {"seed": 3}}
    return {**payload, **changes}


def toy_state(step=0, numbers=64):
    return {"step": step, "random": (3, tuple(range(20)), None),
            "optimizer": {"state": {0: {"exp_avg": torch.full((numbers,), float(step))}}}}


def same(payload, state, step):
    """Whether a loaded pair is whole and is the save number `step`."""
    expected = toy_payload(step)["weights"]["embed"][0]
    return bool(payload["step"] == step and (payload["weights"]["embed"] == expected).all()
                and (
                    state is None or (state["step"] == step
                                      and (state["optimizer"]["state"][0]["exp_avg"] == expected).all())))


def seal(path):
    """Give a foreign file the digest of ours, as an attacker would. Meant for zip files; others just get the bytes."""
    raw = path.read_bytes()[:-2] + (len(MARK) + 64).to_bytes(2, "little")
    path.write_bytes(raw + MARK + hashlib.sha256(raw).hexdigest().encode())
