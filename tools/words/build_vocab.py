"""Finding the words of a vocabulary in a corpus.

jieba supplies the dictionary of candidate words and their frequencies; the corpus decides which are worth an entry, and
what each is worth (a few rounds of cutting with our own words and counting again). Deterministic: same data, same
words.
"""
import logging
import re
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tools.errors import UserError
from tools.words.sample import sample_texts
from tools.words.segment import Segmenter, join

VOCAB_SIZE = 8000
# share of character occurrences that single-character entries must cover before words get a place
COVERAGE = 0.999
CHAR_PLACES = 2 / 3     # but of all places they take no more than this, or a small vocabulary would hold no word
SAMPLE_BYTES = 24 << 20
MIN_COUNT = 5           # a word seen less often is not worth an entry
MIN_CHARS = 8           # nor a character: an id met a few times is never learned, its bytes are met elsewhere
LITTLE = 500_000        # characters of data that cannot tell what is rare: all of them have a place
SPARE = 1.25            # candidates per place in the first rounds; the useless ones then leave
ALWAYS = [chr(c) for c in range(32, 127)] + ["\n", "："]     # what calls of tools are made of, and the template's colon
MARKS = list("，。、；？！“”‘’（）《》〈〉【】「」『』—…·～￥％　＋－×÷＝")         # little data need not have shown these yet
HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
MIXED = re.compile(f"[{HAN}A-Za-z]{{2,16}}").fullmatch        # no digit, space, line break or punctuation inside a word
NUMERALS = re.compile("[零〇一二三四五六七八九十百千万亿两]+").fullmatch     # stay single like digits: sums need stable digits
LATIN = re.compile("[A-Za-z]+")
LATIN_MAX = 12


def build(data, vocab_size=None, token_kind="char", texts=False, sample_bytes=SAMPLE_BYTES, text_field=None,
          coverage=COVERAGE, cache_dir=None, progress=True):
    """-> Vocab of at most vocab_size entries, counting the 272 reserved and byte ids.

    data: path, pattern or list of paths; with texts=True a list of strings.
    UserError 2 if the kind is unknown or vocab_size is too small, 8 if the files hold no text (a list of strings: 2).
    """
    from tools.vocab import FIRST_WORD, KINDS, Vocab
    if token_kind not in (*KINDS, "bpe"):
        raise UserError(f"token_kind 应为 {'、'.join(KINDS)} 或 bpe，而不是 {token_kind!r}。", 2)
    room = (vocab_size or VOCAB_SIZE) - FIRST_WORD
    if room < len(ALWAYS + MARKS):
        raise UserError(f"vocab_size 太小：至少要 {FIRST_WORD + len(ALWAYS + MARKS)}（保留编号、字节与标点）。", 2)
    sample = list(data) if texts else list(sample_texts(data, sample_bytes, text_field))
    char_count = Counter()
    for text in sample:
        char_count.update(text)
    if not char_count:
        raise UserError("数据里没有可用来建词表的文字。", 2 if texts else 8)
    by_count = [c for c, _ in sorted(char_count.items(), key=lambda item: (-item[1], item[0])) if _is_entry(c)]

    if token_kind == "bpe":
        from tools.words.bpe import BpeVocab
        return BpeVocab.of_texts(sample, room - 1)          # one place is the colon's
    always, learnable = _learnable(by_count, char_count)
    if token_kind == "char":
        words = _fill(always, learnable, room)
        counts = np.array([char_count[w] for w in words], dtype=np.float64)
    else:
        chars = _fill(always, _covering(by_count, char_count, coverage), max(int(room * CHAR_PLACES), len(always)))
        found = _count_words(sample, set(chars), cache_dir, progress)
        words, counts = _choose(sample, chars, found, room, progress)
        words, counts = _with_leftover(words, counts, by_count, char_count, room)
    scores = _scores(counts + 0.5)
    order = sorted(range(len(words)), key=lambda i: (-scores[i], words[i]))
    return Vocab.from_words([words[i] for i in order], [int(scores[i]) for i in order], token_kind)


def _is_entry(char):
    return char != "\0" and not "\ud800" <= char <= "\udfff"


def _scores(counts, total=None):
    """Logarithms of the shares (of `total`, else of the counts' sum), in units of 2**-16."""
    from tools.vocab import UNIT
    return np.rint(np.log(counts / (total or counts.sum())) * UNIT).astype(np.int64)


