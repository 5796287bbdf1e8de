"""`--plan gpus=64,nodes=8,tokens=20e9,bandwidth_gbit=400`: memory, traffic, speed and days of a training that is not started.

Everything is counted or measured on the configuration's own shape: parameters on the meta device, activations and speed with a
two-layer model of the same width. N processes; a ring moves (N - 1) / N of a tensor once per gather or scatter.
"""

import time
from dataclasses import dataclass, replace

import torch

from model import ModelConfig, TinySeek
from model.config import MODEL_KEYS
from model.kernels.cross_entropy import CHUNK
from model.segments import Layout
from tools.errors import UserError
from train_agent.trainers import parallel
from train_agent.trainers.hardware import machine
from train_agent.trainers.running import resume
from train_agent.trainers.dataset import Batch
from train_agent.trainers.loop import Loop
from train_agent.trainers.losses import next_tokens_loss
from train_agent.trainers.hardware.ram import SavedBytes
from train_agent.trainers.preflight import ADAM_STATES, clock, gigabytes, short
from train_agent.trainers.stage import Stage

STRATEGIES = ("DDP", "SHARD_GRAD_OP", "FULL_SHARD")
PROBE = (96, 288)        # tokens of the two probes whose difference is the cost of a token
LINK_SHARE = 0.8         # of a link's nominal rate that large messages get: an assumption, see `note`
OVERLAP = 0.5            # share of the computing time behind which traffic hides: the backward pass, less its beginning
KEYS = {"gpus": (1, "进程（显卡）总数"), "nodes": (1, "机器台数"), "tokens": (None, "要训练的 token 总数"),
        "bandwidth_gbit": (100, "每台机器的网络带宽，Gbit/s"), "tflops": (None, "每块卡实际跑出的 TFLOP/s，不写 = 在本机实测"),
        "memory_gb": (None, "每块卡的内存，GB")}


def read_request(text):
    """"gpus=64,tokens=20e9" -> {every key of KEYS: number or None}. UserError 2 for what is no plan."""
    request = {name: default for name, (default, _) in KEYS.items()}
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, value = part.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = -1
        if name not in KEYS or not equals or not 0 < number < 1e30 or name in ("gpus", "nodes") and number != int(number):
            listed = "，".join(f"{k}（{text}）" for k, (_, text) in KEYS.items())
            raise UserError(f"--plan 看不懂 {part!r}。写法：gpus=64,nodes=8,tokens=20e9,bandwidth_gbit=400；可用：{listed}，都应为正数。")
        request[name] = int(number) if name in ("gpus", "nodes") else number
    if request["gpus"] % request["nodes"]:
        raise UserError(f"--plan：gpus={request['gpus']} 不能平均分到 nodes={request['nodes']} 台机器。")
    return request


# ---- what the shape costs ----

@dataclass
class Shape:
    """Counted: parameters in all, in the largest block, outside the blocks, touched per token. Measured: bytes and seconds."""

    total: int
    largest: int
    root: int
    active: int
    token_bytes: float       # activations kept per token
    fixed_bytes: float       # kept whatever the number of tokens: the gradients that the heads make in their forward pass
    flops_per_s: float       # of a training step of this kind here; None where it was not asked for


def model_config(options):
    return ModelConfig.from_dict({k: options[k] for k in MODEL_KEYS})


def count(config):
    """-> total, largest block, outside the blocks, active per token."""
    with torch.device("meta"):
        model = TinySeek(config)
    total = sum(p.numel() for p in model.parameters())
    blocks = [sum(p.numel() for p in block.parameters()) for block in model.blocks]
    routed = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("mlp.up", "mlp.down")) and p.ndim == 3)
    embeddings = 0 if config.tie_embedding else model.embed.weight.numel()            # looked up, not multiplied
    active = total - embeddings - round(routed * (1 - config.keep / config.other_experts))
    return total, max(blocks), total - sum(blocks), active


def probe_config(config, layers, dense=False):
    """The same width with few layers and only as many experts as it takes."""
    experts = min(config.other_experts, max(config.keep, 4))
    return replace(config, n_layer=layers, other_experts=experts, n_dense_layer=layers if dense else 0, dropout=0.0, router_noise=0.0)


