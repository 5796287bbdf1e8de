"""tokenizer.json gives our ids, and the chat template our dialogues."""
import json
import random
import re

import pytest

pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

from jinja2.sandbox import ImmutableSandboxedEnvironment                # noqa: E402
from tokenizers import Tokenizer                                         # noqa: E402

from chat_agent.exports.chat_template import MARK, gguf_template         # noqa: E402
from chat_agent.exports.folder import write_json                         # noqa: E402
from chat_agent.exports.hf.tokenizer import (pieces, special_tokens, surface, tokenizer_config,
                                             tokenizer_json,  # noqa: E402
                                             vocab_from_tokenizer)
from tools.errors import UserError                                       # noqa: E402
from tools.template import call_text, compact, render, render_prompt                         # noqa: E402
from tools.vocab import RESERVED, Vocab                                  # noqa: E402
from toy_export import SHARED, hand_texts, marked, random_texts, rows_of, toy_vocab  # noqa: E402

transformers.utils.logging.set_verbosity_error()
TALK = [{"role": "system", "content": "你是小寻。 "}, {"role": "user", "content": "\n  你好，User：😀 a\tb "},
        {"role": "assistant", "content": "您好！\r\n"}, {"role": "user", "content": ""},
        {"role": "assistant", "content": "再见"}]


def fast(vocab, size=None):
    return Tokenizer.from_str(json.dumps(tokenizer_json(vocab, size or len(vocab))))


def auto(vocab, folder, size=None, acts=()):
    """The tokenizer as AutoTokenizer loads it from a folder."""
    size = size or len(vocab)
    folder.mkdir(exist_ok=True)
    write_json(folder / "tokenizer.json", tokenizer_json(vocab, size))
    write_json(folder / "tokenizer_config.json", tokenizer_config(vocab, size, 128, acts))
    return transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@pytest.fixture(scope="module", params=["jieba", "char", "bpe"])
def vocab(request):
    return toy_vocab(kind=request.param)


@pytest.fixture(scope="module", params=["jieba", "char"])
def worded(request):
    """One that has words with scores."""
    return toy_vocab(kind=request.param)


def same_ids(vocab, tokenizer, texts):
    ours, theirs = vocab.encode_many(texts), tokenizer.encode_batch(texts, add_special_tokens=False)
    different = [t for t, a, b in zip(texts, ours, theirs) if a.tolist() != b.ids]
    changed = [t for t, a in zip(texts, ours) if tokenizer.decode(a.tolist(), skip_special_tokens=False) != t]
    return different, changed


def test_ids_and_decoding_equal_ours(vocab):
    texts = hand_texts() + random_texts(1000) + ["", " ", "\n\n", "\0", "a\0b", "▁", "<0x41>", "<|im_end", "\ufeff文",
                                                 "🇨🇳", "Ａ", "é"]
    assert same_ids(vocab, fast(vocab), texts) == ([], [])


def test_ties_fall_as_ours_do():
    """Words made so that many texts have several best paths."""
    chars = sorted({c for name, _ in pieces(toy_vocab(), len(toy_vocab())) for c in name if c.isascii()} | set("：甲乙丙丁"))
    words = {**dict.fromkeys(chars, -400), "甲乙": -800, "乙丙": -800, "丙丁": -800, "甲乙丙": -1200, "乙丙丁": -1200}
    order = sorted(words, key=lambda w: (-words[w], w))
    vocab = Vocab.from_words(order, [words[w] for w in order], "jieba")
    texts = [a + b + c + d + e for a in "甲乙" for b in "乙丙" for c in "丙丁甲" for d in "丁乙丙" for e in "甲乙丙丁"]
    assert same_ids(vocab, fast(vocab), texts) == ([], [])


def test_scores_survive_the_file_exactly(worded):
    found = json.loads(fast(worded).to_str())["model"]["vocab"]
    assert [tuple(e) for e in found] == [(n, float(s)) for n, s in pieces(worded, len(worded))]


def test_reserved_ids_have_surface_forms_that_no_bare_word_has(vocab):
    names = [surface(i) for i in range(len(RESERVED))]
    assert names[9:12] == ["<|User|>", "<|Assistant|>", "<|System|>"] and names[:4] == ["<|PAD|>", "<|im_end|>",
        "<|MASK|>", "<|UNK|>"]
    assert all(n.startswith("<|") and n.endswith("|>") for n in names) and len(set(names)) == 16
    tokenizer = fast(vocab)
    assert [tokenizer.token_to_id(n) for n in names] == list(range(16))
    assert tokenizer.encode("User：Assistant [PAD] [MASK]").ids == vocab.encode("User：Assistant [PAD] [MASK]")


