"""A world small enough to train in a second: texts, dialogues, a vocabulary, options, models, and a loop that can be
interrupted."""
import json
import random
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from model import ModelConfig, TinySeek
from model.decoding.cache import DecodeCache
from model.kernels.ngram_head import last_ids
from model.segments import Segments
from tools.checkpoint import read_pair, read_checkpoint
from tools.config_manager import ConfigManager
from tools.vocab import Vocab
from train_agent.trainers.loop import Loop
from train_agent.trainers.build_stage import builder

THINGS = ["苹果", "书", "小船", "月亮", "茶", "雨伞", "铅笔", "面包"]
DOINGS = ["很好看", "放在桌上", "是圆的", "在河边", "要三元", "被风吹走了", "不见了", "刚刚洗过"]
SHAPE = dict(n_layer=2, n_head=2, d_model=16, d_c=8, d_q=12, d_r=4, hidden=12, other_experts=4, shared_experts=1,
             keep=2)
# One entry per option of the model: what must hold for the default must hold for each of these.
VARIANTS = {
    "default": {},
    "alibi": {"position": "alibi"},
    "learned": {"position": "learned", "max_position": 64},
    "gqa": {"attention": "gqa", "n_kv_head": 1},
    "gqa_alibi": {"attention": "gqa", "position": "alibi"},
    "gqa_learned": {"attention": "gqa", "position": "learned", "max_position": 64},
    "window": {"sliding_window": 3},
    "gqa_window_alibi": {"attention": "gqa", "n_kv_head": 1, "position": "alibi", "sliding_window": 4},
    "sigmoid": {"router": "sigmoid"},
    "aux": {"moe_loss": "aux"},
    "z_loss": {"router_z_loss": 0.01},
    "dense": {"use_moe": False},
    "half_dense": {"n_dense_layer": 1},
    "one_head": {"use_fc2": False},
    "known_token": {"fc2_token": True, "fc2_gradient": 0.25},
    "tied": {"tie_embedding": True},
    "geglu": {"activation": "geglu"},
    "gelu_layer": {"activation": "gelu", "norm": "layer"},
    "relu": {"activation": "relu"},
    "relu2": {"activation": "relu2"},
    "qk_norm": {"attention": "gqa", "qk_norm": True},
    "counted": {"counted": 3, "use_fc2": False},
    "stretched": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 8, "head_dim": 12},
    "qwen2": {"attention": "gqa", "n_kv_head": 1, "bias": "qkv", "use_moe": False, "use_fc2": False},
    "qwen3": {"attention": "gqa", "n_kv_head": 1, "head_dim": 12, "qk_norm": True, "use_moe": False, "use_fc2": False,
              "rope_scaling": "yarn", "rope_factor": 2.0, "rope_original": 8, "tie_embedding": True},
    "scaled": {"routed_scaling": 2.5, "keep": 1},
    "gpt2": {"attention": "gqa", "position": "learned", "max_position": 64, "norm": "layer", "activation": "gelu",
             "use_moe": False,
             "use_fc2": False, "tie_embedding": True},
    "gpt2_biased": {"attention": "gqa", "position": "learned", "max_position": 64, "norm": "layer", "use_moe": False,
                    "activation": "gelu_tanh", "use_fc2": False, "bias": "all"},
}

# One entry per value of an option that differs from the default; tests/test_option_pairs.py holds the laws for every
# two of them.
OPTIONS = {
    "alibi": {"position": "alibi"},
    "learned": {"position": "learned", "max_position": 64},
    "gqa": {"attention": "gqa"},
    "gqa_grouped": {"attention": "gqa", "n_kv_head": 1},
    "window": {"sliding_window": 3},
    "geglu": {"activation": "geglu"},
    "gelu": {"activation": "gelu"},
    "relu": {"activation": "relu"},
    "relu2": {"activation": "relu2"},
    "qk_norm": {"attention": "gqa", "qk_norm": True},
    "counted": {"counted": 3, "use_fc2": False},
    "wide_heads": {"head_dim": 12},
    "qkv_bias": {"attention": "gqa", "bias": "qkv"},
    "all_bias": {"attention": "gqa", "bias": "all", "use_moe": False, "activation": "gelu_tanh"},
    "linear": {"rope_scaling": "linear", "rope_factor": 2.0, "rope_attention": 1.2},
    "llama3": {"rope_scaling": "llama3", "rope_factor": 8.0, "rope_original": 8},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original": 8},
    "layer_norm": {"norm": "layer"},
    "one_head": {"use_fc2": False},
    "half_dense": {"n_dense_layer": 1, "dense_hidden": 10},
    "scaled": {"routed_scaling": 2.5},
    "one_expert": {"keep": 1},
    "sigmoid": {"router": "sigmoid"},
    "router_noise": {"router_noise": 0.5},
    "aux": {"moe_loss": "aux"},
    "z_loss": {"router_z_loss": 0.01},
    "dropout": {"dropout": 0.3},
    "detached": {"fc2_gradient": 0.0},
}
# Fields that are numbers of a shape or of its start, not ways to compute.
SIZES = ("vocab_size", "n_layer", "pad_idx", "n_head", "d_model", "d_c", "d_q", "d_r", "hidden", "other_experts",
         "shared_experts", "ro_theta",
         "alpha", "router_bias_rate", "init_std", "norm_eps", "fc2_every")


