"""The vocabulary: text <-> ids, lossless, with reserved ids that no text can produce.

Ids: 16 reserved, then 256 bytes, then the words. A text is cut into our words along the most probable path
(segment.py); a character that is no word becomes its UTF-8 bytes. Finding the words in a corpus is vocab_builder.py's
job.
"""
import hashlib
import json
from pathlib import Path

import numpy as np

from tools.errors import UserError
from tools.words.segment import Segmenter, join
from tools.saving.atomic import write_bytes

FORMAT = 1
KINDS = ("char", "jieba")
RESERVED = ("[PAD]", "<|im_end|>", "[MASK]", "[UNK]", "[think]", "[/think]", "[call]", "[/call]", "[R8]",
            "User", "Assistant", "System", "Tool", "Tools", "[R14]", "[R15]")     # a file holds none of these names
FIRST_BYTE = len(RESERVED)
FIRST_WORD = FIRST_BYTE + 256
UNIT = 1 << 16          # scores are natural logarithms of probabilities, in units of 2**-16
MAX_WORD = 16           # characters


class Vocab:
    """Load a vocabulary, or build one from data and keep it.

    Vocab(json_vocab_path=P) loads P. Vocab(json_text_path=D, json_vocab_path=P, vocab_size=N) loads P where it exists,
    otherwise finds at most N entries in the data D and saves them at P. A damaged P is an error, never a rebuild.
    token_kind: "char" (the default), "jieba" or "bpe". UserError: 2 nothing to load or build from, 4 the file is
    damaged, has more than vocab_size entries or is of another kind than asked for.
    """

    def __init__(self, json_text_path=None, json_vocab_path=None, vocab_size=None, token_kind=None, cache_dir=None,
                 **build_options):
        if json_vocab_path and Path(json_vocab_path).exists():
            self._become(Vocab.load_vocab(json_vocab_path))
            self._check_wanted(vocab_size, token_kind, json_vocab_path)
            return
        if not json_text_path:
            where = f"：{json_vocab_path}" if json_vocab_path else ""
            raise UserError(f"找不到词表{where}。请先训练（会自动建词表），或用 json_text_path 给出建词表的数据。", 2)
        built = Vocab.create_vocab(json_text_path, vocab_size, token_kind or "char", cache_dir=cache_dir,
                                   **build_options)
        self._become(built)
        self.built_from = file_names(json_text_path)
        if json_vocab_path:
            self.save(json_vocab_path)

    def _become(self, other):
        """Of its kind, too: the file or the data decides which."""
        self.__class__ = type(other)
        self.__dict__.update(other.__dict__)

    dialogue = None                     # how another family writes conversations; None = as tools/template.py
    longest = MAX_WORD                  # characters of one entry, at most
    broken = (FIRST_BYTE, FIRST_WORD)   # ids of bytes that no entry covers: from, to

    def _check_wanted(self, vocab_size, token_kind, path):
        if vocab_size and len(self) > vocab_size:
            raise UserError(f"词表 {path} 有 {len(self)} 项，配置的 vocab_size 只有 {vocab_size}。请改 vocab_size，或换一个词表路径重建。", 4)
        if token_kind and token_kind != self.token_kind:
            raise UserError(f"词表 {path} 是 {self.token_kind} 类的，配置要 {token_kind}。请改 token_kind，或换一个词表路径重建。", 4)

    @classmethod
    def create_vocab(cls, data, vocab_size=None, token_kind="char", **options):
        """Build from `data`: a path, a pattern or a list of paths; or texts=True and a list of strings. Options:
        vocab_builder."""
        from tools.words.build_vocab import build
        return build(data, vocab_size, token_kind, **options)

    @classmethod
    def from_words(cls, words, scores, token_kind):
        """words: distinct strings in file order; scores: ints in units of 2**-16."""
        state = {"format": FORMAT, "token_kind": token_kind, "words": list(words), "scores": [int(s) for s in scores]}
        return cls.from_state({**state, "hash": _hash(state)}, "新建的词表")

    @classmethod
    def from_state(cls, state, source="检查点里的词表"):
        """From what `state()` gave. UserError 4 if it is damaged."""
        kind = state.get("token_kind") if isinstance(state, dict) else None
        if kind == "foreign":
            from tools.words.foreign import ForeignVocab as cls         # of another family, see there
        elif kind == "bpe":
            from tools.words.bpe import BpeVocab as cls
        vocab = cls.__new__(cls)
        vocab._adopt(state, source)
        return vocab

    @classmethod
    def load_vocab(cls, path):
        """Read a vocabulary file. UserError: 2 it is missing, 4 it is damaged."""
        if not Path(path).exists():
            raise UserError(f"找不到词表文件：{path}", 2)
        return cls.from_state(_read(path), str(path))

    def _adopt(self, state, source):
        problem = _problem(state)
        if problem:
            raise UserError(f"词表已损坏（{source}）：{problem}。请恢复原文件；确要重建时先把它移走。", 4)
        self.token_kind, self.words, self.scores = state["token_kind"], list(state["words"]), list(state["scores"])
        self.hash, self.built_from = _hash(state), state.get("built_from")
        self._segmenter = Segmenter(self.words, self.scores)
        self._id_of = {word: FIRST_WORD + i for i, word in enumerate(self.words)}
        self._id_of.update({name: i for i, name in enumerate(RESERVED)})
        self._bytes = [b""] * FIRST_BYTE + [bytes([b]) for b in range(256)] + [w.encode() for w in self.words]

    def __len__(self):
        return FIRST_WORD + len(self.words)

    def __eq__(self, other):
        return isinstance(other, Vocab) and self.hash == other.hash

    __hash__ = None

    def __getstate__(self):
        return self.state()

    def __setstate__(self, state):
        self._adopt(state, "pickle")

    def id(self, name):
        """Id of a reserved name ("User", "<|im_end|>", …) or of a word. KeyError if there is none."""
        return self._id_of[name]

    def name(self, index):
        """Printable name of an id: a reserved name, <0x41> for a byte, or the word."""
        if not 0 <= index < len(self):
            raise KeyError(index)
        if index < FIRST_BYTE:
            return RESERVED[index]
        return f"<0x{index - FIRST_BYTE:02X}>" if index < FIRST_WORD else self.words[index - FIRST_WORD]

    def encode(self, text):
        """-> list of ids, none of them reserved. ValueError on lone surrogates."""
        return self.encode_many([text])[0].tolist()

    def encode_many(self, texts):
        """list of N strings -> list of N int32 arrays; much faster than one by one."""
        texts = list(texts)
        parts = [[] for _ in texts]
        for owners, pieces in self._segmenter.blocks(texts):
            for owner, ids in zip(owners, self._encode_block(pieces)):
                parts[owner].append(ids)
        return [part[0] if len(part) == 1 else np.concatenate(part) for part in parts]

    def _encode_block(self, pieces):
        """-> one int32 array per piece, views of the block's ids."""
        codes, borders = join(pieces)
        starts, words = self._segmenter.segment(codes, borders)
        ids = (words + FIRST_WORD).astype(np.int32)
        unknown = np.flatnonzero(words < 0)
        edges = np.searchsorted(starts, borders)                        # tokens before each border
        if unknown.size:
            ids, edges = _with_bytes(ids, edges, unknown, codes[starts[unknown]])
        return np.split(ids, edges[:-1])

    def decode_bytes(self, ids):
        """The exact bytes of the ids; reserved ids and ids beyond the vocabulary give none. For streaming: a character
        may be spread over several ids."""
        table, n = self._bytes, len(self)
        return b"".join([table[i] if 0 <= i < n else b"" for i in np.asarray(ids, dtype=np.int64).reshape(-1).tolist()])

    def decode(self, ids):
        """-> str. Bytes that form no character show as U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def state(self):
        """A JSON-able dict; `from_state` is its inverse. built_from: names of the files it was built from, where they
        are known."""
        known = {"built_from": self.built_from} if self.built_from else {}
        return {"format": FORMAT, "token_kind": self.token_kind, "words": list(self.words), "scores": list(self.scores),
                "hash": self.hash, **known}

    def save(self, path):
        """Write to a temporary name, flush, rename: a crash leaves the old file or the new one. UserError 7 disk full,
        2 not writable."""
        write_bytes(path, json.dumps(self.state(), ensure_ascii=False).encode())


def file_names(paths):
    """The names, without folders, of one path or several."""
    return [Path(str(path).replace("\\", "/")).name for path in ([paths] if isinstance(paths, (str, Path)) else paths)]


def _with_bytes(ids, edges, unknown, codes):
    """Replace the ids at `unknown` by the UTF-8 bytes of their characters; edges move along."""
    width = np.ones(ids.size, dtype=np.int64)
    width[unknown] = 1 + (codes > 0x7F) + (codes > 0x7FF) + (codes > 0xFFFF)
    begin = np.concatenate([[0], np.cumsum(width)])
    out = np.repeat(ids, width)
    places = np.repeat(begin[unknown] - (np.cumsum(width[unknown]) - width[unknown]), width[unknown])
    raw = np.frombuffer(codes.astype("<u4").tobytes().decode("utf-32-le").encode(), dtype=np.uint8)
    out[places + np.arange(raw.size)] = raw.astype(np.int32) + FIRST_BYTE
    return out, begin[edges]


def _read(path):
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
    except OSError as error:
        raise UserError(f"读不了词表文件 {path}：{error.strerror}", 2) from None


def _hash(state):
    """sha256 over everything that decides ids: format, kind, words, scores."""
    content = {key: state[key] for key in ("format", "token_kind", "words", "scores")}
    text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _problem(state):
    """What is wrong with a vocabulary's content, in Chinese; None if nothing is."""
    if not isinstance(state, dict):
        return "不是 JSON 对象"
    if state.get("format") != FORMAT:
        return f"格式版本是 {state.get('format')!r}，这里只能读 {FORMAT}"
    if state.get("token_kind") not in KINDS:
        return f"token_kind 是 {state.get('token_kind')!r}，应为 {' 或 '.join(KINDS)}"
    words, scores = state.get("words"), state.get("scores")
    if not isinstance(words, list) or not isinstance(scores, list) or len(words) != len(scores):
        return "words 与 scores 应是两个等长的列表"
    if not all(isinstance(w, str) and 0 < len(w) <= MAX_WORD for w in words):
        return f"有的词不是 1 到 {MAX_WORD} 个字的字符串"
    if any("\0" in w or any("\ud800" <= c <= "\udfff" for c in w) for w in words):
        return "有的词含有 NUL 或代理字符"
    if not all(type(s) is int and -(1 << 24) < s <= 0 for s in scores):
        return "有的分数不是合理的整数"
    if len(set(words)) != len(words):
        return "有重复的词"
    order = [(-s, w) for w, s in zip(words, scores)]
    if order != sorted(order):
        return "词的次序不对"
    if not set("".join(words)) <= set(words):
        return "有的词用到了词表里没有的字"
    if state.get("hash") != _hash(state):
        return "内容与记下的哈希不符"
    return None
