"""What a checkpoint is called, what it holds, and how the files that make one model are found."""
import hashlib
import json
import re
from functools import partial
from pathlib import Path

import torch

from tools.errors import UserError
from tools.process.device import DTYPES
from tools.saving.archive import CheckpointError, read_torch, write_torch  # noqa: F401  (people look for both here)
from tools.saving.later import Later
from tools.saving.start_files import moved_places

FIELDS = ("format", "kind", "stage", "config", "vocab_hash", "vocab", "weights", "adapter", "base", "step", "metrics",
          "run")
FORMAT = 1
PRECISIONS = {"fp32": DTYPES["no"], "fp16": DTYPES["fp16"], "bf16": DTYPES["bf16"]}


def checkpoint_name(label, index, epoch, step=None, batch=None):
    """TinySeek_Pre0_1.pkl; saved by step TinySeek_Pre0_1_s500.pkl; the gate's TinySeek_gate0_1_20.pkl."""
    end = "" if batch is None else f"_{batch}"
    end += "" if step is None else f"_s{step}"
    return f"TinySeek_{label}{index}_{epoch}{end}.pkl"


def best_name(label):
    return f"TinySeek_{label}_best.pkl"


def final_name(label):
    return f"TinySeek_{label}_final.pkl"


def name_pattern(label):
    """A regular expression for every .pkl and .state name of one stage."""
    return re.compile(rf"TinySeek_{re.escape(label)}(\d+_\d+(_\d+)?(_s\d+)?|_best|_final)\.(pkl|state)")


def read_checkpoint(path, digest=None):
    """The payload of one .pkl. `digest`: the SHA-256 of the whole file, where a list says what it must be.

    Raises CheckpointError: 3 missing, damaged, unsafe; 4 a good file of another kind.
    """
    if Path(path).suffix == ".state":
        raise CheckpointError(f"{path} 是续训用的，请用同名的 {Path(path).with_suffix('.pkl').name}。", 4)
    payload = read_torch(path, FIELDS, digest)
    good = (payload["format"] == FORMAT and payload["kind"] in ("model", "adapter", "gate")
            and isinstance(payload["weights"], dict) and isinstance(payload["config"], dict)
            and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in payload["weights"].items()))
    if not good:
        raise CheckpointError(f"{path} 是别的版本或别的种类的检查点，这里用不上。", 4)
    return payload


def read_pair(path):
    """(payload, state) of one checkpoint named by the user; state is None where no .state lies beside it.

    Raises CheckpointError like read_checkpoint, and 3 when the .state is damaged or belongs to another save.
    """
    path = Path(path)
    beside = path.with_suffix(".state")
    state = read_torch(beside, ("pkl_sha256",)) if beside.exists() else None
    return read_checkpoint(path, state.pop("pkl_sha256") if state else None), state


