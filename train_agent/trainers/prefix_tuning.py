"""Prefixes: keys and values in front of every layer, or the embeddings of the three role tokens, are all that
learns."""

from tools.errors import UserError
from train_agent.trainers.build_stage import adapter_stage
from train_agent.trainers.run_stage import start

ROLES = ("User", "Assistant", "System")


def describe(options, vocab):
    """The keywords of model.prefix.apply_prefix for these options, as they are kept in the file."""
    if options["prefix_kind"] == "role":
        if vocab.dialogue:
            raise UserError("prefix_kind=role 学的是 TinySeek 自己的角色词元，别家的底座没有。请用 --prefix_kind kv。")
        return {"type": "prefix", "kind": "role", "ids": [vocab.id(name) for name in ROLES]}
    return {"type": "prefix", "kind": "kv", "length": options["prefix_len"]}


def build_stage(options):
    return adapter_stage("prefix", options, describe)


def prefix_train(config, **parameters):
    """Train on the options of the stage `prefix`, `parameters` on top. Returns the last metrics; see Loop for exit
    codes."""
    return start(build_stage, {**config, **parameters})
