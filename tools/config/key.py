"""What the table of keys is written with: `key(...)` is one line of it, `block(...)` gives several the same scope,
group and rule of change."""
from collections import namedtuple

Key = namedtuple("Key", "name kind default help scope group change null choices low high above stages")
OWN = "本阶段专有"


def key(name, kind, default, text, *, null=False, choices=None, low=None, high=None, above=None, stages=None,
        change=None):
    """stages: those that have the key, None = all. The meanings of the rest are told in keys.py."""
    return Key(name, kind, default, text, None, None, change, null or default is None, choices, low, high, above,
               stages)


def block(scope, group, change, *keys):
    return [one._replace(scope=scope, group=group, change=one.change or change) for one in keys]


def own(change, *keys):
    """Keys of one kind of stage alone."""
    return block("stage", OWN, change, *keys)


def ask(one):
    return one._replace(change="ask")


def free(one):
    return one._replace(change="free")


def never(one):
    return one._replace(change="never")
