"""Text and files: configuration, formats, vocabulary, template, checkpoints, logs, pictures.

`from tools import ConfigManager, Vocab, draw_plt` works; each is imported when it is asked for, so that nobody pays for
matplotlib who does not draw.
"""
from importlib import import_module

_HOME = {"ConfigManager": "config_manager", "Vocab": "vocab", "draw_plt": "plot", "mask_from_id_to_id": "mask"}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
