"""The vocabulary: lossless, exact against a plain Viterbi and against Hugging Face's Unigram, refused when damaged."""
import json
import random
from pathlib import Path

import numpy as np
import pytest

from tools import Vocab
from tools.words import segment
from tools import vocab as vocab_module
from tools.errors import UserError
from tools.words.sample import sample_texts
from tools.vocab import FIRST_BYTE, FIRST_WORD, MAX_WORD, RESERVED, UNIT
from tools.words.build_vocab import ALWAYS, LITTLE, MIN_CHARS, jieba_segmenter

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
TEXTS = ["今天天气很好，我们去公园散步。", "公园里有很多人，天气也很好！", "我喜欢apple和banana，也喜欢散步。\n第2行：12+34=46",
         "昨天我们在公园散步，今天还去公园。", "她说：“今天的天气真好。”"] * 8
ODD = ["", " ", "  a\t\tb  ", "\n\n\r\n", "\u2028\u2029\x85", "\x00\x01", "😀👨‍👩‍👧", "é e\u0301", "\U0010ffff", "𠮷野家",
       "ﷺ", "〈全角　空格〉",
       "<|im_end|><|User|>User：", "<0x41><0xE4>", "12345 ٣", "\ufeffBOM", "e\u0300" * 30]


@pytest.fixture(scope="module", params=["char", "jieba", "bpe"])
def vocab(request):
    return Vocab.create_vocab(TEXTS, 500, request.param, texts=True, progress=False)


@pytest.fixture(scope="module", params=["char", "jieba"])
def worded(request):
    """One that has words with scores."""
    return Vocab.create_vocab(TEXTS, 500, request.param, texts=True, progress=False)


def random_text(rng, length):
    """Any code points but surrogates, with runs of what the vocabulary knows."""
    out = []
    for _ in range(length):
        kind = rng.random()
        if kind < 0.5:
            out.append(rng.choice(TEXTS)[rng.randrange(8):][:rng.randrange(1, 6)])
        else:
            code = rng.choice([rng.randrange(0x80), rng.randrange(0x4E00, 0x9FFF), rng.randrange(0x110000)])
            out.append("" if 0xD800 <= code < 0xE000 else chr(code))
    return "".join(out)


def plain_encode(text, words, scores):
    """Unigram Viterbi as sentencepiece and Hugging Face write it: starts from left to right, only a better path
    replaces."""
    value = {w: s / UNIT for w, s in zip(words, scores)}
    number = {w: FIRST_WORD + i for i, w in enumerate(words)}
    unknown = min(value.values(), default=0.0) - 10.0
    best, came = [0.0] + [None] * len(text), [None] * (len(text) + 1)
    for i in range(len(text)):
        for j in range(i + 1, min(i + MAX_WORD, len(text)) + 1):
            step = value.get(text[i:j], unknown if j == i + 1 else None)
            if step is not None and (best[j] is None or best[i] + step > best[j]):
                best[j], came[j] = best[i] + step, i
    cut, j = [], len(text)
    while j:
        cut.append(text[came[j]:j])
        j = came[j]
    ids = []
    for piece in reversed(cut):
        ids += [number[piece]] if piece in number else [FIRST_BYTE + b for b in piece.encode()]
    return ids


