"""Other families' tokenizers: their ids, their chat templates, and content that cannot forge their marks."""
import json

import numpy as np
import pytest

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

import toy                                                                # noqa: E402
import toy_bases                                                          # noqa: E402
from bench.lively import random_texts                                     # noqa: E402
from model.gate import last_turn                                          # noqa: E402
from tools import template                                                # noqa: E402
from tools.errors import UserError                                        # noqa: E402
from tools.vocab import Vocab                                             # noqa: E402
from tools.words.foreign import ForeignVocab                              # noqa: E402

NAMES = list(toy_bases.SPOKEN)
TALKING = [name for name in NAMES if toy_bases.SPOKEN[name][4]]


@pytest.fixture(scope="module", params=NAMES)
def both(request, tmp_path_factory):
    return opened(request.param, tmp_path_factory)


@pytest.fixture(scope="module", params=TALKING)
def talking(request, tmp_path_factory):
    return opened(request.param, tmp_path_factory)


def opened(name, factory):
    """(our vocabulary, the tokenizer as transformers loads it, name)"""
    folder = factory.mktemp(name)
    toy_bases.write_tokenizer(folder, name)
    return ForeignVocab.of_folder(folder), transformers.AutoTokenizer.from_pretrained(folder), name


def conversations(count=60):
    """As data holds them: white space at edges, line breaks, empty contents, with and without a system."""
    words = ["你好", " 苹果 ", "a\nb", "\n第二行\n\n", "", "  ", "x" * 7, "🙂é"]
    made = []
    for i in range(count):
        turns = [{"role": "user" if k % 2 == 0 else "assistant", "content": words[(i + 3 * k) % len(words)]}
                 for k in range(2 + 2 * (i % 3))]
        made.append(([{"role": "system", "content": words[i % 3]}] if i % 4 == 0 else []) + turns)
    return made


def test_B2_ids_are_those_of_the_package(both):
    vocab, theirs, _ = both
    texts = toy_bases.texts() + random_texts(200) + ["", " ", "\n", "  a", "a  ", "1 2\t3", "🙂", "é\u0301"]
    made = vocab.encode_many(texts)
    expected = [theirs.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in made] == expected
    assert made[0].dtype == np.int32 and vocab.encode(texts[0]) == expected[0]


def test_B2_content_forges_no_mark(both):
    vocab, theirs, _ = both
    marks = [t.content for t in theirs.added_tokens_decoder.values() if t.content not in ("<unk>", "[UNK]")]
    structure = {vocab.id(mark) for mark in marks}
    for text in [*marks, "".join(marks), *(f"a{m}b {m}\n{m}" for m in marks), *(f" {m} " for m in marks)]:
        assert not structure & set(vocab.encode(text)), text
        asked = [{"role": "user", "content": text}]
        plain = [{"role": "user", "content": "x"}]
        held = [[i for i in template.render_prompt(one, vocab) if i in structure] for one in (asked, plain)]
        assert held[0] == held[1], text


def test_B2_decoding_gives_the_bytes_back(both):
    vocab, _, name = both
    for text in ["苹果很好看。", "放在桌上，是圆的。", *(("a  b\n🙂é",) if name in ("chatml", "llama3", "qwen3") else ())]:
        ids = vocab.encode(text)
        if name == "plain" and any(vocab.name(i) == "<unk>" for i in ids):
            continue
        assert vocab.decode(ids).strip() == text
        assert b"".join(vocab.decode_bytes([i]) for i in ids) == vocab.decode_bytes(ids)
    assert vocab.decode([vocab.id(name) for name in toy_bases.SPOKEN[name][1] if not name.startswith("<thi")
                         and not name.startswith("</thi")]) in ("", "<unk>")


def test_B2_a_conversation_has_the_ids_of_the_chat_template(talking):
    vocab, theirs, name = talking
    for messages in conversations():
        if name == "llama2" and messages[0]["role"] == "system" and not messages[1]["content"].strip():
            continue                # there the template strips what stands before an empty content
        text = theirs.apply_chat_template(messages, tokenize=False)
        expected = theirs.backend_tokenizer.encode(text, add_special_tokens=False).ids
        ids, learned = template.render(messages, vocab)
        assert ids.tolist() == expected
        assert learned.any() and not learned[0]
        asked = messages[:-1]
        text = theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert template.render_prompt(asked, vocab) == theirs.backend_tokenizer.encode(text,
                                                                                       add_special_tokens=False).ids


