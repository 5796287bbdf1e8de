"""Fixtures for all tests. Toy-size work gains nothing from many threads, and with one it gives the same bits
everywhere."""
import tempfile
from pathlib import Path

import pytest
import torch

from tools.process import signals

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def not_asked_to_stop(monkeypatch):
    """What one test asked this process for is not the next one's business."""
    monkeypatch.setattr(signals, "heard", False)


@pytest.fixture
def ram_path(tmp_path):
    """A folder in memory where there is one: thousands of flushes to a real disk would only cost time."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path
        return
    try:
        folder = tempfile.TemporaryDirectory(dir="/dev/shm")
    except OSError:
        yield tmp_path
        return
    with folder:
        yield Path(folder.name)


@pytest.fixture(scope="session")
def vocab():
    import toy                                          # here, so that the tests of tools/ run whatever the trainers do
    return toy.toy_vocab()


@pytest.fixture
def options(ram_path, vocab):
    """options(stage="pre", rows=30, **keys) -> the resolved options of a toy run in a folder of its own."""
    import toy

    def make(stage="pre", rows=30, **keys):
        return toy.toy_options(ram_path, vocab, stage, rows, **keys)
    return make
