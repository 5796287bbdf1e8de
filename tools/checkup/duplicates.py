"""Duplicates over all rows of a check-up: exact by hash, near by signature, and what held-out data shares with the
training."""
import numpy as np

from tools import formats
from tools.checkup.scan import row_text
from tools.reading.lines import is_plain_text, read_at
from tools.checkup.near import THRESHOLD, near_pairs

PART = 1 << 23      # hashes sorted at once


class Book:
    """All rows by number: where each stands, and which come from held-out files."""

    def __init__(self, columns, files, held, text_field=None):
        """columns: Columns with line, offset, file, hash, long, signature. files: plain paths; held: bool per file."""
        self.columns, self.files, self.text_field = columns, files, text_field
        self.line, self.offset, self.file = (columns.get(n) for n in ("line", "offset", "file"))
        self.held_files = np.array(held, bool)
        self._open = {}

    def place(self, row):
        """-> (file number, line)"""
        return int(self.file[row]), int(self.line[row])

    def held(self, row):
        return bool(self.held_files[self.file[row]])

    def text(self, row):
        """The row's words, read again from its file."""
        number = int(self.file[row])
        if number not in self._open:
            self._open[number] = open(self.files[number], "rb")
        plain = is_plain_text(self.files[number])
        parsed = formats.parse_line(read_at(self._open[number], int(self.offset[row]), plain), self.text_field, plain)
        return row_text(parsed) if isinstance(parsed, formats.Row) else ""

    def close(self):
        for file in self._open.values():
            file.close()


def exact_pairs(hashes):
    """Generator of (first row, later row) of equal hash, per group in order; partitions keep the memory flat."""
    parts = -(-len(hashes) // PART)
    for part in range(parts):
        rows = np.arange(len(hashes)) if parts == 1 else np.flatnonzero(np.asarray(hashes) % np.uint64(parts) == part)
        values = np.asarray(hashes[rows])
        order = np.argsort(values, kind="stable")
        rows, values = rows[order], values[order]
        fresh = np.concatenate([[True], values[1:] != values[:-1]])
        first = rows[np.maximum.accumulate(np.where(fresh, np.arange(len(rows)), 0))]
        again = ~fresh
        yield from zip(first[again].tolist(), rows[again].tolist())


def find_duplicates(book, near=True, threshold=THRESHOLD):
    """Generator of (kind, row, earlier row, Jaccard): kind duplicate, near_duplicate or leak. Every row at most once.

    A leak's row is the held-out one. Training files come before held-out ones, so the earlier row is the training row.
    """
    hashes = book.columns.get("hash")
    gone = np.zeros(len(hashes), bool)
    for first, row in exact_pairs(hashes):
        gone[row] = True
        yield "leak" if book.held(row) and not book.held(first) else "duplicate", row, first, 1.0
    if near:
        long = np.asarray(book.columns.get("long"))
        for i, j, share in near_pairs(book.columns.get("signature"), lambda k: book.text(long[k]), threshold,
                                      gone[long]):
            earlier, row = int(long[i]), int(long[j])
            yield "leak" if book.held(row) and not book.held(earlier) else "near_duplicate", row, earlier, share