def weights_hash(weights):
    """SHA-256 (hex) of {name: tensor}: names in order, dtypes, shapes, bytes; the device plays no part."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def cast_weights(weights, precision):
    """{name: tensor} with the float tensors in fp32, fp16 or bf16; integers, bools and routers' bias stay as they are.

    The bias decides which experts are chosen; every program keeps it in float32.
    """
    if precision in (None, "no"):
        return dict(weights)
    if precision not in PRECISIONS:
        raise UserError(f"save_precision 只能是 {'、'.join(PRECISIONS)}，不能是 {precision!r}。")
    kind, cast, done = PRECISIONS[precision], {}, {}
    for name, t in weights.items():
        if not t.is_floating_point() or name.endswith("router.bias"):
            cast[name] = t
            continue
        later = isinstance(t, Later)
        narrow = partial(_narrowed, name=name, precision=precision)
        same = t if later else (t.data_ptr(), t.shape, t.dtype)         # tied ones stay one
        if same not in done:
            done[same] = t.changed(kind, narrow) if later else narrow(t)
        cast[name] = done[same]
    return cast


def _narrowed(tensor, name, precision):
    found = tensor.to(PRECISIONS[precision])
    if found.isinf().any() and not tensor.isinf().any():
        raise UserError(f"权重 {name} 超出了 {precision} 的范围，请改用 save_precision bf16 或 fp32。")
    return found


def _base_places(path, stored):
    """Where the base of the adapter at `path` may lie: (as stored, beside the adapter, in out/; then, found by its
    weights alone, what was moved to a backup folder or renamed). An adapter in a backup folder looks from the folder it
    came from, too."""
    here, stored = Path(path).resolve().parent, Path(stored.replace("\\", "/"))
    homes = [here, here.parent] if here.name.startswith("backup_") else [here]
    places = [
        stored, *(one for home in homes for one in (home / stored, home / stored.name, home.parent / stored.name))]
    moved = [found for place in places for group in moved_places(place) for found in group]
    renamed = [found for home in homes for folder in (home, home.parent) for found in sorted(folder.glob("*.pkl"))]
    return list(dict.fromkeys(p.resolve() for p in places)), list(dict.fromkeys(p.resolve() for p in moved + renamed))


def _find_base(path, base, known, what="底座"):
    """The payload and path of the checkpoint whose weights hash is base["hash"]. Raises CheckpointError 3 or 4.

    known: {path: (payload, weights hash)} of what has been read already; what was found is added.
    """
    if not (isinstance(base, dict) and isinstance(base.get("path"), str) and "hash" in base):
        raise CheckpointError(f"{path} 写的{what}不对，这里用不上。", 4)
    named, others = _base_places(path, base["path"])
    problem = None
    for place in [p for p in named if p.is_file()] + [p for p in others if p not in named]:
        try:
            payload, found = known[place] if place in known else _hashed(place)
        except CheckpointError as error:
            problem = problem or (error if place in named else None)
            continue
        if found == base["hash"]:
            known[place] = payload, found
            return payload, place
        if place in named:
            problem = CheckpointError(f"{path} 是配合另一个{what}训练的：{place} 的权重和当时不同。请用原来的{what}，或重新训练。", 4)
    raise problem or CheckpointError(f"{path} 需要{what} {base['path']}，但找不到它。请把它放到同一文件夹。")


def _hashed(path):
    payload = read_checkpoint(path)
    return payload, weights_hash(payload["weights"])


def load_chain(path, known=None):
    """All payloads that make the model at `path`: the base first, adapters after, in the order they were trained.

    A gate is alone in its chain and has the chains of its experts under "experts"; a base that several share is one
    object. So it is for several calls that share the dict `known`.
    Raises CheckpointError: 3 a file is missing or damaged, 4 the base found is not the one the adapter was trained on.
    """
    known = {} if known is None else known
    top = read_checkpoint(path)
    if top["kind"] == "gate":
        names = top["adapter"].get("experts") if isinstance(top["adapter"], dict) else None
        if not names:
            raise CheckpointError(f"{path} 没有写明专家，这里用不上。", 4)
        top["experts"] = [_down_from(*_find_base(path, name, known, "专家"), known) for name in names]
    return _down_from(top, Path(path), known)


def acts_of(payloads):
    """What beside speaking a model made of these has learned: sorted names, as template.acts_in gives them."""
    talks = [payload["talk"] for payload in payloads if isinstance(payload.get("talk"), dict)]
    return sorted({act for talk in talks for act in talk.get("acts") or () if isinstance(act, str)})


def _down_from(payload, place, known):
    """The chain that ends with `payload`, which was read from `place`."""
    chain = [payload]
    while chain[0]["base"]:
        if len(chain) > 8:
            raise CheckpointError(f"{place} 的底座层层相套，超过 8 层，这里用不上。", 4)
        payload, place = _find_base(place, chain[0]["base"], known)
        chain.insert(0, payload)
    if len(chain) > 1 and chain[0]["kind"] != "model":
        raise CheckpointError(f"{place} 不是完整的模型，不能作底座。", 4)
    return chain
