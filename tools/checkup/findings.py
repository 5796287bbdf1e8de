"""What a check-up found, and what it looked at to find it."""
import numpy as np

from tools import formats
from tools.checkup import wording

KEPT = 1000                 # places remembered per kind of fault; all are counted
COUNTS = ("tokens", "bytes_tokens", "learned", "cut", "cut_rows", "cut_learned", "documents", "over", "token_bins",
          "char_bins")


class Findings:
    """`faults`: {kind or reason: [count, [(file number, line, remark)]]}. `looked`: what was looked at, see
    `summary`."""

    def __init__(self, names, held, aims, same=()):
        counts = dict.fromkeys(("bytes", "lines", "last", "items", "rows", "chars", "bad"), 0)
        self.files = [{"path": str(n), **counts, "held": h} for n, h in zip(names, held)]
        self.bad, self.faults, self.totals, self.dropped, self.hidden_leaks = {}, {}, {}, {}, 0
        own = [aim for aim, h in zip(aims, held) if not h]
        self.options = f" --stage {own[0].stage}" if own[0].stage else ""
        self.looked = {"stages": list(dict.fromkeys(aim.title for aim in own)), "whole": all(aim.whole for aim in own),
                       "max_len": max(aim.max_len for aim in own), "same": list(same), "duplicates": False,
                       **dict.fromkeys(("near", "leaks", "split"))}

    def add_block(self, number, result, before):
        """before: lines of the file that come before the block; None = unknown."""
        file = self.files[number]
        file["last"] = max(file["last"], (before or 0) + result["last"])
        for key in ("bytes", "lines", "items", "chars"):
            file[key] += result[key]
        file["bad"] += len(result["bad"])
        formats.add_dropped(self.dropped, result["dropped"])
        file["rows"] += result["items"] - len(result["bad"])
        faults = [(line, kind, "") for line, kind in result["faults"]]
        for table, hits in ((self.bad, result["bad"]), (self.faults, faults)):
            for line, kind, remark in hits:
                self.note(kind, number, None if before is None else before + line, remark, table)
        for key in COUNTS:
            if key in result:
                self.totals[key] = self.totals.get(key, 0) + result[key]
        own = result["columns"]["teaches"] if not file["held"] else np.zeros(0)
        self.totals["teaching"] = self.totals.get("teaching", 0) + int(own.sum())

    def note(self, kind, number, line, remark="", table=None):
        entry = (self.faults if table is None else table).setdefault(kind, [0, []])
        entry[0] += 1
        if len(entry[1]) < KEPT:
            entry[1].append((number, line, remark))

    def summary(self, vocab, origin, max_bad_share, share=1.0):
        """-> the JSON-able result of a check-up. origin: Origin of the vocabulary.

        looked: {"stages", "whole", "max_len", "vocab", "duplicates", "near": [rows compared, rows],
        "leaks": [held-out rows, training rows], "split": [training rows, held-out rows, rows that teach nothing],
        "same": held-out files that are training files, "options": what makes the command look at the same};
        None = not looked at.
        """
        def listed(table):
            return {kind: {"count": count, "places": [[self.files[n]["path"], *rest] for n, *rest in places]}
                    for kind, (count, places) in sorted(table.items(), key=lambda item: -item[1][0])}
        own = [f for f in self.files if not f["held"]]
        totals = {k: v.tolist() if hasattr(v, "tolist") else int(v) for k, v in self.totals.items()}
        result = {"files": self.files, "rows": sum(f["rows"] for f in own), "bad_lines": sum(f["bad"] for f in own),
                  "items": sum(f["items"] for f in own), "bad": listed(self.bad), "faults": listed(self.faults),
                  "totals": totals, "max_len": self.looked["max_len"], "share": share,
                  "hidden_leaks": self.hidden_leaks, "dropped": self.dropped,
                  "looked": {**self.looked, "vocab": (origin.text if origin else "给出的词表") if vocab else None,
                             "options": self.options + (f" --vocab {origin.path}" if origin and origin.path else "")},
                  "vocab": vocab and {"size": len(vocab), "hash": vocab.hash, "token_kind": vocab.token_kind}}
        return {**result, **wording.verdict(result, max_bad_share)}
