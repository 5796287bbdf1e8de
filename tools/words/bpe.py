"""A byte-level BPE of one's own (token_kind: bpe), on the package `tokenizers`, with the face of Vocab.

Ids: the 16 reserved, the 256 bytes, the colon of dialogues, then one for every merge. The colon is cut out of every
text first, so that a role's colon never joins what stands behind it; texts are cut into letters, digits and signs
where Qwen2 cuts them, because transformers and llama.cpp know those places too.
"""
import hashlib
import json

import numpy as np

from tools.errors import UserError
from tools.template import COLON
from tools.vocab import FIRST_BYTE, FIRST_WORD, MAX_WORD, RESERVED, Vocab
from tools.words.foreign import byte_letters, checked, kept, package

KIND = "bpe"
FIRST_MERGE = FIRST_WORD + 1
LONGEST = 3 * MAX_WORD          # bytes of one entry, at most
MIN_COUNT = 5                   # a pair seen less often is not worth an entry
PATTERN = (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
           r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
NEEDS = "token_kind bpe "
COLONS = [{"id": FIRST_WORD, "content": COLON, "single_word": False, "lstrip": False, "rstrip": False,
           "normalized": False, "special": False}]
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
NO_COLON = {"type": "Split", "pattern": {"String": COLON}, "behavior": "Removed", "invert": False}
CUT = [{"type": "Split", "pattern": {"Regex": PATTERN}, "behavior": "Isolated", "invert": False}, BYTES]


class BpeVocab(Vocab):
    """state: {"format": 1, "token_kind": "bpe", "merges": [[id, id], …], "hash"}; a merge makes the next id, unless
    its bytes have one already."""

    @classmethod
    def of_texts(cls, texts, places):
        """From strings; places: ids there are for merges. UserError 2 without the package."""
        tokenizer = _opened(content(cls.of_merges([]).model(), first=[NO_COLON, *CUT]))
        tokenizer.train_from_iterator(texts, package(NEEDS).trainers.BpeTrainer(
            vocab_size=256 + places, min_frequency=MIN_COUNT, show_progress=False, max_token_length=LONGEST,
            initial_alphabet=sorted(byte_letters())))
        return cls.of_merges(merges_of(json.loads(tokenizer.to_str())["model"]))

    @classmethod
    def of_merges(cls, merges):
        state = {"format": 1, "token_kind": KIND, "merges": merges}
        return cls.from_state({**state, "hash": _hash(state)}, "新建的词表")

    def _adopt(self, state, source):
        words = _words(state)
        if words is None:
            raise UserError(f"词表已损坏（{source}）。请恢复原文件；确要重建时先把它移走。", 4)
        package(NEEDS)
        self.token_kind, self.merges, self.hash = KIND, state["merges"], state["hash"]
        self.built_from, self._bytes = state.get("built_from"), words
        found = {word.decode(errors="replace"): i for i, word in enumerate(words[FIRST_BYTE:], FIRST_BYTE)}
        self._id_of = found | {name: i for i, name in enumerate(RESERVED)}
        self.longest = max(sum(byte & 0xC0 != 0x80 for byte in word) for word in words)

    broken = (FIRST_BYTE + 0x80, FIRST_WORD)

    def __len__(self):
        return len(self._bytes)

    @property
    def spelled(self):
        """The name of every id from the first byte on, as a BPE of the ecosystem writes it."""
        letter = {byte: letter for letter, byte in byte_letters().items()}
        words = ["".join([letter[byte] for byte in word]) for word in self._bytes[FIRST_BYTE:]]
        words[FIRST_WORD - FIRST_BYTE] = COLON
        return words

    def name(self, index):
        if FIRST_WORD <= index < len(self):
            return self._bytes[index].decode(errors="replace")
        return super().name(index)

    def encode_many(self, texts):
        tokenizer = kept(self.hash, lambda: _opened(content(self.model(), COLONS)))
        made = tokenizer.encode_batch_fast(checked(list(texts)), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in made]

    def model(self):
        """The model of a tokenizer.json; it has no reserved ids."""
        spelled = self.spelled
        ids = {word: i for i, word in enumerate(spelled, FIRST_BYTE)}
        pairs = [[spelled[left - FIRST_BYTE], spelled[right - FIRST_BYTE]] for left, right in self.merges]
        return {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                "vocab": ids, "merges": pairs}

    def state(self):
        about = {"built_from": self.built_from} if self.built_from else {}
        return {"format": 1, "token_kind": KIND, "merges": self.merges, "hash": self.hash, **about}


def merges_of(model):
    """The merges as pairs of ids, of a BPE's model in a tokenizer.json, whatever its own ids are."""
    ids = {letter: FIRST_BYTE + byte for letter, byte in byte_letters().items()}
    merges = []
    for pair in model["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        merges.append([ids[left], ids[right]])
        ids.setdefault(left + right, FIRST_MERGE + len(ids) - 256)
    return merges


def content(model, added=(), first=CUT, normalizer=None):
    """A tokenizer.json. added: its added_tokens; first: what cuts a text into pieces."""
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added),
            "normalizer": normalizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": first},
            "post_processor": None, "decoder": BYTES, "model": model}


def _opened(found):
    return package(NEEDS).Tokenizer.from_str(json.dumps(found))


def _words(state):
    """The bytes of every id; None where the state is damaged."""
    try:
        known = state["format"] == 1 and state["token_kind"] == KIND and state["hash"] == _hash(state)
        words = [b""] * FIRST_BYTE + [bytes([b]) for b in range(256)] + [COLON.encode()]
        have = set(words)
        for left, right in state["merges"] if known else ():
            good = type(left) is type(right) is int and FIRST_WORD not in (left, right)
            word = words[left] + words[right]
            known = known and good and min(left, right) >= FIRST_BYTE and len(word) <= 2 * LONGEST
            if word not in have:
                have.add(word)
                words.append(word)
    except (TypeError, KeyError, ValueError, IndexError):
        known = False
    return words if known else None


def _hash(state):
    """sha256 over everything that decides ids."""
    return hashlib.sha256(json.dumps([state["token_kind"], PATTERN, state["merges"]]).encode()).hexdigest()
