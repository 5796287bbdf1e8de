"""Tables of numbers that are dear to compute and depend on nothing but their key: kept beside the token cache.

Behind the array stand the 32 bytes of its file's SHA-256; np.load does not mind them.
"""

import hashlib
import io
import json
from pathlib import Path

import numpy as np

from tools.saving.atomic import write_bytes


def stored(kind, key, folder, shape, make):
    """The array that make() gives, from <folder>/<kind>_<digest of key>.npy where an earlier run left it. key: anything
    JSON can hold."""
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:24]
    path = Path(folder, f"{kind}_{digest}.npy")
    table = _read(path)
    if table is None or table.shape != tuple(shape):
        table = make()
        content = io.BytesIO()
        np.save(content, table)
        write_bytes(path, content.getvalue() + hashlib.sha256(content.getvalue()).digest())
    return table


def _read(path):
    """None where there is nothing, or nothing whole: it is then made again."""
    try:
        raw = path.read_bytes()
        return np.load(io.BytesIO(raw[:-32])) if hashlib.sha256(raw[:-32]).digest() == raw[-32:] else None
    except (OSError, ValueError, EOFError):
        return None