def all_options():
    """OPTIONS, and every bool of ModelConfig as what it is not by default."""
    switches = {f.name: {f.name: not f.default} for f in fields(ModelConfig) if isinstance(f.default, bool)}
    own = {key for changes in OPTIONS.values() for key in changes}
    return OPTIONS | {name: changes for name, changes in switches.items() if name not in own}


def excluded(one, other):
    """Two values of one option are no pair."""
    return any(other.get(key, value) != value for key, value in one.items())


def forced(cache, absorb):
    """The cache, with one of both forms of attention to what it holds whatever the number of new tokens; None = by
    it."""
    cache.absorb_up_to = cache.absorb_up_to if absorb is None else 10 ** 9 if absorb else 0
    return cache


def decode_in_pieces(model, ids, sizes, absorb=None):
    """ids (B, T) read from a cache piece by piece -> logits (B, T, V) of head 1. absorb: see forced."""
    cache, parts, at = forced(DecodeCache.of(model, len(ids), 4), absorb), [], 0
    for size in sizes:
        parts.append(model.decode(ids[:, at:at + size], cache))
        at += size
    assert cache.lengths == [at] * len(ids)
    hidden = torch.cat(parts, 1).clone()
    if not model.config.counted:
        return model.fc1(hidden)
    before = last_ids(ids.flatten(), torch.arange(at).repeat(len(ids)), model.config.counted - 1)
    logits = model.fc1(hidden.flatten(0, 1), before).unflatten(0, ids.shape)
    with torch.inference_mode():
        assert torch.allclose(cache.logits(parts[-1][:, -1]), logits[:, -1], rtol=0, atol=1e-4)
    return logits


def sentence(rng):
    return f"{rng.choice(THINGS)}{rng.choice(DOINGS)}，{rng.choice(THINGS)}{rng.choice(DOINGS)}。"


def text_rows(count, seed=0):
    rng = random.Random(seed)
    return [{"text": "".join(sentence(rng) for _ in range(rng.choice((1, 1, 2, 5))))} for _ in range(count)]


def dialogue_rows(count, seed=0):
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        turns = [{"role": "user", "content": f"{rng.choice(THINGS)}呢？"},
                 {"role": "assistant", "content": sentence(rng)}]
        made.append({"conversations": turns * rng.choice((1, 2))})
    return made


def write_rows(path, rows):
    Path(path).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return Path(path)


@lru_cache(1)
def toy_vocab():
    return Vocab.create_vocab([row["text"] for row in text_rows(50)] + ["呢？："], vocab_size=500, texts=True,
                              progress=False)


def toy_config(**changes):
    return ModelConfig(vocab_size=300, **{**SHAPE, **changes})


