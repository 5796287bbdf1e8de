"""The files that a run starts from, and where they lie after a run has moved them away.

A fresh start moves all earlier checkpoints of its stage to backup_<time>/, perhaps the very one it begins with
(`sft_train.py
--pretraining_model_path out/TinySeek_SFT_final.pkl`). Training a base anew moves the old one from under its adapters.
"""
from pathlib import Path

from tools.errors import UserError


def backups(folder):
    """The backup folders in `folder`, newest first."""
    return sorted(Path(folder).glob("backup_*/"), key=lambda p: p.name, reverse=True)


def linked(path):
    """The file itself where `path` is a link to one, whether it still lies there or not."""
    path = Path(path)
    return path.resolve() if path.is_symlink() else path


def moved_places(path):
    """Where the file that lay at `path` may lie now, most likely first: under its name in a backup folder, then any
    .pkl there."""
    path = linked(path)
    folders = backups(path.parent)
    named = [folder / path.name for folder in folders if (folder / path.name).is_file()]
    return named, [p for folder in folders for p in sorted(folder.glob("*.pkl")) if p not in named]


def start_name(path):
    """How a run remembers a file it starts from: its own name and its folder's, which stay when the project moves."""
    path = linked(path)
    return f"{path.parent.name}/{path.name}"


def start_file(path, folder, hash_of):
    """The file that `path` means to the run of `folder` (a RunFolder): the same at every start of the same command.

    It is the file at `path`, unless the run here has moved it away (and perhaps written its own under that name): then
    the one with the weights it began from. hash_of(path) -> weights hash; a file that cannot be read is passed over.
    """
    path = linked(path)
    digest, unfinished = folder.started_from(path)
    if path.is_file() and not (digest and unfinished and folder.wrote(path)):
        return path
    named, others = moved_places(path)
    if digest is None:
        return named[0] if named and folder.owns(path) and not path.is_file() else path
    for place in named + others:
        try:
            if hash_of(place) == digest:
                return place
        except UserError:
            continue
    return path


def where_it_went(path):
    """Words (Chinese, to be followed by a way on) that name the newest backup of a missing file; "" when there is
    none."""
    named = moved_places(path)[0]
    return f"正在训练的新模型还没有完成，原来的移到了 {named[0]} ，可以直接用它；" if named else ""