def _fill(first, more, room):
    """`first`, then of `more` what fits."""
    return list(dict.fromkeys([*first, *more]))[:room]


def _covering(by_count, count, coverage):
    """The most frequent characters that make up `coverage` of all occurrences."""
    upto = np.cumsum([count[c] for c in by_count])
    return by_count[:int(np.searchsorted(upto, coverage * upto[-1])) + 1]


def _learnable(by_count, count):
    """-> the characters that have a place whatever is counted, those that are met often enough; of little data all."""
    if sum(count.values()) < LITTLE:
        return ALWAYS + MARKS, by_count
    return ALWAYS, [c for c in by_count if count[c] >= MIN_CHARS]


def _with_leftover(words, counts, by_count, char_count, room):
    """Places that no word earned go to the characters left out."""
    have = set(words)
    more = [c for c in by_count if c not in have][:room - len(words)]
    return words + more, np.concatenate([counts, [char_count[c] for c in more]])


def _jieba_frequencies(cache_dir):
    """jieba's dictionary as {word: frequency}; its cache goes into cache_dir, without one nothing is written."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jieba
    jieba.setLogLevel(logging.WARNING)
    tokenizer = jieba.Tokenizer()
    if cache_dir:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        tokenizer.tmp_dir = str(cache_dir)
        tokenizer.initialize()
        return tokenizer.FREQ
    return tokenizer.gen_pfdict(tokenizer.get_dict_file())[0]


def jieba_segmenter(chars, cache_dir=None):
    """jieba's most probable path (HMM off) over its own dictionary, restricted to `chars`. -> (Segmenter, words)"""
    frequency = _jieba_frequencies(cache_dir)
    chars = set(chars)
    words = {w: n for w, n in frequency.items() if n > 0 and MIXED(w) and not w.isascii() and chars.issuperset(w)}
    words.update({c: frequency.get(c) or 1 for c in sorted(chars)})
    scores = _scores(np.array(list(words.values()), dtype=np.float64), sum(frequency.values()))
    return Segmenter(list(words), scores), list(words)


def _count_words(sample, chars, cache_dir, progress):
    """{word: count} of the words of two or more characters that occur in the sample."""
    segmenter, words = jieba_segmenter(chars, cache_dir)
    counts = _count(segmenter, sample, progress, "找词")
    found = {words[i]: int(counts[i]) for i in np.flatnonzero(counts) if len(words[i]) > 1 and not NUMERALS(words[i])}
    latin = Counter()
    for text in sample:
        latin.update(LATIN.findall(text))
    found.update({w: n for w, n in latin.items() if 1 < len(w) <= LATIN_MAX and chars.issuperset(w)})
    return {w: n for w, n in found.items() if n >= MIN_COUNT}


def _count(segmenter, sample, progress, what):
    """How often each word is on the best paths of the sample: float (number of words,)."""
    counts = np.zeros(len(segmenter.scores))
    with tqdm(total=sum(map(len, sample)), desc=what, unit="字", unit_scale=True, disable=not progress, leave=False,
              delay=1) as bar:
        for _, pieces in segmenter.blocks(sample):
            words = segmenter.segment(*join(pieces))[1]
            counts += np.bincount(words[words >= 0], minlength=counts.size)
            bar.update(sum(map(len, pieces)))
    return counts


def _choose(sample, chars, found, room, progress):
    """Characters stay; words compete for the remaining places by characters saved, counted on our own best paths."""
    places = max(room - len(chars), 0)
    words = chars + _best(found, int(places * SPARE))
    counts = np.array([found.get(w, 0) for w in words], dtype=np.float64)
    for last in (False, True):
        if last:
            keep = _best({w: n for w, n in zip(words, counts) if len(w) > 1 and n > 0}, places)
            count = dict(zip(words, counts))
            counts = np.array([count[w] for w in chars + keep])
            words = chars + keep
        counts = _count(Segmenter(words, _scores(counts + 0.5)), sample, progress, "定词频")
    return words, counts


def _best(count, n):
    """The n words that save most characters; ties by word."""
    return sorted(count, key=lambda w: (-count[w] * (len(w) - 1), w))[:n]