def random_vocab(rng, alphabet, n_words, n_scores):
    """Few distinct scores over few letters: equal paths everywhere."""
    words = set(alphabet) | {"".join(rng.choices(alphabet, k=rng.randrange(2, 6))) for _ in range(n_words)}
    pairs = sorted(((-rng.randrange(1, n_scores + 1) * UNIT // 2, w) for w in words), key=lambda p: (-p[0], p[1]))
    return Vocab.from_words([w for _, w in pairs], [s for s, _ in pairs], "jieba")


def test_D3_reserved_ids(vocab):
    names = ["[PAD]", "<|im_end|>", "[MASK]", "[UNK]"]
    assert [vocab.id(n) for n in names] == [0, 1, 2, 3]
    assert [vocab.id(n) for n in ("User", "Assistant", "System")] == [9, 10, 11]
    assert FIRST_BYTE == 16 and FIRST_WORD == 272 and vocab.name(9) == "User" and vocab.name(16 + 0x41) == "<0x41>"
    assert vocab.name(vocab.id("，")) == "，"
    assert vocab.decode([0, 1, 9, 10, vocab.id("好"), len(vocab)]) == "好"
    for wrong in ("没有这个词", -1):
        with pytest.raises(KeyError):
            vocab.id(wrong) if isinstance(wrong, str) else vocab.name(wrong)


def test_no_text_gives_a_reserved_id_and_decode_is_the_inverse(vocab):
    rng = random.Random(1)
    texts = ODD + [random_text(rng, rng.randrange(40)) for _ in range(500)] + list(RESERVED) + ["".join(RESERVED)]
    for text, ids in zip(texts, vocab.encode_many(texts)):
        assert ids.dtype == np.int32 and (ids >= FIRST_BYTE).all() and (ids < len(vocab)).all()
        assert vocab.decode(ids) == text
        assert vocab.decode_bytes(ids) == text.encode()
        assert vocab.encode(text) == ids.tolist()


def test_lone_surrogates_are_refused_clearly(vocab):
    with pytest.raises(ValueError, match="代理字符"):
        vocab.encode("好\ud800好")


def test_decode_shows_broken_bytes_and_keeps_them_for_streaming(vocab):
    ids = vocab.encode("😀")
    assert len(ids) == 4 and vocab.decode(ids[:2]) == "\ufffd"
    assert vocab.decode_bytes(ids[:2]) + vocab.decode_bytes(ids[2:]) == "😀".encode()


@pytest.mark.parametrize("few, block", [(1, 1 << 18), (48, 64), (1 << 40, 1 << 18)])
def test_encode_equals_a_plain_viterbi(few, block, monkeypatch):
    """In lockstep, in the plain loop and across blocks; with ties."""
    monkeypatch.setattr(segment, "FEW", few)
    monkeypatch.setattr(segment, "BLOCK", block)
    rng = random.Random(few)
    for _ in range(40):
        vocab = random_vocab(rng, "ab一二。", rng.randrange(30), rng.choice([2, 4, 100]))
        texts = ["".join(rng.choices("ab一二。ab一二x😀", k=rng.randrange(30))) for _ in range(30)]
        texts += ["ab" * 60 + "二一" * 40, "a" * 150, "x" * 70]
        for text, ids in zip(texts, vocab.encode_many(texts)):
            assert ids.tolist() == plain_encode(text, vocab.words, vocab.scores), text


def test_of_equal_paths_the_longest_last_word_wins():
    vocab = Vocab.from_words(["a", "aa", "aaa"], [-UNIT] * 3, "jieba")
    assert [vocab.name(i) for i in vocab.encode("aaaa")] == ["a", "aaa"]
    assert [vocab.name(i) for i in vocab.encode("aaaaa")] == ["aa", "aaa"]


def test_a_real_vocabulary_equals_a_plain_viterbi(worded):
    rng = random.Random(5)
    for text in ODD + TEXTS[:5] + [random_text(rng, 20) for _ in range(200)]:
        assert worded.encode(text) == plain_encode(text, worded.words, worded.scores)


def as_unigram(vocab):
    """Our vocabulary as Hugging Face's model. Reserved names and bytes score far below any six characters, so that a
    text
    such as <0x41> is cut into its letters."""
    tokenizers = pytest.importorskip("tokenizers")
    low = [(f"<|r{i}|>", -1000.0) for i in range(FIRST_BYTE)] + [(f"<0x{b:02X}>", -1000.0) for b in range(256)]
    pieces = low + [(w, s / UNIT) for w, s in zip(vocab.words, vocab.scores)]
    return tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=3, byte_fallback=True))


def test_encode_equals_hugging_face_unigram(worded):
    judge, rng = as_unigram(worded), random.Random(2)
    texts = [t for t in ODD if "<|r" not in t] + [random_text(rng, rng.randrange(30)) for _ in range(1500)]
    for text, ids in zip(texts, worded.encode_many(texts)):
        assert ids.tolist() == judge.encode(text).ids, text


def test_ties_fall_as_in_hugging_face_unigram():
    rng = random.Random(3)
    for _ in range(30):
        vocab = random_vocab(rng, "ab一二。", 25, 3)
        judge = as_unigram(vocab)
        for _ in range(30):
            text = "".join(rng.choices("ab一二。x", k=rng.randrange(40)))
            assert vocab.encode(text) == judge.encode(text).ids, text


@pytest.mark.slow
def test_real_text_equals_hugging_face_unigram():
    if not SHARED.exists():
        pytest.skip("../shared/data is missing")
    texts = list(sample_texts([SHARED / "text.jsonl", SHARED / "dialogue.jsonl"], 6 << 20))
    vocab = Vocab.create_vocab(texts, 6000, "jieba", texts=True, progress=False)
    judge = as_unigram(vocab)
    for text, ids in zip(texts, vocab.encode_many(texts)):
        assert ids.tolist() == judge.encode(text).ids
        assert vocab.decode(ids) == text


def test_a_long_text_is_cut_only_where_no_word_crosses(monkeypatch):
    vocab = Vocab.create_vocab(TEXTS, 500, "jieba", texts=True, progress=False)
    text = "".join(TEXTS) + "公园" * 200 + "天气" * 300
    whole = vocab.encode(text)
    for block in (7, 50, 333):
        monkeypatch.setattr(segment, "BLOCK", block)
        assert vocab.encode(text) == whole
        assert [i.tolist() for i in vocab.encode_many(["好", text, "", text])] == [vocab.encode("好"), whole, [], whole]


def test_built_vocabulary_keeps_its_promises(worded):
    words = set(worded.words)
    assert len(worded) <= 500 and set(ALWAYS) <= words and set("".join(words)) <= words
    assert not [w for w in words if len(w) > 1 and (len(w) > MAX_WORD or any(c.isdigit() or c.isspace() for c in w))]
    if worded.token_kind == "char":
        assert {len(w) for w in words} == {1}
    else:
        assert {"公园", "天气", "散步", "apple"} <= words
        assert [worded.name(i) for i in worded.encode("46\n\n7")] == ["4", "6", "\n", "\n", "7"]
    total = np.exp(np.array(worded.scores) / UNIT).sum()
    assert abs(total - 1) < 0.01                                        # scores are log-probabilities


def test_characters_that_are_hardly_met_are_left_to_their_bytes():
    some = ["猫猫猫【】" + "狗" * MIN_CHARS, "鸟" * (MIN_CHARS - 1) + "，", "《" * MIN_CHARS]
    vocab = Vocab.create_vocab([*some, "猫" * LITTLE], 500, "char", texts=True, progress=False)
    assert {"猫", "狗", "《"} <= set(vocab.words) and not {"鸟", "【", "，"} & set(vocab.words)
    little = Vocab.create_vocab(some, 500, "char", texts=True, progress=False)
    assert {"猫", "鸟", "【", "，"} <= set(little.words)                # it cannot tell what is rare
    assert vocab.decode(vocab.encode("鸟，【猫】")) == "鸟，【猫】"


def test_building_is_deterministic_and_respects_vocab_size():
    for kind in ("char", "jieba", "bpe"):
        sizes = [len(Vocab.create_vocab(TEXTS, n, kind, texts=True, progress=False)) for n in (420, 440)]
        assert sizes[0] <= 420 and sizes[1] <= 440
        a, b = (Vocab.create_vocab(list(TEXTS), 480, kind, texts=True, progress=False) for _ in range(2))
        assert a == b and a.hash == b.hash and a.state() == b.state()
    for size in (405, 430):                                             # words find a place however small it is
        assert max(map(len, Vocab.create_vocab(TEXTS, size, "jieba", texts=True, progress=False).words)) > 1
    for wrong in ({"vocab_size": 300}, {"token_kind": "wordpiece"}):
        with pytest.raises(UserError) as error:
            Vocab.create_vocab(TEXTS, texts=True, progress=False, **wrong)
        assert error.value.code == 2


def test_candidates_are_cut_as_jieba_cuts_them():
    """Our Viterbi over jieba's dictionary finds a path of jieba's own probability (which of two equal ones may
    differ)."""
    jieba = pytest.importorskip("jieba")
    judge = jieba.Tokenizer()
    judge.FREQ, judge.total = judge.gen_pfdict(judge.get_dict_file())
    judge.initialized = True
    texts = [t for text in TEXTS[:5] for t in text.split("，")] + ["南京市长江大桥", "研究生命的起源", "他说的确实在理", "结婚的和尚未结婚的"]
    texts = ["".join(c for c in t if "\u4e00" <= c <= "\u9fff") for t in texts]
    segmenter, words = jieba_segmenter(set("".join(texts)))

    def score(cut):
        return sum(np.log(judge.FREQ.get(w) or 1) - np.log(judge.total) for w in cut)
    for text in texts:
        ours = [words[i] for i in segmenter.segment(*segment.join([text]))[1]]
        assert "".join(ours) == text
        assert score(ours) == pytest.approx(score(judge.cut(text, HMM=False)), abs=1e-3)


def test_jieba_keeps_its_cache_in_our_folder(tmp_path):
    Vocab.create_vocab(TEXTS, 480, "jieba", texts=True, progress=False, cache_dir=tmp_path / "cache")
    assert (tmp_path / "cache" / "jieba.cache").exists()


def test_D3_load_or_build(tmp_path):
    data, path = tmp_path / "a.jsonl", tmp_path / "deep" / "vocab.json"
    data.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in TEXTS), encoding="utf-8")
    built = Vocab(data, path, 500, "jieba")
    assert built.id("User") == 9 and [p.name for p in path.parent.iterdir()] == ["vocab.json"]
    data.unlink()
    for loaded in (Vocab(data, path, 500), Vocab(json_vocab_path=path), Vocab.load_vocab(path),
                   Vocab.from_state(built.state())):
        assert loaded == built and loaded.encode(TEXTS[0]) == built.encode(TEXTS[0])
    for arguments, code in [((None, tmp_path / "no.json"), 2), ((), 2), ((None, path, 300), 4),
                            ((None, path, 500, "char"), 4)]:
        with pytest.raises(UserError) as error:
            Vocab(*arguments)
        assert error.value.code == code


