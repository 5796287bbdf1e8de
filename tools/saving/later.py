"""Archives of tensors that are made while they are written, so that no two of them need be in memory at once.

The file is what torch.save makes of the same tensors: a zip of data.pkl, byteorder, version and the bytes of each.
"""
import io
import pickle
import sys
import zipfile
from collections import OrderedDict

import torch

STORAGES = {torch.float32: torch.FloatStorage, torch.float16: torch.HalfStorage, torch.bfloat16: torch.BFloat16Storage}
ZIP64_FROM = 1 << 31  # bytes of an entry; the short form of its lengths ends there


class Later:
    """A tensor of this shape and dtype (float32, float16 or bfloat16) that `make()` gives when it is wanted."""

    def __init__(self, shape, dtype, make):
        self.shape, self.dtype, self.make = tuple(shape), dtype, make

    def is_floating_point(self):
        return self.dtype.is_floating_point

    def float(self):
        return self.changed(torch.float32, torch.Tensor.float)

    def changed(self, dtype, change):
        """change: tensor -> tensor of the same shape in `dtype`."""
        return Later(self.shape, dtype, lambda: change(self.make()))


def save_later(payload, out):
    """Write a dict of plain values and Laters to `out` (needs write and flush only); one Later is in memory at a
    time."""
    data = io.BytesIO()
    pickler = _Pickler(data, protocol=2)
    pickler.keys = {}
    pickler.dump(payload)
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in (("data.pkl", data.getvalue()), ("byteorder", sys.byteorder.encode())):
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)
        for later, key in pickler.keys.items():
            _write(archive, f"archive/data/{key}", later)
        archive.writestr(zipfile.ZipInfo("archive/version"), b"3\n")


def _write(archive, name, later):
    tensor = later.make().contiguous()
    assert (tuple(tensor.shape), tensor.dtype) == (later.shape, later.dtype), name
    content = tensor.reshape(-1).view(torch.uint8).numpy()
    with archive.open(zipfile.ZipInfo(name), "w", force_zip64=content.nbytes >= ZIP64_FROM) as entry:
        entry.write(content)


class _Bytes:
    def __init__(self, later):
        self.later = later


class _Pickler(pickle.Pickler):
    """Names the bytes of each Later as torch does; keys: {Later: the number of its entry}."""

    def persistent_id(self, found):
        if isinstance(found, _Bytes):
            later, size = found.later, torch.Size(found.later.shape).numel()
            return "storage", STORAGES[later.dtype], str(self.keys.setdefault(later, len(self.keys))), "cpu", size

    def reducer_override(self, found):
        if not isinstance(found, Later):
            return NotImplemented
        with torch.device("meta"):
            strides = torch.empty(found.shape).stride()
        return torch._utils._rebuild_tensor_v2, (_Bytes(found), 0, found.shape, strides, False, OrderedDict())
