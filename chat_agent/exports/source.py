"""The checkpoint that is exported: read, checked, in the precision asked for."""

from typing import NamedTuple

import torch

from model.config import ModelConfig
from model.tiny_seek import TinySeek
from tools.checkpoint import cast_weights, read_checkpoint
from tools.errors import UserError
from tools.vocab import Vocab

CASTS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}
CONTEXT = 512           # where a checkpoint does not say how long its rows were
WAYS = {"Lora": "请先合并：python chat_agent/export.py --model {path} --to merged --output merged.pkl，再导出 merged.pkl。",
        "Prefix": "角色前缀请先用 --to merged 合并，再导出合并的文件；键值前缀在这些格式里没有位置，请导出它的底座。", "Memory": "记忆在这些格式里没有位置，请导出它的底座。",
        "gate": "门控是挑选专家的小网络，请分别导出各个专家。"}


class Source(NamedTuple):
    config: ModelConfig
    vocab: Vocab
    weights: dict       # exactly the state_dict of TinySeek(config)
    payload: dict       # the rest of the checkpoint

    @property
    def context(self):
        """Positions the model was trained for."""
        return int(self.config.max_position or self.payload["run"].get("max_len") or CONTEXT)

TABLES = ("fc1.tables.", "fc1.documents")        # of counts; their sizes are those of a text


def read_source(path, precision=None):
    """A full model. precision: f32, f16, bf16 or None = as stored. UserError 2 for adapters, 3 and 4 as read_checkpoint
    raises."""
    payload = read_checkpoint(path)
    if payload["kind"] != "model":
        way = WAYS.get(payload["stage"], "请先合并成完整的模型再导出。")
        raise UserError(f"{path} 是 {payload['stage']} 适配器，不是完整的模型。{way.format(path=path)}", 2)
    return source_of(payload, path, precision)


def source_of(payload, name, precision=None):
    try:
        config = ModelConfig.from_dict(payload["config"])
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} 的模型配置不能用（{error}）。请用同一版本的程序导出。", 4) from None
    vocab = Vocab.from_state(payload["vocab"])
    if vocab.hash != payload["vocab_hash"]:
        raise UserError(f"{name} 里的词表与它记录的哈希不符，请换一个检查点。", 4)
    check_shapes(config, payload["weights"], name)
    weights = dict(payload["weights"])
    if precision is not None:
        weights = cast_weights({n: t.float() if n.endswith("router.bias") else t for n, t in weights.items()},
                               CASTS[precision])
    return Source(config, vocab, weights, {k: v for k, v in payload.items() if k != "weights"})


def expected(config):
    """{name: shape} of the state_dict of TinySeek(config), in its order."""
    with torch.device("meta"):
        return {name: tuple(t.shape) for name, t in TinySeek(config).state_dict().items()}


def check_shapes(config, weights, name):
    """UserError 4 unless `weights` are exactly a TinySeek of this configuration, all float. Tables of counts have their
    text's size."""
    wanted, weights = ({n: t for n, t in tensors.items() if not n.startswith(TABLES)}
                       for tensors in (expected(config), weights))
    wrong = sorted(set(wanted) ^ set(weights))
    wrong += [n for n, shape in wanted.items() if n in weights and tuple(weights[n].shape) != shape]
    wrong += [n for n, t in weights.items() if not t.is_floating_point()]
    if wrong:
        raise UserError(f"{name} 的权重与它的配置不符：{wrong[0]} 等 {len(wrong)} 个张量。请换一个检查点。", 4)


def check_numbers(name, tensor, path):
    """UserError 3 when a tensor of a file has NaN or an infinity: no checkpoint is saved with one."""
    if tensor.numel() and not all(map(torch.isfinite, tensor.aminmax())):   # needs no memory, unlike isfinite of all
        raise UserError(f"{path} 里的 {name} 有 NaN 或无穷大，算不出东西。请重新下载或导出，或换一个模型。", 3)


def precision_of(weights):
    """float32, float16 or bfloat16: what the weights are stored as, the widest where they differ."""
    kinds = {t.dtype for n, t in weights.items() if not n.endswith("router.bias") and not n.startswith(TABLES)}
    order = [torch.float32, torch.bfloat16, torch.float16]
    odd = kinds - set(order)
    if odd:
        raise UserError(f"权重是 {odd.pop()}，请加 --precision f32。", 2)
    return str(min(kinds, key=order.index)).removeprefix("torch.")


def need(module, what):
    """Import an optional package, or say how to get it."""
    try:
        return __import__(module, fromlist=["_"])
    except ImportError:
        raise UserError(f"{what}需要 {module.split('.')[0]}，请先运行：pip install -r requirements-export.txt", 2) from None
