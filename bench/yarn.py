"""How far can a model read beyond the length it was trained at, as it is and with stretched rotary positions?

    python bench/yarn.py --model out/TinySeek_Pre_final.pkl --data data/demo_pre.jsonl --factor 4 --picture yarn.png

Bits per character by position, on long documents made of held-out rows (every 50th) one after the other; nothing is
trained. "long": YaRN (Peng et al. 2023, arXiv:2309.00071) from the trained length on. Prints a table; the last line is
JSON.
"""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import numpy as np
import torch
from torch.nn import functional as F

from bench.measure import draw, table
from bench.quality_per_minute import commit
from chat_agent.load import context_of, load
from model import TinySeek
from tools.cli import guarded, parse
from tools.errors import UserError
from tools.formats import BadLines, read_rows
from tools.template import END

EVERY = 50              # one row in so many is held out
BINS = 16
EXTRA = [("--model", {"required": True, "metavar": "P", "help": "旋转位置的完整模型 .pkl"}),
         ("--data", {"required": True, "metavar": "F", "help": "文本（JSONL），只用留出的行"}),
         ("--factor", {"type": float, "default": 4.0, "metavar": "数", "help": "拉长几倍（4）"}),
         ("--documents", {"type": int, "default": 32, "metavar": "数", "help": "拼成几篇长文（32）"}),
         ("--picture", {"metavar": "F.png", "help": "把曲线画到这里"})]


def long_documents(vocab, data, length, count):
    """ids (count, length + 1): held-out texts, a line each, one document after the other."""
    texts = (text for row in read_rows(data, bad=BadLines()) if (row.line - 1) % EVERY == 0 for text in row.texts)
    ids, end = [], vocab.id(END)
    for text in texts:
        ids += list(vocab.encode(text + "\n"))
        if len(ids) >= count * length:
            break
    count = len(ids) // length
    if not count:
        raise UserError(f"留出的行只有 {len(ids)} 个词元，拼不成 {length} 个词元的长文。请用更多的数据，或减小 --factor。")
    return torch.tensor([[end, *ids[i * length:(i + 1) * length]] for i in range(count)])


@torch.no_grad()
def by_position(model, ids):
    """nats (documents, length) of each next token."""
    found = []
    for row in ids:
        logits = model(row[None, :-1]).logits_1[0].float()
        found.append(F.cross_entropy(logits, row[1:], reduction="none"))
    return torch.stack(found).double().numpy()


def characters(vocab, ids):
    """How many characters begin in each token: (documents, length)."""
    sizes = np.array([sum((byte & 0xC0) != 0x80 for byte in vocab.decode_bytes([i])) for i in range(len(vocab))])
    return sizes[ids[:, 1:].numpy()]


def main(argv=None):
    manager, command = parse(argv, "比训练时更长的文本，模型读得懂吗？", extra=EXTRA, only_run_keys=True,
                             reads=("threads",))
    torch.set_num_threads(manager.config["threads"] or 1)
    model, vocab, payload = load(command.model, "cpu")
    trained = context_of(model, payload)
    length = int(trained * command.factor)
    ids = long_documents(vocab, command.data, length, command.documents)
    stretched = TinySeek(replace(model.config, rope_scaling="yarn", rope_factor=command.factor, rope_original=trained))
    stretched.load_state_dict(model.state_dict())
    sizes, found = characters(vocab, ids), {}
    for name, one in (("照原样", model), (f"YaRN ×{command.factor:g}", stretched.eval())):
        nats = by_position(one, ids)
        parts = zip(np.array_split(nats, BINS, 1), np.array_split(sizes, BINS, 1))
        found[name] = [float(n.sum() / math.log(2) / s.sum()) for n, s in parts]
    ends = [round(length * (i + 1) / BINS) for i in range(BINS)]
    print(*table(["到第几个词元", *found], [[end, *(f"{bits[i]:.3f}" for bits in found.values())]
                                      for i, end in enumerate(ends)]), sep="\n")
    if command.picture:
        draw(command.picture, [(f"留出文本的比特/字（训练时最长 {trained}）", f"held-out bits/char (trained at {trained})",
                                {name: list(zip(ends, bits)) for name, bits in found.items()})])
    print(json.dumps({"trained": trained, "length": length, "documents": len(ids), "ends": ends, "bits": found,
                      "commit": commit()}, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)
