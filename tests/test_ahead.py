"""What keeps a device busy: batches are made ahead by a thread, and numbers are asked for once a step."""
import threading
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import toy
from tools.errors import UserError
from train_agent.trainers import parallel
from train_agent.trainers.data import ahead
from train_agent.trainers.dataset import Batch
from train_agent.trainers.trying.dry_loop import Rehearsal


def threads():
    return [one for one in threading.enumerate() if one.name == "ahead"]


def test_what_is_made_ahead_comes_in_its_order_and_no_more_of_it_than_agreed():
    asked = []
    steps = ahead.ahead(asked.append(n) or n for n in range(20))
    for n in range(5):
        assert next(steps) == n and len(asked) <= n + 1 + ahead.STEPS
    steps.close()
    assert not threads() and len(asked) <= 5 + ahead.STEPS
    assert list(ahead.ahead(iter(range(7)))) == list(range(7)) and list(ahead.ahead(iter(()))) == []
    assert not threads()


def test_what_fails_in_the_thread_fails_where_the_steps_are_taken():
    def broken():
        yield 1
        raise UserError("坏了", 8)
    steps = ahead.ahead(broken())
    assert next(steps) == 1
    with pytest.raises(UserError, match="坏了") as told:
        next(steps)
    assert told.value.code == 8 and not threads()


@pytest.mark.parametrize("stage, keys", [("pre", {"accumulation_steps": 3, "n_of_samples": 8, "max_epochs": 2}),
                                         ("sft", {"dropout": 0.1})])
@pytest.mark.parametrize("interruption", [{}, {"kill_after": 5}, {"stop_after": 3}], ids=str)
def test_a_run_with_batches_made_ahead_is_the_run_without(options, monkeypatch, stage, keys, interruption):
    """To the last bit; what is saved is the place of the batch learned from, not of the last one made."""
    results = []
    for way in (False, True):
        monkeypatch.setattr(ahead, "pays", lambda device: way)
        made = options(stage, name=f"run_{way}", save_steps=2, **keys)
        if interruption:
            toy.train(made, stage, **interruption)
            assert not threads()
        loop = toy.train(made, stage)
        payload, state = toy.read_pair(Path(made["out_dir"], made["name"], f"TinySeek_{loop.stage.label}_final.pkl"))
        results.append([payload["weights"], state["optimizers"], state["position"], state["random"], loop.history])
    assert toy.same_tensors(*results) and results[0][-1]


def test_on_a_gpu_batches_are_pinned_and_copied_by_the_thread(monkeypatch):
    done = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: done.append(device))
    monkeypatch.setattr(Batch, "pin_memory", lambda self: done.append("pinned") or self)
    monkeypatch.setattr(Batch, "to", lambda self, device: done.append(device) or self)
    batch, card = Batch(*[None] * 6, 0, 0, 0), torch.device("cuda", 1)
    assert ahead.pays(card) and not ahead.pays(torch.device("cpu"))
    assert list(ahead.on_device([([batch], "after", 3)], card)) == [([batch], "after", 3)]
    assert done == [card, "pinned", card]


class Waits(TorchDispatchMode):
    """Counts the times that a number is asked of a tensor: on a GPU each would be waited for."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [{}, {"router": "sigmoid"}, {"optimizer": "muon"}, {"use_moe": False}], ids=str)
def test_a_step_asks_its_device_for_numbers_once(options, monkeypatch, changes):
    calls, usual = [], parallel.fetched
    monkeypatch.setattr(parallel, "fetched", lambda sums: calls.append(1) or usual(sums))
    with Rehearsal(toy.build_stage(options(**changes))) as loop:
        group = next(loop.groups())
        loop.optimize(group, 1)
        with Waits() as waits:
            loop.optimize(group, 1)
    assert waits.count == 0 and len(calls) == 2 and all(isinstance(v, float) for v in loop.metrics.values())


def test_numbers_come_over_together_and_as_they_are():
    sums = {"a": torch.tensor(0.1), "load": torch.ones(1, 1), "told": 3, "b": torch.tensor(0.1, dtype=torch.float64),
            "n": torch.tensor(7)}
    with Waits() as waits:
        found = parallel.fetched(sums)
    assert waits.count == 0 and found == {**sums, "a": float(torch.tensor(0.1)), "b": 0.1, "n": 7.0}
    assert parallel.fetched({"told": 3}) == {"told": 3} and parallel.fetched({}) == {}
    with Waits() as waits:
        float(torch.tensor(0.1))
    assert waits.count == 1
