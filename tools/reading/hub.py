"""`hf:name` as training data: a data set of the `datasets` package, written once as JSON lines for everything else.

hf:NAME        a name on the hub, e.g. hf:allenai/c4, a Parquet or Arrow file, a folder of files or of `save_to_disk`
hf:NAME/FILE   one file of a data set of several kinds, e.g. hf:org/set/part.jsonl
hf:NAME#SPLIT  another split than `hf_split`, e.g. for eval_data_path
The lines lie in cache_dir/hf; the file's name is a digest of all that was asked for: the network is needed once.
"""
import hashlib
import json
import os
from pathlib import Path

from tqdm import tqdm

from tools.errors import UserError
from tools.saving.atomic import put, write_temporary

MARK = "hf:"


def is_hf(path):
    return isinstance(path, str) and path.startswith(MARK)


def local_files(paths, options):
    """paths (one or a list) with every hf: among them replaced by its file of JSON lines, fetched where it is missing.

    options: hf_subset, hf_split, hf_streaming, cache_dir; with hf_streaming and n_of_samples times n_of_samplings both
    given, only so many rows are fetched. Raises UserError 2.
    """
    if isinstance(paths, (list, tuple)):
        return [local_files(one, options) for one in paths]
    return _fetched(paths[len(MARK):], options) if is_hf(paths) else paths


def _fetched(name, options):
    name, _, split = name.partition("#")
    split, subset, streaming = split or options["hf_split"], options["hf_subset"], options["hf_streaming"]
    limit = _limit(options) if streaming else None
    wanted = [name, subset, split, limit, _folder_state(name)]
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]
    path = Path(options["cache_dir"], "hf", f"{_short(name)}-{split.replace('/', '_')}-{key}.jsonl")
    if not path.exists():
        rows = _open(name, subset, split, streaming)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, rows, limit, name)
    return str(path)


def _limit(options):
    """Rows that a run can use at most, None = all."""
    size, chunks = options.get("n_of_samples"), options.get("n_of_samplings")
    return size * chunks if size and chunks else None


def _short(name):
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in os.path.basename(name.rstrip("/\\"))) or "data"


def _folder_state(name):
    """Of a folder or file: what is in it, so that changed data is fetched again. None for a name on the hub."""
    if not os.path.exists(name):
        return None
    files = sorted(p for p in Path(name).rglob("*") if p.is_file()) if os.path.isdir(name) else [Path(name)]
    return [os.path.abspath(name), [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]]


def _open(name, subset, split, streaming):
    try:
        import datasets
    except ImportError:
        raise UserError(f"读取 hf:{name} 需要 datasets：python -m pip install datasets。也可以先把数据另存为 .jsonl 文件。") from None
    try:
        if os.path.isfile(name):                            # one file of a kind that this package reads: Parquet, Arrow
            return datasets.load_dataset(_kind(name), data_files=name, split="train", streaming=streaming)
        if any(os.path.isfile(os.path.join(name, f"dataset_{kind}.json")) for kind in ("info", "dict")):
            saved = datasets.load_from_disk(name)
            return saved[split] if isinstance(saved, dict) else saved
        if name.count("/") > 1 and not os.path.exists(name):
            return datasets.load_dataset(_kind(name), data_files=f"hf://datasets/{name}", split="train",
                                         streaming=streaming)
        return datasets.load_dataset(name, subset, split=split, streaming=streaming)
    except KeyError:
        raise UserError(f"hf:{name} 里没有 {split} 这个划分，可选：{' '.join(saved)}。请改 hf_split。") from None
    except Exception as error:                              # the package raises a dozen kinds, for whatever goes wrong
        first = (str(error).splitlines() or [""])[0][:200]
        raise UserError(f"打不开数据集 hf:{name}（子集 {subset}，划分 {split}）：{type(error).__name__}: {first}。"
                        "请检查名字、hf_subset、hf_split 和网络。") from None


def _kind(name):
    ending = os.path.splitext(name)[1].lower()[1:]
    return ending if ending in ("csv", "parquet", "arrow") else "json"


def _write(path, rows, limit, name):
    def fill(handle):
        count = 0
        with open(handle, "w", encoding="utf-8", closefd=False) as out:
            for row in tqdm(rows, total=limit, desc=f"读取 hf:{name}", delay=2, leave=False, unit="行"):
                if limit is not None and count >= limit:
                    break
                out.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
                count += 1
        if not count:
            raise UserError(f"hf:{name} 的这个划分里没有数据。")
    try:
        put(path, write_temporary(path, fill)[0])
    except UnicodeEncodeError:
        raise UserError(f"hf:{name} 里有不能写成 UTF-8 的文字。") from None
