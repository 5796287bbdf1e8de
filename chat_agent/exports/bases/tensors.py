"""The tensors of a folder, read by mapping: names and shapes first, then one part after the other."""

import json
import struct
from pathlib import Path

import torch

from chat_agent.exports.folder import read_json
from chat_agent.exports.source import check_numbers, need
from tools.errors import UserError

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
LARGEST_HEADER = 100 << 20
MAPPED = 64 << 20           # bytes that are read of a file before it is mapped anew: what was read leaves the memory


class Tensors:
    """shapes, dtypes: {name: …} of all tensors. `read(names)` gives them, mapped from their files."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.shapes, self.dtypes, self.where = {}, {}, {}
        self.file, self.get, self.left = None, None, 0      # the file that is mapped now
        files, index = _files(self.folder)
        for file in sorted(files):
            for name, (shape, dtype) in _header(self.folder / file).items():
                if index.get(name, file) == file:           # of two the index names one
                    self.shapes[name], self.dtypes[name], self.where[name] = shape, dtype, file
        lost = [name for name, file in index.items() if self.where.get(name) != file and not _idle(name)]
        if lost:
            raise UserError(f"索引说 {lost[0]} 等 {len(lost)} 个张量在 {index[lost[0]]} 里，那里却没有。请重新下载这个文件夹。", 3)

    def read(self, names):
        """-> list of tensors, which are the mapped files themselves. UserError 3 for a damaged file, and for numbers
        that are none."""
        return [self._mapped(name) for name in names]

    def _mapped(self, name):
        path = self.folder / self.where[name]
        try:
            if self.file != path or self.left <= 0:
                self.get = None                             # first: two mappings are twice the memory
                self.file, self.get, self.left = path, _opened(path), MAPPED
            tensor = self.get(name)
        except UserError:
            raise
        except Exception as error:                          # safetensors has an exception class of its own
            raise _damaged(path, error) from None
        self.left -= tensor.nbytes
        check_numbers(name, tensor, path)
        return tensor


def _files(folder):
    """-> the files with weights, {name: file} of an index or {}."""
    for index in (folder / name for name in INDEXES):
        if index.exists():
            where = read_json(index).get("weight_map")
            if not isinstance(where, dict) or not all(isinstance(f, str) and Path(f).name == f for f in where.values()):
                raise UserError(f"{index} 不完整。请重新下载。", 3)
            return set(where.values()), where
    single = next((name for name in SINGLES if (folder / name).exists()), None)
    if single is None:
        raise UserError(f"{folder} 里没有权重（model.safetensors 或 pytorch_model.bin）。请下载完整的文件夹。", 3)
    return {single}, {}


def _header(path):
    """{name: (shape, dtype)}. UserError 3 damaged, 4 another number format."""
    if path.suffix == ".bin":
        return _kinds(path, _pickled(path))
    try:
        with path.open("rb") as file:
            size, = struct.unpack("<Q", file.read(8))
            found = json.loads(file.read(size)) if size < LARGEST_HEADER else None
        found.pop("__metadata__", None)
        kinds = {name: (tuple(about["shape"]), DTYPES.get(about["dtype"])) for name, about in found.items()}
        odd = sorted({about["dtype"] for name, about in found.items() if not _idle(name)} - set(DTYPES))
        whole = 8 + size + max((about["data_offsets"][1] for about in found.values()), default=0)
    except FileNotFoundError:
        raise UserError(f"找不到 {path}。请下载完整的文件夹。", 3) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise _damaged(path, error) from None
    if path.stat().st_size < whole:
        raise UserError(f"{path} 不完整：应有 {whole:,} 字节，只有 {path.stat().st_size:,}。请重新下载。", 3)
    if odd:
        raise _odd(path, odd[0])
    return kinds


def _kinds(path, found):
    """{name: (shape, dtype)} of what a .bin holds."""
    if not isinstance(found, dict) or not all(isinstance(t, torch.Tensor) for t in found.values()):
        raise UserError(f"{path} 里不只是权重。请改用 safetensors 格式的文件夹。", 4)
    odd = [t.dtype for name, t in found.items() if t.dtype not in DTYPES.values() and not _idle(name)]
    if odd:
        raise _odd(path, str(odd[0]).removeprefix("torch."))
    return {name: (tuple(t.shape), t.dtype) for name, t in found.items()}


def _odd(path, kind):
    return UserError(f"{path.name} 里有 {kind} 的张量：量化过的模型这里算不了，请用 F32、F16 或 BF16 的。", 4)


def _pickled(path):
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise UserError(f"找不到 {path}。请下载完整的文件夹。", 3) from None
    except Exception as error:                              # whatever torch finds, the answer is the same
        raise UserError(f"读不了 {path}（{type(error).__name__}）。请改用 safetensors 格式的文件夹。", 3) from None


def _opened(path):
    """A function name -> tensor, mapped from the file; the mapping ends with the function and its tensors."""
    if path.suffix == ".bin":
        return _pickled(path).__getitem__
    return need("safetensors", "读取别家的模型").safe_open(path, "pt").get_tensor


def _damaged(path, error):
    return UserError(f"读不了 {path}（{type(error).__name__}）。请重新下载。", 3)


def _idle(name):
    """Buffers that older programs saved beside the weights."""
    return name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))


def wanted(tensors, parts_shapes):
    """{name that the model has: name in the files}. UserError 4 when names or shapes do not fit, before anything is
    read."""
    names = {name: name for name in tensors.shapes if not _idle(name)}
    if not set(names) & set(parts_shapes):                  # GPT-2 was also saved without the name of its inside
        names = {f"transformer.{name}": name for name in names}
    wrong = sorted(set(parts_shapes) - set(names))
    extra = sorted(set(names) - set(parts_shapes) - {"lm_head.weight"})
    wrong += [name for name, shape in parts_shapes.items() if name in names and tensors.shapes[names[name]] != shape]
    if wrong or extra:
        name = (wrong + extra)[0]
        raise UserError(f"权重和 config.json 对不上：{name} 等 {len(wrong + extra)} 个张量缺失、多余或形状不同。这样的结构带不进来。", 4)
    return names
