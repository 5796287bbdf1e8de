"""The vocabulary that a training would use, for a check-up of its data."""
from collections import namedtuple
from pathlib import Path

from tools.errors import UserError
from tools.vocab import Vocab

# read for a vocabulary of the moment; finding words is slow
TRIAL_BYTES = {"char": 24 << 20, "jieba": 2 << 20, "bpe": 2 << 20}

Origin = namedtuple("Origin", "text path")              # of a vocabulary: in Chinese; the file that --vocab takes


def load_either(path):
    """(Vocab, Origin) of a vocabulary file, or of a checkpoint's own. UserError where it cannot be read."""
    if Path(path).suffix != ".pkl":
        vocab = Vocab.load_vocab(path)
        return vocab, Origin(f"{path}（{len(vocab)} 项）", path)
    from tools.checkpoint import read_checkpoint       # here: it imports torch, which takes seconds
    vocab = Vocab.from_state(read_checkpoint(path)["vocab"])
    return vocab, Origin(f"起点模型 {path} 自带的（{len(vocab)} 项）", path)


def stage_vocabulary(options, stage):
    """(Vocab, Origin), or (None, None) where there is none yet: the start model's own, else the file.

    The file in the start model's folder is the model's own (training refuses another), and quicker to read.
    """
    whole = [options["init_from"]] if stage in ("pre", "sft", "dpo") else []       # of an adapter it is an adapter
    own = (options["experts"] or [])[:1] if stage == "gate" else [*whole, options["pretraining_model_path"]]
    base = next((path for path in own if path), None)
    known = Path(options["vocab_trg_path"])
    beside = known.is_file() and base and known.resolve().parent == Path(base).resolve().parent
    if base and Path(base).is_file() and not beside:
        return load_either(base)
    return load_either(known) if known.is_file() else (None, None)


def trial_vocabulary(paths, config, text_field):
    """(Vocab of the moment, Origin); (None, None) where the data gives none."""
    try:
        kind = config["token_kind"]
        vocab = Vocab.create_vocab(paths, config["vocab_size"], kind, sample_bytes=TRIAL_BYTES[kind],
                                   text_field=text_field,
                                   progress=False)
    except UserError:
        return None, None
    return vocab, Origin(f"还没有，用这批数据临时建的（{len(vocab)} 项）", None)
