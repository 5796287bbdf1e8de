"""Content cannot forge structure: whatever people write, only the renderer makes roles and ends. Checked on ids, not on
strings."""
import json
import random
from types import SimpleNamespace

import numpy as np
import pytest

from chat_agent.session import Session
from tools.reading.transcripts import unmarked
from tools.formats import Row, parse_line
from tools.template import END, render, render_many, render_prompt
from tools.vocab import FIRST_BYTE, FIRST_WORD, RESERVED, Vocab

USER, ASSISTANT, SYSTEM = 9, 10, 11
ROLE_IDS = {"user": USER, "assistant": ASSISTANT, "system": SYSTEM}
FRAGMENTS = [
    "<|im_end|>", "<|im_end|", "|im_end|>", "<|im", "_end|>", "<|", "|>", "<|im_start|>", "<|endoftext|>", "</s>",
    "<s>", "<|User|>", "<|Assistant|>",
    "User：", "User:", "User", "Assistant：", "Assistant   ：", "Assistant\n：", "Assistant\t:", "System：", "\nUser：",
    "\r\nAssistant：",
    "Ｕｓｅｒ：", "Ａｓｓｉｓｔａｎｔ：", "＜｜im_end｜＞", "<｜im_end｜>", "‹|im_end|›", "Uѕer：", "Аssistant：", "us\u200ber：",
    "＜|im_end|＞", "<\u200b|im_end|>",
    "[PAD]", "[MASK]", "[UNK]", "[R4]", "[R12]", "[INST]", "<0x01>", "<0x0A>", "\\x01", "\\u0001", "&lt;|im_end|&gt;",
    "%3C%7Cim_end%7C%3E",
    "\x01", "\x02", "\x09", "\x0b", "\x10", "\x1b[31m", "\x7f", "\x85", "\ufeff", "\u2028", "\u2029", "\u202e",
    "\u200d", "\ufffd", "\U000e0001",
    "：", ":", "\n", "\n\n", "\r", " ", "　", "9", "10", "1", "你好", "小寻", "😀", "👨\u200d👩", "é", "e\u0301", "ﷺ", "𝕌𝕤𝕖𝕣：",
    "龘",
    '{"role": "assistant"}', "<script>", "'; --", "${x}", "{{user}}", "%s",
]
SPECIAL_TEXT = ["<|im_end|>", "User：", "Assistant：", "System：", "[PAD]", "[MASK]", "<|User|>"]


@pytest.fixture(scope="module", params=["char", "jieba", "bpe"])
def vocab(request):
    """A vocabulary built from text that is full of reserved names: they may well become words."""
    texts = ["<|im_end|>User：你好 Assistant   ：小寻\nSystem：[PAD][MASK][UNK] <|User|> im_end 9 10 11"] * 50
    return Vocab.create_vocab(texts, 600, request.param, texts=True, progress=False)


def hostile(rng):
    text = "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 5)))
    if rng.random() < 0.2:                                              # cut anywhere, in the middle of a name too
        text = text[rng.randrange(len(text)):] or text
    if rng.random() < 0.1:
        text = text.swapcase() if rng.random() < 0.5 else text[::-1]
    return text


def conversation(rng):
    roles = (["system"] if rng.random() < 0.3 else []) + ["user", "assistant"] * rng.randint(1, 3)
    return [{"role": role, "content": hostile(rng)} for role in roles]


def check(ids, messages, vocab, prompt=False):
    """Exactly one role id per message and one end per reply, in their order; what lies between decodes to what was
    written."""
    ids = np.asarray(ids)
    expected = [1]
    for message in messages:
        expected += [ROLE_IDS[message["role"]]] + [1] * (message["role"] == "assistant")
    assert ids[ids < FIRST_BYTE].tolist() == expected + [ASSISTANT] * prompt, messages
    starts = np.flatnonzero(np.isin(ids, (USER, ASSISTANT, SYSTEM)))
    assert (ids[starts + 1] == vocab.id("：")).all()
    stops = np.flatnonzero(ids < FIRST_BYTE)
    for start, message in zip(starts, messages):
        after = stops[stops > start]
        stop = after[0] if len(after) else len(ids)
        assert vocab.decode_bytes(ids[start + 2:stop]) == message["content"].encode(), messages


def check_many(count, seed, vocab):
    """`count` hostile strings in conversations, rendered as the trainers do."""
    rng, made = random.Random(seed), 0
    while made < count:
        rows = [Row("dialogue", messages=conversation(rng)) for _ in range(min(2000, count - made))]
        made += sum(len(row.messages) for row in rows)
        for row, [(ids, _)] in zip(rows, render_many(rows, vocab)):
            check(ids, row.messages, vocab)
    return made


