"""Another family's tokenizer with the face of Vocab, on the package `tokenizers`: byte-level BPE, BPE and Unigram in
the manner of sentencepiece, WordPiece.

What opens and closes turns are special tokens; a text can never become one, because the tokenizer that reads texts does
not know them.
"""
import base64
import copy
import hashlib
import json
import os
import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from tools.errors import UserError
from tools.vocab import Vocab
from tools.words.dialogue import Dialogue
from tools.words.probing import probed

KIND = "foreign"
FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
         "added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja")
MARK = re.compile(r"<[^<>\s]*>|\[[A-Z_]+\]|<\|.*\|>", re.S)   # what looks like structure, special or not


class ForeignVocab(Vocab):
    """files: {name: content} of the folder; dialogue: how a conversation is written (tools/words/dialogue.py)."""

    @classmethod
    def of_folder(cls, folder):
        """UserError 2 without the package, 3 when files are missing or damaged, 4 for a tokenizer of another kind."""
        files = {name: _packed((Path(folder) / name).read_bytes()) for name in FILES if (Path(folder) / name).is_file()}
        try:
            return cls._of_files(files, str(folder))
        except (UserError, ImportError):
            raise
        except Exception as error:                          # the package and templates raise whatever they like
            why = f"{type(error).__name__}：{' '.join(str(error).split())[:100]}"
            raise UserError(f"{folder} 的词表或对话模板读不懂（{why}）。请重新下载这个文件夹，或升级 tokenizers。", 3) from None

    @classmethod
    def _of_files(cls, files, source):
        config = _json(files, "tokenizer_config.json")
        tokenizer = json.loads(_tokenizer(files, config))
        names = {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
        state = {"format": 1, "token_kind": KIND, "files": files,
                 "dialogue": probed(_template(files, config), _ends(files, config, names), names)}
        return cls.from_state({**state, "hash": _hash(state)}, source)

    def _adopt(self, state, source):
        if not isinstance(state, dict) or state.get("format") != 1 or state.get("hash") != _hash(state):
            raise UserError(f"词表已损坏（{source}）。请重新带入底座：chat_agent/export.py --from hf。", 4)
        self.token_kind, self.built_from, self.hash = KIND, None, state["hash"]
        self.files, self._state = state["files"], state
        shared = kept(self.hash, lambda: _Prepared(self.files))
        self.__dict__.update(shared.__dict__)
        self.dialogue = Dialogue(state["dialogue"], self)

    broken = (0, 0)                     # where its single bytes stand, no one place says
    talks = property(lambda self: self._state["dialogue"]["talks"])

    def __len__(self):
        return len(self._bytes)

    def file(self, name):
        """The bytes of one of the folder's files."""
        return _unpacked(self.files[name])

    def id(self, name):
        index = self._whole.token_to_id(name)
        if index is None:
            raise KeyError(name)
        return index

    def name(self, index):
        if not 0 <= index < len(self):
            raise KeyError(index)
        return self._whole.id_to_token(index) or f"<unused{index}>"

    def encode(self, text):
        return self.encode_many([text])[0].tolist()

    def encode_many(self, texts):
        return [ids for ids, _ in self.encode_pieces([(text, True) for text in texts])]

    def encode_pieces(self, pieces):
        """[(text, whether it stands at the very beginning)] -> [(ids int32 (T,), the character at which each begins)].
        """
        texts = list(pieces)
        checked([text for text, _ in texts])
        done = [None] * len(texts)
        for first, tokenizer in ((True, self._first), (False, self._later)):
            places = [i for i, (_, begins) in enumerate(texts) if begins is first]
            for i, made in zip(places, tokenizer.encode_batch([texts[i][0] for i in places], add_special_tokens=False)):
                starts = np.array([start for start, _ in made.offsets], dtype=np.int64)
                done[i] = np.array(made.ids, dtype=np.int32), starts
        return done

    def state(self):
        return dict(self._state)


class _Prepared:
    """What is made of the files once: the tokenizer as it is, those for texts, and the bytes of every id."""

    def __init__(self, files):
        Tokenizer = package().Tokenizer
        whole = json.loads(_tokenizer(files, _json(files, "tokenizer_config.json")))
        whole.update(truncation=None, padding=None, post_processor=None)
        self._whole = Tokenizer.from_str(json.dumps(whole))
        first, later = (json.dumps(_for_texts(whole, begins)) for begins in (True, False))
        self._first = Tokenizer.from_str(first)
        self._later = self._first if later == first else Tokenizer.from_str(later)
        known = self._whole.get_vocab(with_added_tokens=True)
        marks = {t["id"] for t in whole.get("added_tokens") or () if t["special"]}
        self._bytes = [b""] * (max(known.values()) + 1)
        spelled = _speller(whole)
        for word, index in known.items():
            self._bytes[index] = b"" if index in marks else spelled(word)
        self.longest = max(map(len, known))


_kept = {}


def kept(key, make):
    """One per process: a worker, a chat and a diary read the same files."""
    if key not in _kept:
        _kept.clear()
        _kept[key] = make()
    return _kept[key]


def checked(texts):
    """The same strings. ValueError on lone surrogates, as Vocab raises it."""
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        raise ValueError("文本里有孤立的代理字符（lone surrogate），无法编码") from None
    return texts


def _for_texts(whole, begins):
    """The tokenizer for texts: it knows no marks, and no piece of its vocabulary spells one."""
    model, rest = whole["model"], {name: part for name, part in whole.items() if name != "model"}
    made = {**copy.deepcopy(rest), "model": {**model, "vocab": copy.copy(model["vocab"])}}     # its merges are many
    marks = {t["content"]: t["id"] for t in made.get("added_tokens") or ()
             if t["special"] or MARK.fullmatch(t["content"])}
    made["added_tokens"] = [t for t in made.get("added_tokens") or () if t["content"] not in marks]
    words = made["model"]["vocab"]
    if isinstance(words, dict):
        for mark in marks.keys() & words.keys():
            index = words.pop(mark)
            words[f"\ufdd0{index}"] = index
        unknown = made["model"].get("unk_token")
        if unknown in marks and unknown in whole["model"]["vocab"]:
            made["model"]["unk_token"] = f"\ufdd0{marks[unknown]}"
    else:
        made["model"]["vocab"] = [[f"\ufdd0{i}" if word in marks else word, score]
                                  for i, (word, score) in enumerate(words)]
    if not begins:
        _never_first(made.get("pre_tokenizer"))
    return made


def _never_first(part):
    """Metaspace may put its mark before the first piece of a whole document only."""
    if isinstance(part, dict):
        if part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first":
            part["prepend_scheme"] = "never"
        for inner in part.get("pretokenizers") or ():
            _never_first(inner)


def _speller(whole):
    """A function from a token's name to the bytes it stands for."""
    text = json.dumps([whole.get("decoder"), whole.get("pre_tokenizer")])
    if '"ByteLevel"' in text:
        table = byte_letters()
        return lambda word: bytes([table[c] for c in word]) if all(c in table for c in word) else word.encode()
    if whole["model"]["type"] == "WordPiece":
        continued = whole["model"]["continuing_subword_prefix"]
        return lambda word: (word.removeprefix(continued) if word.startswith(continued) else
                             f" {word}" if word.isascii() and word.isalnum() else word).encode()

    def pieces(word):
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", word)
        return bytes([int(byte[1], 16)]) if byte else word.replace("\u2581", " ").encode()
    return pieces


@lru_cache(1)
def byte_letters():
    """{letter: byte} of GPT-2's way to write bytes as printable letters."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


# ---- the folder's files ----

def package(who="别家的词表"):
    """The package; in one thread, so that processes may be forked behind it. UserError 2 where it is missing."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import tokenizers
    except ImportError:
        raise UserError(f"{who}需要 tokenizers，请先运行：pip install -r requirements-export.txt", 2) from None
    return tokenizers


def _tokenizer(files, config):
    """tokenizer.json as text or bytes, made of older files where there is none."""
    if "tokenizer.json" in files:
        return _unpacked(files["tokenizer.json"])
    names = {name: _unpacked(files[name]) for name in ("vocab.txt", "vocab.json", "merges.txt") if name in files}
    if "vocab.txt" in names:
        words = {word: i for i, word in enumerate(_text(names["vocab.txt"]).split("\n")) if word}
        made = package().BertWordPieceTokenizer(words, lowercase=config.get("do_lower_case", True))
        found = json.loads(made.to_str())
        known = {token["content"] for token in found["added_tokens"]}
        missing = [w for w in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if w in words and w not in known]
        found["added_tokens"] += [{"id": words[w], "content": w, "single_word": False, "lstrip": False, "rstrip": False,
                                   "normalized": False, "special": True} for w in missing]
        return json.dumps(found)
    if len(names) == 2:
        merges = [tuple(line.split(" ")) for line in _text(names["merges.txt"]).split("\n")
                  if line and not line.startswith("#version")]
        made = package().ByteLevelBPETokenizer(json.loads(names["vocab.json"]), merges)
        made.add_special_tokens(["<|endoftext|>"])
        return made.to_str()
    raise UserError("文件夹里没有 tokenizer.json（也没有 vocab.txt，或 vocab.json 加 merges.txt）。请先用 transformers 存一份 fast 分词器。", 4)


def _template(files, config):
    """The folder's chat template, a string, or None."""
    if "chat_template.jinja" in files:
        return _text(_unpacked(files["chat_template.jinja"]))
    found = config.get("chat_template")
    if isinstance(found, list):                             # several: the one for plain talk
        found = next((one["template"] for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _ends(files, config, names):
    """{"begin", "end": names of the tokens around a text}. Where nothing is said, what is called so by others."""
    said = {**_json(files, "special_tokens_map.json"), **config}

    def spelled(key):
        value = said.get(key)
        value = value.get("content") if isinstance(value, dict) else value
        return value if isinstance(value, str) else None
    end = next(
        (n for n in (spelled("eos_token"), spelled("sep_token"), "</s>", "<|endoftext|>", "[SEP]") if n in names),
               None)
    if end is None:
        raise UserError("分词器里没有结束符（eos_token），这样的底座带不进来。", 4)
    begin = next((n for n in (spelled("bos_token"), spelled("cls_token"), "[CLS]") if n in names), end)
    return {"begin": begin, "end": end}


def _json(files, name):
    try:
        found = json.loads(_unpacked(files[name])) if name in files else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{name} 读不懂。请重新下载这个文件夹。", 3)
    return found


def _packed(data):
    """bytes -> str where they are UTF-8, else {"base64": str}: checkpoints hold text and tensors only."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode()}


def _unpacked(content):
    return content.encode() if isinstance(content, str) else base64.b64decode(content["base64"])


def _text(data):
    """bytes -> str, without the mark that some editors write first, with line breaks as \\n."""
    return data.decode("utf-8-sig").replace("\r\n", "\n")


def _hash(state):
    """sha256 over everything that decides ids."""
    content = [state.get("token_kind"), {n: c for n, c in state.get("files", {}).items() if n != "config.json"},
               state.get("dialogue")]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, sort_keys=True).encode()).hexdigest()
