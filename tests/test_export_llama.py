"""GGUF files in llama.cpp itself, where llama-cpp-python is installed: pip install llama-cpp-python (builds for
minutes)."""
import pytest
import torch

pytestmark = pytest.mark.slow
pytest.importorskip("gguf")
llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

import numpy as np                                                       # noqa: E402

from chat_agent.exports.gguf.file import write_gguf                      # noqa: E402
from chat_agent.exports.source import read_source                        # noqa: E402
from tools.template import render, render_prompt                         # noqa: E402
from toy_export import (GQA, SHARED, compare_greedy, hand_texts, marked, plain_step, random_texts,
                        rows_of,  # noqa: E402
                        saved, toy_payload, toy_vocab)

F32 = 0                             # ggml's number for float32, for the cache
SHAPES = {"moe": {}, "dense_tied": {"use_moe": False, "tie_embedding": True}, "sigmoid": {"router": "sigmoid"},
          "llama": GQA, "qwen3": {**GQA, "qk_norm": True}, "eps": {"norm_eps": 1e-5, "n_dense_layer": 0}}


def opened(path, **options):
    return llama_cpp.Llama(str(path), n_ctx=256, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
                           **options)


def exact(path):
    return opened(path, type_k=F32, type_v=F32, flash_attn=False)


def written(folder, vocab, precision="f32", **changes):
    payload, model = toy_payload(vocab, **changes)
    path, _ = write_gguf(read_source(saved(folder / "m.pkl", payload)), folder / f"{precision}.gguf", precision)
    return model, path


def continuation(llama, ids, count):
    """The greedy continuation that llama.cpp writes after our ids."""
    llama.reset()
    llama.eval(ids)
    found = []
    for _ in range(count):
        found.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
        llama.eval(found[-1:])
    return found


def prompts(vocab, count):
    texts = rows_of("text.jsonl", count) if SHARED.exists() else hand_texts()[:count]
    return [[vocab.id("<|im_end|>"), *vocab.encode(text)[:24]] for text in texts]


@pytest.fixture(scope="module")
def vocab():
    return toy_vocab()


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_and_replies_in_float32(tmp_path, vocab, shape):
    model, path = written(tmp_path, vocab, **SHAPES[shape])
    llama, step = exact(path), plain_step(model)
    results, worst = [], 0.0
    for ids in prompts(vocab, 20):
        results.append(compare_greedy(step, continuation(llama, ids, 32), ids))
        llama.reset()
        llama.eval(ids)
        with torch.no_grad():
            ours = model(torch.tensor([ids])).logits_1[0].numpy()
        worst = max(worst, float(np.abs(llama.scores[:len(ids)] - ours).max()))
    print(
        f"{shape}: worst logit difference {worst:.2e}, equal {results.count('equal')}, tie {results.count('tie')} of "
        f"20")
    assert worst < 1e-3 and set(results) <= {"equal", "tie"} and results.count("tie") <= 1


@pytest.mark.parametrize("precision, least", [("f16", 0.9), ("q8_0", 0.6)])
def test_agreement_of_the_smaller_precisions(tmp_path, vocab, precision, least):
    model, path = written(tmp_path, vocab, precision)
    llama, same, total = exact(path), 0, 0
    for ids in prompts(vocab, 20):
        llama.reset()
        llama.eval(ids)
        with torch.no_grad():
            ours = model(torch.tensor([ids])).logits_1[0].argmax(-1).numpy()
        same += int((llama.scores[:len(ids)].argmax(-1) == ours).sum())
        total += len(ids)
    print(
        f"{precision}: the same best token at {same} of {total} positions ({same / total:.1%}), {path.stat().st_size} "
        f"bytes")
    assert same / total > least


@pytest.mark.parametrize("kind", ["jieba", "char", "bpe"])
def test_its_own_tokeniser(tmp_path, kind):
    vocab = toy_vocab(kind=kind)
    _, path = written(tmp_path, vocab)
    llama = opened(path, vocab_only=True)
    sets = {"hand": hand_texts(), "random": random_texts(3000)}
    if SHARED.exists():
        sets |= {"text": rows_of("text.jsonl", 2000),
                 "dialogue": [m["content"] for row in rows_of("dialogue.jsonl", 1000, texts=False) for m in row]}
    for name, texts in sets.items():
        texts = [t for t in texts if t and not marked(t)]
        wrong = [t for t in texts if llama.tokenize(t.encode(), add_bos=False, special=False) != vocab.encode(t)]
        back = [t for t in texts if llama.detokenize(vocab.encode(t)).decode() != t]
        print(
            f"{kind} {name}: {len(texts) - len(wrong)} of {len(texts)} strings tokenised alike, {len(back)} decode "
            f"differently")
        assert len(wrong) <= len(texts) * 0.001 and not back


def test_special_tokens_and_chat_template(tmp_path, vocab):
    _, path = written(tmp_path, vocab)
    llama = opened(path, vocab_only=True)
    assert llama.token_eos() == llama.token_bos() == vocab.id("<|im_end|>")
    assert llama.tokenize("<|User|>：".encode(), add_bos=False, special=False) == vocab.encode("<|User|>：")
    talk = [{"role": "system", "content": "你是小寻。"}, {"role": "user", "content": "你好 😀\n"},
            {"role": "assistant", "content": "您好！"}]
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter
    form = Jinja2ChatFormatter(template=llama.metadata["tokenizer.chat_template"], eos_token="<|im_end|>",
                               bos_token="<|im_end|>",
                               add_generation_prompt=True)
    text = form(messages=talk[:2]).prompt
    assert llama.tokenize(text.encode(), add_bos=False, special=True) == render_prompt(talk[:2], vocab)
    form = Jinja2ChatFormatter(template=llama.metadata["tokenizer.chat_template"], eos_token="<|im_end|>",
                               bos_token="<|im_end|>",
                               add_generation_prompt=False)
    assert llama.tokenize(form(messages=talk).prompt.encode(), add_bos=False, special=True) == render(talk,
        vocab)[0].tolist()