def test_AutoTokenizer_adds_and_changes_nothing(vocab, tmp_path):
    tokenizer = auto(vocab, tmp_path)
    for text in hand_texts()[:50] + [m["content"] for m in TALK] + ["", "  两个空格  ", "don 't , a . b"]:
        ids = tokenizer(text)["input_ids"]
        assert ids == vocab.encode(text)
        assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == vocab.id(
        "<|im_end|>") and tokenizer.pad_token_id == vocab.id("[PAD]")
    assert tokenizer("<|User|>", split_special_tokens=True)["input_ids"] == vocab.encode("<|User|>")
    assert len(tokenizer) == len(vocab)


def test_AutoTokenizer_survives_a_save(vocab, tmp_path):
    auto(vocab, tmp_path / "a").save_pretrained(tmp_path / "b")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    texts = hand_texts()[:50] + random_texts(50)
    assert [again(t)["input_ids"] for t in texts] == [vocab.encode(t) for t in texts]
    assert again.apply_chat_template(TALK, return_dict=False) == render(TALK, vocab)[0].tolist()


def test_D1_chat_template_gives_the_ids_of_our_template(vocab, tmp_path):
    tokenizer = auto(vocab, tmp_path)
    assert tokenizer.apply_chat_template(TALK, return_dict=False) == render(TALK, vocab)[0].tolist()
    for end in range(1, len(TALK) + 1):
        found = tokenizer.apply_chat_template(TALK[:end], add_generation_prompt=True, return_dict=False)
        assert found == render_prompt(TALK[:end], vocab)


def spelled(vocab, seed=0, count=300):
    """Random conversations whose contents are full of what special tokens, and the marks of the template, look like."""
    rng = random.Random(seed)
    names = list(special_tokens(vocab, len(vocab) + 2).values())
    bits = [*names, *"<|>：", "<|", "|>", MARK, MARK + "0", MARK + "1", "<" + MARK + "1|", "\u200b", "User：", "你好",
            "\n", " ", "😀", "", "苹果"]
    made = []
    for _ in range(count):
        talk = [{"role": "system", "content": "".join(rng.choices(bits, k=3))}] if rng.random() < 0.3 else []
        for _ in range(rng.randint(1, 4)):
            talk += [{"role": role, "content": "".join(rng.choices(bits, k=rng.randint(0, 7)))}
                     for role in ("user", "assistant")]
        made.append(talk)
    return made


def test_content_that_spells_a_special_token_stays_text(vocab, tmp_path):
    """No content forges an id, and nothing of it is lost or changed: the ids are ours."""
    tokenizer = auto(vocab, tmp_path, len(vocab) + 2)
    for talk in spelled(vocab) + [TALK]:
        ids = tokenizer.apply_chat_template(talk, return_dict=False)
        assert ids == render(talk, vocab)[0].tolist(), talk
        assert tokenizer.apply_chat_template(talk[:-1], add_generation_prompt=True,
                                             return_dict=False) == render_prompt(talk[:-1], vocab)
    tokenizer.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert all(again.apply_chat_template(t, return_dict=False) == render(t, vocab)[0].tolist()
               for t in spelled(vocab, 1, 50))


def test_generation_marks_exactly_what_we_learn_from(vocab, tmp_path):
    tokenizer = auto(vocab, tmp_path)
    for talk in spelled(vocab, 2) + [TALK]:
        found = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
        ids, learn = render(talk, vocab)
        assert found["input_ids"] == ids.tolist() and found["assistant_masks"] == learn.astype(int).tolist(), talk
        more = tokenizer.apply_chat_template([*talk, {"role": "user", "content": "还有呢"}], return_dict=True,
                                             return_assistant_tokens_mask=True)
        assert more["assistant_masks"] == learn.astype(int).tolist() + [0] * (len(more["input_ids"]) - len(ids))


