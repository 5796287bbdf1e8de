import tempfile
from pathlib import Path

import pytest


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
