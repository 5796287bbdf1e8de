"""tokenizer.json: our vocabulary as a Unigram model with byte fallback, or as the BPE it is, and the way back.

transformers' Unigram finds the same path as segment.py: the sum of the scores decides, of equal paths the one whose
last word is longer wins. The scores are written as the integers they are, so that no rounding can break a tie. Reserved
ids are special tokens: their surface forms have to look like <|User|>, because a tokenizer file knows no id that text
cannot reach.
"""

from chat_agent.exports.chat_template import hf_template, surface as written, unmarked
from tools.errors import UserError
from tools.template import COLON
from tools.vocab import FIRST_BYTE, FIRST_WORD, RESERVED, Vocab
from tools.words.bpe import CUT, COLONS, KIND as BPE, BpeVocab, content, merges_of

# score of what text must never be cut into; sixteen characters of the rarest words still cost less
NEVER = -(1 << 30)


def surface(index):
    """How a reserved id is written in exports, see chat_template.surface."""
    return written(RESERVED[index])


def byte_name(byte):
    return f"<0x{byte:02X}>"


def extra_name(index):
    """An id beyond the vocabulary, where the model has more rows than words."""
    return f"<|unused{index}|>"


def special_tokens(vocab, size):
    """{id: surface form} of every id that no text may produce."""
    return {i: surface(i) for i in range(FIRST_BYTE)} | {i: extra_name(i) for i in range(len(vocab), size)}


def pieces(vocab, size):
    """(surface form, score) of all ids. size: rows of the embedding, at least len(vocab). UserError 4 if it cannot
    be."""
    check_rows(vocab, size)
    reserved = [(surface(i), NEVER) for i in range(FIRST_BYTE)] + [(byte_name(b), NEVER) for b in range(256)]
    extra = [(extra_name(i), NEVER) for i in range(len(vocab), size)]
    _check(vocab, [name for name, _ in reserved + extra])
    return reserved + list(zip(vocab.words, vocab.scores)) + extra


def check_rows(vocab, size):
    if size < len(vocab):
        raise UserError(f"词表有 {len(vocab)} 项，模型只有 {size} 行。检查点与词表不是一套，请用别的检查点。", 4)


def bpe_model(vocab, size):
    """The model of a BPE's tokenizer.json, with the names of the ids that no text may produce."""
    check_rows(vocab, size)
    model, special = vocab.model(), special_tokens(vocab, size)
    return {**model, "vocab": {name: i for i, name in special.items()} | model["vocab"]}


def _check(vocab, names):
    """Our ids must follow from the surface forms alone."""
    words = set(vocab.words)
    lost = sorted(set("".join(names)) - words)
    if lost or COLON not in words:
        raise UserError(f"词表里没有字符 {(lost or [COLON])[0]!r}，导出后文本会被切成保留词。请用默认方式重建词表后再训练。", 2)
    clash = sorted(words & set(names)) + sorted(w for w in words if len(w) > 1 and w.startswith(COLON))
    if clash:
        raise UserError(f"词表里的词 {clash[0]!r} 与对话模板的写法冲突，不能导出。请去掉这个词重建词表后再训练。", 2)


def tokenizer_json(vocab, size):
    """The content of tokenizer.json. size: rows of the model's embedding."""
    added = [
        {"id": i, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
         "special": True}
             for i, name in special_tokens(vocab, size).items()]
    if vocab.token_kind == BPE:
        return content(bpe_model(vocab, size), [*added, *COLONS], CUT, unmarked())
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": unmarked(),
            "pre_tokenizer": None, "post_processor": None,
            "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
            "model": {"type": "Unigram", "unk_id": vocab.id("[UNK]"), "byte_fallback": True,
                      "vocab": [[name, float(score)] for name, score in pieces(vocab, size)]}}


def tokenizer_config(vocab, size, context, acts=()):
    """The content of tokenizer_config.json, with the chat template."""
    end = surface(vocab.id("<|im_end|>"))
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end,
            "pad_token": surface(vocab.id("[PAD]")),
            "unk_token": surface(vocab.id("[UNK]")), "add_bos_token": False, "add_eos_token": False,
            "clean_up_tokenization_spaces": False, "model_max_length": context,
            "chat_template": hf_template(acts)}


def vocab_from_tokenizer(found, kind=None, digest=None):
    """tokenizer.json as a dict -> Vocab. kind: its token_kind where known; digest: the hash it must have, where known.

    UserError 4 when it is not an export of ours.
    """
    try:
        entries = found["model"]["vocab"]
        if isinstance(entries, dict):
            vocab = BpeVocab.of_merges(merges_of(found["model"]))
            fits = bpe_model(vocab, len(entries))["vocab"] == entries
        else:
            vocab, fits = _worded(entries, kind)
    except (KeyError, TypeError, ValueError, AttributeError):
        fits = False
    if not fits or digest not in (None, vocab.hash):
        raise UserError("tokenizer.json 不是本项目导出的，或被改过，编号对不上。请使用完整的导出文件夹。", 4)
    return vocab


def _worded(entries, kind):
    """[(word, score)] of a Unigram model -> (Vocab, whether it would be written so)."""
    words = [(w, s) for w, s in entries[FIRST_WORD:] if not (s == NEVER and w.startswith("<|unused"))]
    kind = kind or ("char" if all(len(w) == 1 for w, _ in words) else "jieba")
    vocab = Vocab.from_words([w for w, _ in words], [s for _, s in words], kind)
    # what was reserved for later has names by now; a folder from before says <|R4|>
    wanted = pieces(vocab, len(entries))
    known = [(wanted[i][0] if name == f"<|R{i}|>" else name, score) for i, (name, score) in enumerate(entries)]
    return vocab, known == wanted