def acting(rng, bits):
    """A conversation of transformers' making, with thoughts, calls, results and tools on offer -> (messages, tools)."""
    def said(most=5):
        return "".join(rng.choices(bits, k=rng.randint(0, most)))

    def value(depth=0):
        return rng.choice([said, lambda: rng.randint(-9, 9 ** 20), lambda: rng.random(), lambda: rng.random() < 0.5,
                           lambda: None, lambda: depth < 2 and [value(2), {said(): value(2)}]])()
    talk = [{"role": "system", "content": said()}] if rng.random() < 0.3 else []
    for _ in range(rng.randint(1, 3)):
        talk.append({"role": "user", "content": said()})
        for _ in range(rng.choice([0, 1, 1, 2])):
            calls = [
                {"type": "function", "function": {"name": said(), "arguments": {said(): value() for _ in range(2)}}}
                     for _ in range(rng.randint(1, 2))]
            talk.append({"role": "assistant", "content": rng.choice([None, "", said()]), "tool_calls": calls})
            talk += [{"role": "tool", "content": said()} for _ in calls]
        talk.append({"role": "assistant", "content": said()})
    for message in talk:
        if message["role"] == "assistant" and rng.random() < 0.5:
            message["reasoning_content"] = said()
    return talk, [offered(rng, said, value) for _ in range(rng.randint(0, 3))] or None


def offered(rng, said, value):
    """A tool that is told as a signature, or one that says more or less than that."""
    def schema():
        kind = {"type": rng.choice(["string", "integer", ["string", "null"]])}
        return rng.choice([kind, kind, {**kind, "description": said()}, {**kind, "enum": [said()]}, value()])
    form = {"type": "object", "properties": {rng.choice([said(), "items", "a"]): schema() for _ in range(3)}}
    form |= rng.choice([{}, {"required": ["a"]}, {"required": value()}, {"additionalProperties": rng.random() < 0.5}])
    inner = {"name": said(), "parameters": rng.choice([form, form, form, {**form, "$defs": {}}, value()])}
    inner |= rng.choice([{}, {"description": said()}, {"strict": True}, {"examples": value()}])
    return rng.choice([{"type": "function", "function": inner}, inner, {"function": inner, "cached": True}])


def ours(talk, tools):
    messages = [{"role": "tools", "content": compact(tools)}] if tools else []
    for m in talk:
        messages.append({"role": m["role"], "content": m["content"] or ""})
        if "reasoning_content" in m:
            messages[-1]["thinking"] = m["reasoning_content"]
        if m.get("tool_calls"):
            messages[-1]["calls"] = [call_text(**one["function"]) for one in m["tool_calls"]]
    return messages


def test_W1_W2_thoughts_calls_and_tools_give_our_ids_on_1000_conversations(vocab, tmp_path):
    tokenizer, rng = auto(vocab, tmp_path, acts=("calls", "thinking")), random.Random(5)
    bits = [*special_tokens(vocab, len(vocab)).values(), MARK, MARK + "1", "<", "|", '"', "\\", "\n", "'", "&", "你好",
            "x", "😀"]
    for _ in range(500):                                                # for each kind of vocabulary
        talk, tools = acting(rng, bits)
        found = tokenizer.apply_chat_template(talk, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
        ids, learn = render(ours(talk, tools), vocab)
        assert found["input_ids"] == ids.tolist() and found["assistant_masks"] == learn.astype(int).tolist(), talk
        for way, asked in (("auto", {}), ("on", {"enable_thinking": True}), ("off", {"enable_thinking": False})):
            prompt = tokenizer.apply_chat_template(talk[:-1], tools=tools, add_generation_prompt=True,
                                                   return_dict=False,
                                                   **asked)
            assert prompt == render_prompt(ours(talk[:-1], tools), vocab, way)


def test_W1_a_model_without_thoughts_and_calls_is_not_disturbed(vocab, tmp_path):
    tokenizer = auto(vocab, tmp_path)
    plain = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_dict=False)
    asked = [{**m, "reasoning_content": "想"} for m in TALK]
    assert plain == tokenizer.apply_chat_template(asked, tools=[{"type": "function", "function": {"name": "x"}}],
                                                  enable_thinking=False, add_generation_prompt=True, return_dict=False)


def test_a_folder_from_before_reserved_ids_had_names_is_read(worded):
    found = tokenizer_json(worded, len(worded))
    for i in (4, 5, 6, 7, 12, 13):
        found["model"]["vocab"][i][0] = f"<|R{i}|>"
    assert vocab_from_tokenizer(found, worded.token_kind, worded.hash) == worded
    found["model"]["vocab"][9][0] = "<|R12|>"
    with pytest.raises(UserError):
        vocab_from_tokenizer(found, worded.token_kind, worded.hash)


def test_roles_as_the_server_has_them(vocab, tmp_path):
    tokenizer = auto(vocab, tmp_path)
    talks = [[{"role": role, "content": "简短"}, *TALK[1:]] for role in ("system", "developer")]
    assert tokenizer.apply_chat_template(talks[0]) == tokenizer.apply_chat_template(talks[1])
    for odd in ({"role": "tools", "content": "x"}, {"role": "user", "content": None},
                {"role": "user", "content": ["x"]}):
        with pytest.raises(Exception, match="must be"):
            tokenizer.apply_chat_template([odd])