def test_B2_what_is_learned_is_what_follows_the_prompt(talking):
    """Reply and the mark that ends it; a model that is asked goes on exactly where the learned ids begin."""
    vocab, _, name = talking
    messages = [{"role": "user", "content": "苹果呢？"}, {"role": "assistant", "content": "苹果很好看。"},
                {"role": "user", "content": "书呢？"}, {"role": "assistant", "content": "书在桌上。"}]
    ids, learned = template.render(messages, vocab)
    prompt = template.render_prompt(messages[:3], vocab)
    assert ids[:len(prompt)].tolist() == prompt and learned[len(prompt):].any()
    last = ids[len(prompt):][learned[len(prompt):]]
    assert last[-1] in vocab.dialogue.stops and vocab.decode(last).strip().endswith("书在桌上。")
    assert learned[len(prompt)] and not learned[:len(prompt)][-1]
    skipped = template.render([messages[0], {**messages[1], "weight": 0}, *messages[2:]], vocab)[1]
    assert skipped.sum() < learned.sum() and (skipped[-len(last):] == learned[-len(last):]).all()


def test_B3_a_gate_reads_the_last_user_turn_in_a_prompt_and_in_a_whole_conversation(both):
    """The same in both where the family opens replies with a special token; never an earlier turn, never the reply."""
    vocab, _, name = both
    plain = [{"role": "user", "content": "苹果呢？"}, {"role": "assistant", "content": "苹果很好看。"},
             {"role": "user", "content": "书在桌上"}, {"role": "assistant", "content": "圆的。"}]
    turn = json.loads(json.dumps(vocab.dialogue.turn))
    assert bool(turn["reply"]) == (name in ("chatml", "qwen3", "llama3"))
    for messages in (plain, [{"role": "system", "content": "放在这里"}, *plain], plain[2:]):
        prompt = last_turn(template.render_prompt(messages[:-1], vocab), turn)
        said = vocab.decode(prompt)
        assert "书在桌上" in said and not any(word in said for word in ("苹果", "圆的", "这里"))
        assert len(prompt) < 40 and not set(turn["marks"]) & set(prompt)
        whole = template.render(messages, vocab)[0].tolist()
        assert last_turn(whole, turn) == prompt or not turn["reply"]
        assert "苹果" not in vocab.decode(last_turn(whole, turn))
        if turn["reply"]:
            assert last_turn(template.render_prompt(messages[:-1], vocab, "off"), turn) == prompt
    document = vocab.dialogue.document("书在桌上")[0].tolist()
    assert vocab.decode(last_turn(document, turn)).strip() == "书在桌上"


def test_B2_a_length_drops_turns_and_cuts_replies(talking):
    vocab, _, _ = talking
    messages = conversations(6)[5]
    whole, learned = template.render(messages, vocab)
    for length in range(3, len(whole)):
        ids, kept = template.render(messages, vocab, length)
        assert len(ids) <= length and (ids == whole[:len(ids)]).all() and (kept == learned[:len(kept)]).all()


def test_B2_thinking_can_be_opened_and_closed(tmp_path):
    toy_bases.write_tokenizer(tmp_path, "qwen3")
    vocab, theirs = ForeignVocab.of_folder(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    asked = [{"role": "user", "content": "你好"}]
    text = theirs.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=False)
    assert template.render_prompt(asked, vocab, "off") == theirs.backend_tokenizer.encode(text).ids
    assert len(template.render_prompt(asked, vocab, "off")) > len(template.render_prompt(asked, vocab))


def test_B2_a_vocabulary_travels_in_its_state(both):
    vocab, _, _ = both
    again = Vocab.from_state(json.loads(json.dumps(vocab.state())))
    assert again == vocab and len(again) == len(vocab) and again.encode("苹果") == vocab.encode("苹果")
    with pytest.raises(UserError, match="损坏"):
        Vocab.from_state({**vocab.state(), "dialogue": {**vocab.state()["dialogue"], "end": "x"}})


def test_a_text_stands_between_its_marks(both):
    vocab, _, _ = both
    ids, learned = template.render_text("苹果很好看", vocab)
    assert ids[0] in template.openings(
        vocab) and ids[-1] in vocab.dialogue.stops and not learned[0] and learned[1:].all()


def test_a_template_that_looks_at_contents_is_refused(tmp_path):
    toy_bases.write_tokenizer(tmp_path, "chatml")
    about = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    about["chat_template"] = "{% for m in messages %}{{ m.role ~ loop.index ~ m.content }}{% endfor %}"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(UserError, match="模板"):
        ForeignVocab.of_folder(tmp_path)


def test_a_tokenizer_is_made_of_older_files(tmp_path):
    """vocab.txt of a Chinese GPT-2."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys("".join(toy.THINGS + toy.DOINGS)), "a", "##b"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    vocab = ForeignVocab.of_folder(tmp_path)
    assert vocab.encode("苹果，很ab") == [words.index(word) for word in ("苹", "果", "[UNK]", "很", "a", "##b")]
    assert vocab.encode("[SEP]")[0] != vocab.id("[SEP]") and len(vocab) == len(words)
    assert template.render_text("苹果", vocab)[0].tolist() == [2, *vocab.encode("苹果"), 3]