def toy_model(seed=0, dtype=torch.float64, **changes):
    """A model whose weights are large enough for every path to matter."""
    torch.manual_seed(seed)
    model = TinySeek(toy_config(init_std=0.2, **changes)).to(dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name or name.endswith("bias"):
            parameter.data += torch.randn_like(parameter) * 0.1
    if model.config.counted:
        ids = torch.randint(16, model.config.vocab_size, (400,)).repeat(3)
        model.fc1.count(ids, torch.arange(len(ids)))
    return model


def pack(documents, width):
    """Documents (lists of ids) -> ids, positions, layout, valid, place of each document's first token in the flat
    batch."""
    rows, room = [[]], width
    for document in documents:
        if len(document) > room:
            rows.append([])
            room = width
        rows[-1].append(document)
        room -= len(document)
    ids, positions = (torch.zeros(len(rows), width, dtype=torch.long) for _ in range(2))
    valid, lengths, starts = torch.zeros(len(rows), width, dtype=torch.bool), [], []
    for i, row in enumerate(rows):
        at = 0
        for document in row:
            ids[i, at:at + len(document)] = torch.tensor(document)
            positions[i, at:at + len(document)] = torch.arange(len(document))
            valid[i, at:at + len(document)] = True
            starts.append(i * width + at)
            lengths.append(len(document))
            at += len(document)
        if at < width:
            lengths.append(width - at)
    return dict(input_ids=ids, positions=positions, layout=Segments.from_lengths(lengths), valid=valid), starts


def toy_documents(count=7, longest=11, seed=0, vocab_size=300):
    rng = np.random.default_rng(seed)
    return [rng.integers(16, vocab_size, rng.integers(1, longest + 1)).tolist() for _ in range(count)]


# What toy runs take for granted, whatever the project's own file says.
PLAIN = {"base": None, "optimizer": "adam", "scheduler": "exponential", "warmup_steps": 0, "min_lr_ratio": 0.1,
         "weight_decay": 0.1,
         "max_epochs": 1, "max_steps": None, "pair_start": 0,
         "forget_penalty": 0.0, "memory_lr": 2e-4,
         "lora_lr": 1e-4, "lora_targets": "attention"}


def toy_options(folder, vocab, stage="pre", rows=30, **keys):
    """Resolved options; every file of the run lies in `folder`. rows: how many, or the rows themselves."""
    folder = Path(folder)
    if not (folder / "vocab.json").exists():
        vocab.save(folder / "vocab.json")
    if isinstance(rows, int):
        rows = text_rows(rows) if stage == "pre" else dialogue_rows(rows)
    data = write_rows(folder / f"{stage}.jsonl", rows)
    values = {**SHAPE, "token_kind": "char", "device": "cpu", "mixed_precision": "no",
              "out_dir": str(folder / "out"), "log_dir": str(folder / "logs"),
              "log_file": str(folder / "log.txt"), "vocab_trg_path": str(folder / "vocab.json"),
              "json_data_path": str(data),
              "max_len": 40, "batch_size": 2, "eval_share": 0.0, "save_steps": None, "eval_steps": None,
                  "logging_steps": 1,
              "init_lr": 5e-3, "min_lr": 1e-5, **keys}
    if stage == "sft":
        values.setdefault("pretraining_model_path", "none")
    (folder / "config.json").write_text(json.dumps(PLAIN), encoding="utf-8")
    return ConfigManager(folder / "config.json", overrides=values, stage=stage).stage(stage)


def build_stage(options, stage="pre"):
    return builder(stage)(options)


class Killed(Exception):
    """Stands for a kill: nothing is saved."""


class ToyLoop(Loop):
    """Keeps what each step did in `history`; `stop_after` asks for a stop as SIGTERM does, `kill_after` ends the run
    unsaved."""

    def __init__(self, stage, stop_after=None, kill_after=None):
        super().__init__(stage)
        self.stop_after, self.kill_after, self.history = stop_after, kill_after, []

    def optimize(self, group, chunk):
        super().optimize(group, chunk)
        self.history.append({"step": self.step, "chunk": chunk, "places": [b.position for b in group], **self.metrics})
        if self.step == self.stop_after:
            self.signals.asked = True
        if self.step == self.kill_after:
            raise Killed


def train(options, stage="pre", **interruption):
    """Run a stage to its end, to a stop or to a kill; returns the loop."""
    loop = ToyLoop(build_stage(options, stage), **interruption)
    loop.stage_name = stage
    try:
        loop.run()
        loop.exit = 0
    except SystemExit as error:
        loop.exit = error.code
    except Killed:
        loop.exit = -9
    return loop


def checkpoint(options, stem):
    return read_checkpoint(Path(options["out_dir"]) / f"{stem}.pkl")


def names(options, ending=".pkl"):
    return sorted(p.name.removesuffix(ending) for p in Path(options["out_dir"]).glob(f"TinySeek_*{ending}"))


def log_lines(options):
    """Rows of the newest logs/*.jsonl, without what a clock says."""
    path = max(Path(options["log_dir"]).glob("*_2*.jsonl"), key=lambda p: (p.stat().st_mtime, p.name))
    clock = ("time", "tok_s", "batch_t", "remaining", "start", "resume", "run")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k not in clock} for row in rows
            if row.get("event") not in ("start", "resume")]


def events(options, kind):
    return [row for row in log_lines(options) if row.get("event") == kind]


def same_tensors(a, b):
    """Whether two nested structures of dicts, lists, tensors and plain values are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_tensors(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_tensors, a, b))
    return a == b or (a != a and b != b)


def final(options, label="Pre"):
    """(payload, state) of the final checkpoint."""
    return read_pair(Path(options["out_dir"]) / f"TinySeek_{label}_final.pkl")


def run_loop(stage, **interruption):
    loop = ToyLoop(stage, **interruption)
    loop.run()
    return loop


def model_for(vocab, seed=0, dtype=torch.float64, **changes):
    torch.manual_seed(seed)
    return TinySeek(ModelConfig(vocab_size=len(vocab), **{**SHAPE, "init_std": 0.2, **changes})).to(dtype)


def plain_nats(model, ids, supervised):
    """One document, no packing, no windows, whole logits."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor(np.asarray(ids, dtype=np.int64)[None])).logits_1[0].log_softmax(-1)
    return -sum(float(logits[t - 1, int(ids[t])]) for t in range(1, len(ids)) if supervised[t])