def test_20000_hostile_strings(vocab):
    assert check_many(10_000, 1, vocab) >= 10_000                       # twice: each kind of vocabulary


@pytest.mark.slow
def test_1000000_hostile_strings(vocab):
    assert check_many(500_000, 2, vocab) >= 500_000


@pytest.mark.parametrize("fragment", FRAGMENTS)
def test_every_fragment_alone_everywhere(vocab, fragment):
    messages = [{"role": role, "content": fragment} for role in ("system", "user", "assistant", "user", "assistant")]
    check(render(messages, vocab)[0], messages, vocab)
    check(render_prompt(messages[:4], vocab), messages[:4], vocab, prompt=True)
    check(_asked(vocab, messages[:4]).prompt(10), messages[:4], vocab, prompt=True)
    assert min(vocab.encode(fragment)) >= FIRST_BYTE


def _asked(vocab, messages):
    session = Session(None, vocab, context=10 ** 6)
    session.messages = messages
    return session


def test_a_name_that_is_a_word_is_still_no_role(vocab):
    """"User" may be in the vocabulary as a word. Its id as text is that word's or letters', never the role's."""
    for name in (*RESERVED, *SPECIAL_TEXT):
        ids = vocab.encode(name)
        assert min(ids) >= FIRST_BYTE and vocab.decode(ids) == name
    assert vocab.id("User") == USER and vocab.id("<|im_end|>") == 1


def test_a_vocabulary_with_reserved_names_among_its_words():
    letters = sorted(set("".join(RESERVED)))
    words = ["User", "Assistant", "<|im_end|>", "[PAD]", *letters]
    order = sorted(range(len(words)), key=lambda i: words[i])
    vocab = Vocab.from_words([words[i] for i in order], [-5] * len(words), "char")
    assert vocab.encode("User<|im_end|>[PAD]") == [FIRST_WORD + [words[i] for i in order].index(w)
                                                   for w in ("User", "<|im_end|>", "[PAD]")]
    assert [vocab.id(name) for name in RESERVED] == list(range(16))


def test_bytes_of_reserved_names_are_bytes(vocab):
    """Also when a model or a file spells a name byte by byte."""
    spelled = [FIRST_BYTE + b for b in END.encode()]
    assert vocab.decode(spelled) == END and min(vocab.encode(vocab.decode(spelled))) >= FIRST_BYTE


def test_lines_of_files(vocab):
    """Through the reader of files: every shape of a dialogue, contents full of structure."""
    rng = random.Random(3)
    for _ in range(300):
        question, reply = hostile(rng).strip() or "问", hostile(rng).strip() + "答"     # marks alone are no answer
        shapes = [{"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]},
                  {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": reply}]},
                  {"prompt": question, "response": reply}, {"instruction": question, "output": reply}]
        for shape in shapes:
            row = parse_line(json.dumps(shape, ensure_ascii=rng.random() < 0.5).encode())
            if not unmarked(reply, SimpleNamespace(drop=lambda *_: None)).strip():
                assert isinstance(row, str)             # nothing but another model's end marks: an empty reply, by name
                continue
            assert isinstance(row, Row) and [m["role"] for m in row.messages] == ["user", "assistant"]
            check(render(row.messages, vocab)[0], row.messages, vocab)


def test_only_text_rows_split_at_the_literal_end(vocab):
    row = parse_line(json.dumps({"text": "User：你<|im_end|>Assistant：好<|im_end|>"}).encode())
    assert row.texts == ["User：你", "Assistant：好"]
    for ids, _ in render_many([row], vocab)[0]:
        assert [i for i in ids.tolist() if i < FIRST_BYTE] == [1, 1]
    for near in ("<|im_end|", "＜|im_end|＞", "<|IM_END|>", "<\u200b|im_end|>", "<| im_end |>"):
        row = parse_line(json.dumps({"text": f"你{near}好"}).encode())
        assert row.texts == [f"你{near}好"]


def test_roles_cannot_be_smuggled_in():
    for role in ("User：", "assistant：", "<|im_end|>", "root", "", 9, None, ["user"]):
        line = json.dumps({"messages": [{"role": role, "content": "x"}, {"role": "assistant", "content": "y"}]}).encode(
            )
        assert isinstance(parse_line(line), str)                        # the reason why the line is bad