def test_a_changed_letter_is_noticed(tmp_path):
    path = tmp_path / "vocab.json"
    Vocab.create_vocab(TEXTS, 500, "char", texts=True, progress=False).save(path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("公", "共", 1), encoding="utf-8")
    with pytest.raises(UserError) as error:
        Vocab.load_vocab(path)
    assert error.value.code == 4


@pytest.mark.parametrize("harm", [
    lambda s: "[1, 2", lambda s: "[]", lambda s: "", lambda s: {**s, "format": 2}, lambda s: {**s, "token_kind": "bpe"},
    lambda s: {**s, "hash": "0" * 64}, lambda s: {k: v for k, v in s.items() if k != "hash"},
    lambda s: {**s, "words": s["words"][:-1]},
    lambda s: {**s, "words": s["words"][:-1], "scores": s["scores"][:-1], "hash": s["hash"][::-1]},
    lambda s: {**s, "words": s["words"][1:2] + s["words"][:1] + s["words"][2:]},
    lambda s: {**s, "words": s["words"][:1] * 2 + s["words"][2:]}, lambda s: {**s, "words": [1] + s["words"][1:]},
    lambda s: {**s, "scores": [0.5] + s["scores"][1:]}, lambda s: {**s, "scores": s["scores"][:-1] + [-(1 << 30)]},
    lambda s: {**s, "words": s["words"][:-1] + ["没有的字"]},
    lambda s: {**s, "words": s["words"][:-1] + ["\ud800"], "hash": ""},
])
def test_a_damaged_file_is_an_error_never_a_rebuild(tmp_path, harm):
    data, path = tmp_path / "a.jsonl", tmp_path / "vocab.json"
    data.write_text(json.dumps({"text": TEXTS[0]}), encoding="utf-8")
    good = Vocab.create_vocab(TEXTS, 500, "char", texts=True, progress=False).state()
    harmed = harm(good)
    if isinstance(harmed, dict) and harmed.get("hash") == good["hash"]:
        # a consistent forgery: the content itself is refused
        harmed["hash"] = vocab_module._hash(harmed)
    harmed = harmed if isinstance(harmed, str) else json.dumps(harmed)
    path.write_text(harmed, encoding="utf-8")
    with pytest.raises(UserError) as error:
        Vocab(data, path, 500)
    assert error.value.code == 4
    assert path.read_text(encoding="utf-8") == harmed