class Probe(Loop):
    """Forward and backward passes of a model of this shape on random tokens; nothing is learned or written."""

    def __init__(self, config, options, precision):
        super().__init__(Stage("pre", "Pre", options, TinySeek(config), None, {}, {}, {}, loss=self.counted))
        self.model.to(self.device)
        self.choose(precision)

    def counted(self, *args):
        self.saved = SavedBytes(self.model)
        with self.saved:
            return next_tokens_loss(*args)

    def cost(self, tokens, repeat=1):
        """-> (bytes that `tokens` tokens in one row keep for the backward pass, seconds of the fastest of `repeat` passes)"""
        ids = torch.randint(16, self.model.config.vocab_size, (1, tokens))
        place, labels = torch.arange(tokens)[None], [ids.roll(-k, 1) for k in (1, 2)]
        batch = Batch(ids, place, torch.ones_like(ids, dtype=torch.bool), *labels, Layout.dense(1, tokens), tokens, tokens, tokens)
        totals, best = {"targets_1": tokens, "targets_2": tokens, "tokens": tokens}, float("inf")
        for _ in range(repeat):
            self.model.zero_grad(set_to_none=True)
            start = time.perf_counter()
            self.gradients([batch], totals)
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            best = min(best, time.perf_counter() - start)
        return self.saved.total, best


def measure(options, speed=True):
    """The Shape of a configuration. speed: also time it, on the device of the configuration."""
    config, before = model_config(options), resume.random_states()
    device = machine.choose_device(options["device"])
    precision = machine.choose_precision(options["mixed_precision"], device)
    few, many = (min(t, config.max_position or t) for t in PROBE)
    try:
        def line(layers, dense=False):
            """-> bytes per token, bytes besides, for so many layers."""
            chosen = probe_config(config, layers, dense)
            probe = Probe(chosen, options, precision)
            a, b = (probe.cost(t)[0] for t in (few, many))
            slope = (b - a) / max(1, many - few)
            return slope, a - slope * few
        (one, besides), (two, besides_two) = line(1), line(2)
        layer, besides = two - one, besides - (besides_two - besides)       # a layer's own constant is weight copies: not kept here
        dense = line(2, True)[0] - line(1, True)[0] if config.use_moe and config.n_dense_layer else layer
        deep = (config.n_layer - config.n_dense_layer) * layer + config.n_dense_layer * dense if config.use_moe else config.n_layer * layer
        rate = measured_rate(config, options, device, precision) if speed else None
    finally:
        resume.restore_random_states(before)
    return Shape(*count(config), one - layer + deep, max(0.0, besides), rate)


def measured_rate(config, options, device, precision):
    """FLOP/s of real training steps here: two layers of this width on one row (on CUDA: a whole micro-batch)."""
    chosen = probe_config(config, 2)
    tokens = options["max_len"] * (options["batch_size"] if device.type == "cuda" else 1)
    tokens = min(tokens, config.max_position or tokens)
    seconds = Probe(chosen, options, precision).cost(tokens, repeat=4)[1]
    return flops(count(chosen)[3], tokens, chosen) / seconds


def flops(active, tokens, config, length=None):
    """Floating-point operations of forward and backward: 6 per active weight and token, and causal attention over `length`."""
    return tokens * (6 * active + 6 * config.n_layer * config.d_model * (length or tokens))


# ---- what a run costs ----

def memory(shape, options, strategy, processes, precision, on_cpu=True):
    """Bytes of tensors per process at its peak -> {"weights", "gradients", "optimizer", "activations", "passing", "total"}.

    A sharded run begins with whole weights in every process's memory; on_cpu: that is the least that `total` can be.
    """
    low = precision in ("bf16", "fp16")
    states = ADAM_STATES[options["optimizer"]] or (1 if options["beta1"] else 0)      # sgd keeps its momentum
    share = 1 if strategy == "DDP" else 1 / processes
    tokens = options["batch_size"] * options["max_len"]
    parts = {"weights": 4 * shape.total * share, "gradients": 4 * shape.total * share, "optimizer": 4 * states * shape.total * share,
             "activations": shape.token_bytes * tokens + shape.fixed_bytes}
    # What comes and goes: a chunk of logits; low-precision copies of the weights; blocks that are whole for a moment, or of which
    # the backward pass holds the gradients twice and the experts' weights laid out anew.
    parts["passing"] = 3 * 4 * CHUNK * options["vocab_size"]
    if share == 1:
        parts["passing"] += 2 * 4 * shape.largest + (2 * shape.total if low else 0)
        return {**parts, "total": sum(parts.values())}
    parts["passing"] += passing_blocks(shape, strategy, 2 if low else 4, parts["gradients"], options["accumulation_steps"] > 1)
    return {**parts, "total": max(sum(parts.values()), 4 * shape.total * on_cpu)}


def passing_blocks(shape, strategy, width, gradients, accumulated):
    """Bytes beside the shards at the worse end of a sharded backward pass; width: bytes of a weight that travels.

    It begins with all blocks whole (SHARD_GRAD_OP) and, where micro-batches were accumulated, all gradients whole; it ends with all
    `gradients` cut, one block whole and the next on its way. On top: one block's gradients and the copy that is summed.
    """
    two = width * (shape.root + 2 * shape.largest)
    begins = (width * shape.total if strategy == "SHARD_GRAD_OP" else two) + (4 * shape.total if accumulated else 0)
    return max(begins - gradients, two) + (4 + width) * max(shape.root, shape.largest)


