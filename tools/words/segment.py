"""Maximum-probability segmentation over a word list (unigram Viterbi), vectorised over many texts at once.

The law of the word list: every character of every word is a word itself. So a character that is no word lies inside no
word, the unknown parts of a text are forced, and what they cost does not matter.

Scores are integers, so sums are exact in any order. Of two equally good paths to a place the one whose last word is
longer wins (starts are visited from left to right, only a strictly better path replaces one): the rule of sentencepiece
and of Hugging Face's Unigram model, which lets the vocabulary be exported.

Letters: N characters of a block (all texts, each followed by one border character), E candidate words found in it.
"""
import numpy as np

BLOCK = 1 << 18     # characters handled at once: small enough for the caches, large enough to forget numpy's overhead
FEW = 48            # below so many items a plain loop beats numpy
BORDER = "\0"       # stands after each text; never part of a match, wherever it came from
NONE = np.iinfo(np.int64).min // 2


class Segmenter:
    """Words with integer scores; `segment` finds the best cut of a block of texts."""

    def __init__(self, words, scores):
        """words: distinct strings, the singles of all their characters among them. scores: int per word
        (log-probability)."""
        self.scores = np.asarray(scores, dtype=np.int64)
        chars = sorted(w for w in words if len(w) == 1)
        self.n_chars = len(chars) + 1                                  # 0 is the unknown character
        self.char_of_code = np.zeros(0x110000, dtype=np.int32)
        self.char_of_code[[ord(c) for c in chars]] = np.arange(1, self.n_chars)
        self._build_trie(words)
        inside = np.zeros(self.n_chars, dtype=bool)                    # characters that occur in a word of two or more
        inside[[self.char_of_code[ord(c)] for c in set("".join(w for w in words if len(w) > 1))]] = True
        self.inside = inside

    def _build_trie(self, words):
        """Level by level; a node of depth 1 has its character's number. Edges are sorted keys: node * n_chars +
        character."""
        lengths = np.array([len(w) for w in words], dtype=np.int64)
        codes = np.frombuffer("".join(words).encode("utf-32-le"), dtype=np.uint32)
        chars = self.char_of_code[codes].astype(np.int64)
        if (chars == 0).any():
            raise ValueError("every character of a word must be a word itself")
        first = np.cumsum(lengths) - lengths
        node = chars[first]
        self.word_of = np.full(self.n_chars, -1, dtype=np.int64)
        index = np.arange(len(words))
        single = lengths == 1
        self.word_of[node[single]] = index[single]
        keys, n_nodes, depth = [], self.n_chars, 1
        words_at = [self.word_of]
        alive = np.flatnonzero(lengths > 1)
        while alive.size:
            key, inverse = np.unique(node[alive] * self.n_chars + chars[first[alive] + depth], return_inverse=True)
            node[alive] = n_nodes + inverse
            n_nodes += key.size
            depth += 1
            ends = lengths[alive] == depth
            word_at = np.full(key.size, -1, dtype=np.int64)
            word_at[inverse[ends]] = alive[ends]
            words_at.append(word_at)
            keys.append(key)
            alive = alive[~ends]
        self.max_len = depth
        self.word_of = np.concatenate(words_at)
        # Nodes are numbered in the order of their keys, and deeper parents have larger numbers: the keys come out
        # sorted.
        self.edges = np.concatenate(keys) if keys else np.zeros(0, dtype=np.int64)
        self.has_child = np.zeros(n_nodes, dtype=bool)
        self.has_child[self.edges // self.n_chars] = True

    def _matches(self, chars):
        """Every word of two or more characters in the block: (first positions, lengths, word numbers), each (E,)."""
        at = np.flatnonzero(self.has_child[chars])
        node = chars[at].astype(np.int64)
        found = [(at[:0], at[:0], at[:0])]
        for depth in range(2, self.max_len + 1):
            # a border has no edge: never runs past the block
            key = node * self.n_chars + chars[at + depth - 1]
            edge = np.searchsorted(self.edges, key)
            edge[edge == self.edges.size] = 0
            hit = self.edges[edge] == key
            at, node = at[hit], edge[hit] + self.n_chars
            word = self.word_of[node]
            ends = word >= 0
            found.append((at[ends], np.full(int(ends.sum()), depth), word[ends]))
            more = self.has_child[node]
            at, node = at[more], node[more]
            if at.size == 0:
                break
        return tuple(np.concatenate(part) for part in zip(*found))

    def segment(self, codes, borders):
        """codes: uint (N,) code points, the last one a border; borders: positions of the border characters.

        Returns (starts, words): where each word begins and its number, -1 for a character that is no word. Borders are
        left out.
        """
        chars = self.char_of_code[codes]
        chars[borders] = 0
        # the single character, where nothing better is found
        word_at = self.word_of[chars]
        word_at[chars == 0] = -1
        keep = np.ones(chars.size, dtype=bool)
        keep[borders] = False
        if self.edges.size:
            at, length, word = self._matches(chars)
            if at.size:
                self._solve(word_at, keep, at, length, word)
        starts = np.flatnonzero(keep)
        return starts, word_at[starts]

    def _solve(self, word_at, keep, at, length, word):
        """Viterbi in lockstep over the stretches that words of several characters tie together. Changes word_at,
        keep."""
        place = np.arange(word_at.size)
        reach = place + 1
        reach[at] = at + length                                         # longer matches come later and win
        reach = np.maximum.accumulate(reach)
        begins = np.ones(word_at.size, dtype=bool)                      # no word crosses into this position
        begins[1:] = reach[:-1] == place[1:]
        begin = np.maximum.accumulate(np.where(begins, place, 0))       # of the stretch that holds this position
        tied = ~begins
        tied[:-1] |= tied[1:]                                           # the first of a stretch of two or more
        one = np.flatnonzero(tied)
        at = np.concatenate([one, at])
        length = np.concatenate([np.ones(one.size, dtype=np.int64), length])
        word = np.concatenate([word_at[one], word])

        step = at - begin[at]
        order = np.argsort(step.astype(np.int16) if step.max() < 32767 else step, kind="stable")
        at, length, word = at[order], length[order], word[order]
        last, score = at + length - 1, self.scores[word]
        edge_to = self._forward(at, last, score, np.cumsum(np.bincount(step)), word_at.size)

        ends = np.ones(word_at.size, dtype=bool)
        ends[:-1] = begins[1:]
        keep[one] = False
        self._backward(np.flatnonzero(ends & tied), edge_to, at, word, begins, keep, word_at)

    def _forward(self, at, last, score, upto, size):
        """best[q]: score of the best path that ends with character q. Returns edge_to (N,): the last word of that
        path."""
        best = np.full(size, NONE)
        edge_to = np.zeros(size, dtype=np.int64)
        low = 0
        for step, high in enumerate(upto.tolist()):
            if high - low < FEW:
                break
            part = slice(low, high)
            value, target = score[part], last[part]
            if step:
                value = value + best[at[part] - 1]
            better = np.flatnonzero(value > best[target])
            target = target[better]
            best[target] = value[better]
            edge_to[target] = better + low
            low = high
        if low < at.size:                                               # few and long: a plain loop, in the same order
            first = upto[0] if low == 0 else 0
            rows = zip(range(low, at.size), at[low:].tolist(), last[low:].tolist(), score[low:].tolist())
            for edge, start, target, value in rows:
                if edge >= first:
                    value += int(best[start - 1])
                if value > best[target]:
                    best[target], edge_to[target] = value, edge
        return edge_to

    @staticmethod
    def _backward(place, edge_to, at, word, begins, keep, word_at):
        """From the last character of each stretch back along the best words."""
        while place.size >= FEW:
            edge = edge_to[place]
            start = at[edge]
            keep[start] = True
            word_at[start] = word[edge]
            place = start[~begins[start]] - 1
        for q in place.tolist():
            while True:
                edge = edge_to[q]
                start = at[edge]
                keep[start], word_at[start] = True, word[edge]
                if begins[start]:
                    break
                q = start - 1

    def blocks(self, texts):
        """Group texts into blocks; yields (text numbers, pieces). A text beyond a block is cut where no word can
        cross."""
        owners, pieces, size = [], [], 0
        for owner, text in enumerate(texts):
            for piece in [text] if len(text) <= BLOCK else self._cut(text):
                if size and size + len(piece) > BLOCK:
                    yield owners, pieces
                    owners, pieces, size = [], [], 0
                owners.append(owner)
                pieces.append(piece)
                size += len(piece) + 1
        if pieces:
            yield owners, pieces

    def _cut(self, text):
        start, end = 0, BLOCK
        while end < len(text):
            codes = np.frombuffer(text[end - BLOCK:end].encode("utf-32-le"), dtype=np.uint32)
            loners = np.flatnonzero(~self.inside[self.char_of_code[codes]])
            if loners.size == 0:                                        # no safe place in this window: a longer piece
                end += BLOCK
                continue
            cut = end - BLOCK + int(loners[-1]) + 1
            yield text[start:cut]
            start, end = cut, cut + BLOCK
        yield text[start:]


def join(pieces):
    """pieces -> (codes uint32 (N,), borders): all texts in one array, a border after each. ValueError on lone
    surrogates."""
    try:
        codes = np.frombuffer((BORDER.join(pieces) + BORDER).encode("utf-32-le"), dtype=np.uint32)
    except UnicodeEncodeError:
        raise ValueError("文本里有孤立的代理字符（lone surrogate），无法编码") from None
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    return codes, np.cumsum(lengths + 1) - 1