def test_the_template_for_llama_cpp_is_plain_jinja_and_lets_nothing_be_forged(vocab):
    """As llama-cpp-python renders it: no extensions. All that is left of a spelled token is text that no special token
    matches."""
    form = ImmutableSandboxedEnvironment().from_string(gguf_template())
    names = list(special_tokens(vocab, len(vocab) + 2).values())
    for talk in spelled(vocab, 3):
        text = form.render(messages=talk, add_generation_prompt=False)
        found = re.findall("|".join(map(re.escape, names)), text)
        roles = {"user": ["<|User|>"], "assistant": ["<|Assistant|>", "<|im_end|>"], "system": ["<|System|>"]}
        assert found == ["<|im_end|>", *(name for m in talk for name in roles[m["role"]])]
    plain = form.render(messages=TALK, add_generation_prompt=True)
    assert plain.endswith("<|Assistant|>：") and "\u200b" not in plain and "endgeneration" not in gguf_template()


def test_vocabularies_that_would_leak_are_refused(worded):
    words, scores = list(worded.words), list(worded.scores)

    def without(word):
        i = words.index(word)
        return Vocab.from_words([w for w in words[:i] + words[i + 1:]], scores[:i] + scores[i + 1:], worded.token_kind)

    for word in "<|：A":
        with pytest.raises(UserError) as caught:
            pieces(without(word), len(worded))
        assert caught.value.code == 2 and word in str(caught.value)
    for word in ("：你", "<0x41>", "<|User|>"):
        more = Vocab.from_words(words + [word], scores + [min(scores) - 1], worded.token_kind)
        with pytest.raises(UserError):
            pieces(more, len(more))
    with pytest.raises(UserError) as caught:
        pieces(worded, len(worded) - 1)
    assert caught.value.code == 4


def test_the_way_back(vocab, tmp_path):
    found = tokenizer_json(vocab, len(vocab) + 2)
    assert vocab_from_tokenizer(found, vocab.token_kind, vocab.hash) == vocab
    auto(vocab, tmp_path, len(vocab) + 2).save_pretrained(tmp_path / "b")
    again = json.loads((tmp_path / "b" / "tokenizer.json").read_text(encoding="utf-8"))
    assert vocab_from_tokenizer(again) == vocab                         # the kind is guessed from the words
    if vocab.token_kind == "bpe":
        found["model"]["merges"][10:12] = found["model"]["merges"][11:9:-1]
    else:
        found["model"]["vocab"][400][1] -= 1
    with pytest.raises(UserError):
        vocab_from_tokenizer(found, vocab.token_kind, vocab.hash)
    with pytest.raises(UserError):
        vocab_from_tokenizer({"model": {"type": "BPE", "vocab": {}}})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jieba", "char"])
def test_5000_texts_5000_dialogues_10000_random_strings(kind):
    if not SHARED.exists():
        pytest.skip("../shared/data is not there")
    vocab = Vocab.create_vocab([str(SHARED / "text.jsonl"), str(SHARED / "dialogue.jsonl")], 5000, kind, progress=False)
    dialogues = [m["content"] for messages in rows_of("dialogue.jsonl", 5000, texts=False) for m in messages]
    for name, texts in (("text", rows_of("text.jsonl", 5000)), ("dialogue", dialogues),
                        ("random", random_texts(10000))):
        kept = [t for t in texts if not marked(t)]
        different, changed = same_ids(vocab, fast(vocab), kept)
        print(
            f"{kind} {name}: {len(kept)} of {len(texts)} strings, {len(different)} differ, {len(changed)} decode "
            f"differently")
        assert not different and not changed and len(kept) == len(texts)


@pytest.mark.slow
def test_D1_a_thousand_conversations(tmp_path):
    if not SHARED.exists():
        pytest.skip("../shared/data is not there")
    vocab = Vocab.create_vocab([str(SHARED / "dialogue.jsonl")], 5000, "jieba", progress=False)
    tokenizer = auto(vocab, tmp_path)
    for messages in rows_of("dialogue.jsonl", 1000, texts=False):
        assert messages[-1]["role"] == "assistant"
        assert tokenizer.apply_chat_template(messages, return_dict=False) == render(messages, vocab)[0].tolist()
        prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        assert prompt == render_prompt(messages[:-1], vocab)