def traffic(shape, options, strategy, processes, precision, gloo=False):
    """Bytes that each process sends per optimizer step. gloo scatters by summing everywhere, which moves twice as much."""
    ring, width = (processes - 1) / processes, 2 if precision in ("bf16", "fp16") else 4
    if strategy == "DDP":
        return 2 * ring * 4 * shape.total
    gathers = shape.total if strategy == "SHARD_GRAD_OP" else 2 * shape.total - shape.root
    scatter = (2 if gloo else 1) * ring * 4 * shape.total
    return options["accumulation_steps"] * ring * width * gathers + scatter


def make_plan(options):
    """-> {"request", "shape", "rows": one dict per strategy}; see the keys in `row`."""
    request = read_request(options["plan"])
    shape = measure(options, speed=request["tflops"] is None)
    device = machine.choose_device(options["device"])
    away = request["tflops"] is not None                   # planned for other machines than this one
    precision = options["mixed_precision"]
    if precision == "auto":
        precision = "bf16" if away else machine.choose_precision("auto", device)
    rate = request["tflops"] * 1e12 if away else shape.flops_per_s
    gloo = device.type == "cpu" and not away

    def row(strategy):
        processes, config = request["gpus"], model_config(options)
        tokens = options["batch_size"] * options["max_len"] * options["accumulation_steps"]
        sent = traffic(shape, options, strategy, processes, precision, gloo)
        computing = flops(shape.active, tokens, config, options["max_len"]) / rate
        moving = sent / (request["bandwidth_gbit"] / 8 * 1e9 * LINK_SHARE)
        step = computing + max(0.0, moving - OVERLAP * computing)
        speed = tokens * processes / step
        needed = memory(shape, options, strategy, processes, precision, on_cpu=gloo)
        return {"strategy": strategy, "memory": needed, "traffic": sent,
                "computing": computing, "moving": moving, "step": step, "tokens_per_s": speed,
                "days": request["tokens"] / speed / 86400 if request["tokens"] else None}
    return {"request": request, "shape": shape, "precision": precision, "rate": rate, "rows": [row(s) for s in STRATEGIES]}


# ---- the printed form ----

def show_plan(options, say=print):
    """`--plan`: the table, nothing else. -> make_plan's dict"""
    plan = make_plan(options)
    for line in lines(plan, options) if parallel.is_main() else ():
        say(line)
    return plan


def lines(plan, options):
    request, shape = plan["request"], plan["shape"]
    chosen = options["fsdp_sharding"] if options["distributed"] == "fsdp" and options["fsdp_sharding"] != "NO_SHARD" else "DDP"
    tokens = options["batch_size"] * options["max_len"] * options["accumulation_steps"] * request["gpus"]
    yield (f"计划：{request['nodes']} 台机器共 {request['gpus']} 个进程，参数 {short(shape.total)}（每个 token 用到 {short(shape.active)}），"
           f"每步 {tokens:,} 个 token，精度 {plan['precision']}")
    source = "给定" if request["tflops"] else "本机实测"
    yield f"每个进程 {plan['rate'] / 1e12:.3g} TFLOP/s（{source}），每台机器的网络 {request['bandwidth_gbit']:g} Gbit/s"
    yield f"{'方式':<14}{'内存/进程':>9}{'每步流量/进程':>10}{'计算':>8}{'通信':>8}{'每步':>8}{'token/秒':>12}{'时长':>10}"
    for row in plan["rows"]:
        days = "—" if row["days"] is None else f"{row['days']:.1f} 天" if row["days"] >= 1 else clock(row["days"] * 86400)
        mark = " ←" if row["strategy"] == chosen else ""
        full = request["memory_gb"] and row["memory"]["total"] > request["memory_gb"] * 1e9
        yield (f"{row['strategy']:<16}{gigabytes(row['memory']['total']):>12}{gigabytes(row['traffic']):>14}{row['computing']:>9.3g}s"
               f"{row['moving']:>9.3g}s{row['step']:>9.3g}s{row['tokens_per_s']:>14,.0f}{days:>11}{mark}{'（放不下）' if full else ''}")
    yield (f"内存是张量，另加进程本身约 0.5 GB。假设：网络跑到标称的 {LINK_SHARE:.0%}，通信有计算时间的 {OVERLAP:.0%} 可以藏起来，"
           "各进程一样快；没有训练任何东西。")
