"""Which device `auto` takes, and the self-check of one that may compute wrongly."""
import pytest
import torch

from chat_agent import load
from tools.process import device
from tools.process.device import choose_device, computes_rightly, trial
from train_agent.trainers.hardware import machine


@pytest.fixture
def mac(monkeypatch):
    """mac(fault): a machine without CUDA whose MPS computes as `fault(precision, results)` says."""
    def make(fault=lambda dtype, found: found):
        def fake(name, dtype):
            return fault(dtype, trial("cpu", dtype)) if name == "mps" else trial(name, dtype)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
        monkeypatch.setattr(device, "trial", fake)
        device._sound_mps.cache_clear()
    yield make
    device._sound_mps.cache_clear()


def wrong(dtype, found):
    return [found[0], found[1].roll(1, 0), found[2]]


def nan(dtype, found):
    return [part * float("nan") for part in found]


def missing(dtype, found):
    raise NotImplementedError("aten::embedding_dense_backward is not implemented for the MPS device")


def test_auto_takes_an_mps_that_computes_rightly(mac):
    mac()
    assert choose_device("auto").type == "mps" and machine.choose_precision("auto", torch.device("mps")) == "no"


def test_auto_takes_an_mps_of_which_bf16_alone_is_right(mac):
    mac(lambda dtype, found: wrong(dtype, found) if dtype == torch.float32 else found)
    assert choose_device("auto").type == "mps" and machine.choose_precision("auto", torch.device("mps")) == "bf16"


@pytest.mark.parametrize("fault", [wrong, nan, missing])
def test_auto_leaves_a_faulty_mps_and_says_so_once(mac, fault, capsys):
    mac(fault)
    assert [choose_device("auto").type for _ in range(2)] == ["cpu", "cpu"]
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "MPS" in said and "CPU" in said
    assert choose_device("mps").type == "mps"               # who names it gets it


def test_without_mps_auto_is_silent(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    device._sound_mps.cache_clear()
    assert choose_device("auto").type == "cpu" and capsys.readouterr().err == ""
    device._sound_mps.cache_clear()


def test_the_check_itself():
    assert computes_rightly("cpu", "no") and computes_rightly("cpu", "bf16") and not computes_rightly("meta", "no")
    assert all(torch.isfinite(part).all() and part.norm() > 0 for part in trial("cpu", torch.float32))


def test_one_choice_for_training_and_chatting():
    assert load.choose_device is machine.choose_device is choose_device
