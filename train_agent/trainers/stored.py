"""Tables of numbers that are dear to compute and depend on nothing but their key: kept beside the token cache."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np


def stored(kind, key, folder, shape, make):
    """The array that make() gives, from <folder>/<kind>_<digest of key>.npy where an earlier run left it. key: anything JSON can hold."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    path = Path(folder, f"{kind}_{digest}.npy")
    table = _read(path)
    if table is None or table.shape != tuple(shape):
        table = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
        with open(temporary, "wb") as f:
            np.save(f, table)
        os.replace(temporary, path)
    return table


def _read(path):
    """None where there is nothing, or nothing whole: it is then made again."""
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError):
        return None
