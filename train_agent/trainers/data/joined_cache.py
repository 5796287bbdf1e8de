"""Several token caches of one vocabulary as one: the documents of the first, then those of the next. Nothing is copied
into memory."""

import hashlib

import numpy as np

from tools.formats import add_dropped


class JoinedCache:
    """What a TokenCache offers, over `parts` (TokenCaches or JoinedCaches of the same dtype)."""

    def __init__(self, parts):
        self.parts = [own for part in parts for own in getattr(part, "parts", [part])]
        first = self.parts[0]
        assert all(part.dtype == first.dtype for part in self.parts)
        self.dtype, self.split = first.dtype, first.split
        self.documents_before = np.cumsum([0] + [len(part) for part in self.parts])
        self.tokens = JoinedTokens([part.tokens for part in self.parts])
        lines_before = np.cumsum([0] + [part.meta["lines"] for part in self.parts])     # bad and blank lines count too
        self.rows = np.concatenate([np.asarray(part.rows) + before for part, before in zip(self.parts, lines_before)])
        self.name = hashlib.sha256("+".join(part.name for part in self.parts).encode()).hexdigest()[:24]
        self.meta = {k: sum(part.meta[k] for part in self.parts)
                     for k in ("documents", "tokens", "rows", "lines", "bad")}
        self.meta["dropped"] = {}
        for part in self.parts:
            add_dropped(self.meta["dropped"], part.meta["dropped"])
        self.meta["acts"] = sorted({act for part in self.parts for act in part.meta["acts"]})
        self.meta |= {k: [one for part in self.parts for one in part.meta[k]] for k in ("digests", "files")}

    def __reduce__(self):
        return JoinedCache, (self.parts,)

    def __len__(self):
        return len(self.rows)

    def bounds(self, documents):
        """documents (D,) -> starts, ends in `tokens`, int64 each."""
        documents = np.asarray(documents, dtype=np.int64)
        owner = np.searchsorted(self.documents_before, documents, side="right") - 1
        starts, ends = np.empty_like(documents), np.empty_like(documents)
        for number in np.unique(owner):
            own, before = owner == number, self.tokens.before[number]
            starts[own], ends[own] = (edge + before for edge in
                                      self.parts[number].bounds(documents[own] - self.documents_before[number]))
        return starts, ends

    def document(self, i):
        owner = int(np.searchsorted(self.documents_before, i, side="right")) - 1
        return self.parts[owner].document(i - int(self.documents_before[owner]))


class JoinedTokens:
    """Token files, indexed as if one followed the other."""

    def __init__(self, parts):
        self.parts, self.dtype = parts, parts[0].dtype
        self.before = np.cumsum([0] + [len(part) for part in parts])

    def __len__(self):
        return int(self.before[-1])

    def __getitem__(self, places):
        """places (N,) int -> numbers (N,)."""
        owner = np.searchsorted(self.before, places, side="right") - 1
        numbers = np.empty(len(places), dtype=self.dtype)
        for number in np.unique(owner):
            own = owner == number
            numbers[own] = self.parts[number][places[own] - self.before[number]]
        return numbers
