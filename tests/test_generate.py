"""Decoding from the cache gives what the whole model gives, however the tokens arrive; and every reply ends and says
why."""
import random

import pytest
import torch

import toy
import model.generate as generate_module
from model import ModelConfig
from model.decoding.cache import DecodeCache, cache_width
from model.decoding.few_rows import FEW, FEW_SHARED, RowTable, few
from model.decoding.folded import Folded
from model.generate import Reply, generate, generate_batch, generate_replies, generate_reply, prefill, stream
from model.decoding.loop_guard import LEAST, LoopGuard
from model.lora import apply_lora
from model.memory import apply_memory
from model.prefix import apply_prefix

ADAPTERS = {
    "lora": lambda model: apply_lora(model, rank=3, targets="all"),
    "lora_beside_experts": lambda model: apply_lora(model, rank=3, targets=["attention", "shared", "router", "heads"]
                                                    if model.config.use_moe else "all"),
    "prefix": lambda model: apply_prefix(model, length=3),
    "role": lambda model: apply_prefix(model, kind="role", ids=(9, 10, 11)),
    "memory": lambda model: apply_memory(model, tokens=8, chapters=4, topk=2),
}


def eval_model(dtype=torch.float64, adapter=None, **changes):
    model = toy.toy_model(dtype=dtype, **changes)
    if adapter:
        ADAPTERS[adapter](model)
        # away from the zero start, where an adapter does nothing
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += torch.randn_like(parameter) * 0.2
    return model.eval()


def tokens(*shape, seed=0):
    return torch.randint(0, 300, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- cached = full, absorbed = naive

@pytest.mark.parametrize("absorb", [True, False, None])
@pytest.mark.parametrize("variant", toy.VARIANTS)
def test_cached_equals_full_forward(variant, absorb):
    model, ids = eval_model(**toy.VARIANTS[variant]), tokens(2, 26)
    with torch.no_grad():
        full = model(ids).logits_1
        pieces = toy.decode_in_pieces(model, ids, (1, 1, 9, 2, 12, 1), absorb)
    assert (full - pieces).abs().max() < 1e-9


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("variant", ["default", "gqa", "alibi", "gelu_layer", "sigmoid", "dense"])
def test_cached_equals_full_forward_with_adapters(variant, adapter):
    model, ids = eval_model(adapter=adapter, **toy.VARIANTS[variant]), tokens(2, 26)
    with torch.no_grad():
        full = model(ids).logits_1
        for absorb in (None, False):
            assert (full - toy.decode_in_pieces(model, ids, (1, 1, 9, 2, 12, 1), absorb)).abs().max() < 1e-9


@pytest.mark.parametrize("variant", toy.VARIANTS)
def test_cached_equals_full_forward_in_float32(variant):
    model, ids = eval_model(torch.float32, **toy.VARIANTS[variant]), tokens(2, 26)
    with torch.no_grad():
        full = model(ids).logits_1
        for absorb in (True, False):
            assert (full - toy.decode_in_pieces(model, ids, (1, 9, 1, 15), absorb)).abs().max() < 1e-5 * full.abs().max(
                )


def test_folded_equals_absorbed():
    model, ids = eval_model(), tokens(3, 9)
    caches = [toy.forced(DecodeCache.of(model, 3, 4), True) for _ in range(2)]
    assert caches[0].folded[0].attention is not None
    caches[1].folded = [None] * 2
    outs = [[model.decode(part, cache) for part in ids.split(3, 1)] for cache in caches]
    assert max((a - b).abs().max() for a, b in zip(*outs)) < 1e-12


@pytest.mark.parametrize("variant", ["default", "geglu", "gelu_layer", "relu", "sigmoid", "scaled", "two_shared"])
def test_all_ways_through_the_experts_agree(variant):
    """Weighted sums and sorted: for one token and for many."""
    block = eval_model(**(toy.VARIANTS | {"two_shared": {"shared_experts": 2}})[variant]).blocks[0]
    moe, folded = block.mlp, Folded(block)
    for count in (1, 2, 3, 5, 16, 40, 300):
        x = torch.randn(count, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = moe(x)[0]
            for tables in (None, folded.mlp):
                assert (moe.decode(x, tables) - expected).abs().max() < 1e-12
            if variant not in ("gelu_layer", "relu"):
                weights, experts, *_ = moe.router(x)
                assert (folded.mlp(x, weights, experts) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("out, inner", [(7, 5), (600, 256), (512, 257)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_matrix_multiplies_few_rows_and_many(out, inner, dtype, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weight = torch.randn(out, inner, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    matrix = RowTable(weight)
    for count in (1, 2, FEW, FEW_SHARED, 30, 1):
        x = torch.randn(count, inner, dtype=torch.float64, generator=torch.Generator().manual_seed(count)).to(dtype)
        assert few(x) == (count <= (FEW if threads == 1 else FEW_SHARED) and dtype != torch.bfloat16)
        exact = x.double() @ weight.double().t()
        assert (matrix(x) - exact).abs().max() <= 16 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_prepared_heads_are_the_models_own(adapter):
    model = eval_model(adapter=adapter)
    cache = DecodeCache.of(model, 1, 1)
    for count in (1, 2, 30, 1):
        x = torch.randn(count, 16, dtype=torch.float64)
        with torch.inference_mode():
            assert all((mine(x) - head(x)).abs().max() < 1e-12
                       for mine, head in zip(cache.heads, model.heads(), strict=True))


@pytest.mark.parametrize("variant", ["default", "alibi", "gqa", "gqa_window_alibi", "window", "learned"])
def test_rows_of_different_lengths_in_any_slots(variant):
    """Slots are filled by turns, in chunks of different lengths, some rows empty: each row is as if alone."""
    model, ids, rng = eval_model(**toy.VARIANTS[variant]), tokens(3, 26), random.Random(1)
    with torch.no_grad():
        full = model(ids).hidden
    cache, slots, done = DecodeCache.of(model, 5, 4), [4, 0, 2], [0, 0, 0]
    while min(done) < 26:
        rows = rng.sample(range(3), rng.randint(1, 3))
        length = rng.randint(1, 12)
        counts = [rng.randint(0, min(length, 26 - done[r])) for r in rows]
        block = torch.full((len(rows), length), 7)
        for i, r in enumerate(rows):
            block[i, :counts[i]] = ids[r, done[r]:done[r] + counts[i]]
        hidden = model.decode(block, cache, [slots[r] for r in rows], counts)
        for i, r in enumerate(rows):
            assert torch.allclose(hidden[i, :counts[i]], full[r, done[r]:done[r] + counts[i]], rtol=0, atol=1e-9)
            done[r] += counts[i]
    assert cache.lengths == [26, 0, 26, 0, 26]


def test_cut_back_and_read_on():
    model, ids = eval_model(), tokens(1, 12)
    with torch.no_grad():
        full = model(ids).hidden
    cache = DecodeCache.of(model, 2, 4)
    model.decode(ids[:, :5], cache, [1])
    model.decode(tokens(1, 6, seed=9), cache, [1])
    cache.truncate(1, 5)
    assert torch.allclose(model.decode(ids[:, 5:], cache, [1]), full[:, 5:], rtol=0, atol=1e-9)
    cache.clear(1)
    assert torch.allclose(model.decode(ids, cache, [1]), full, rtol=0, atol=1e-9)


def test_keep_moves_slots_together():
    model, ids = eval_model(), tokens(3, 9)
    with torch.no_grad():
        full = model(ids).hidden
    cache = DecodeCache.of(model, 3, 4)
    model.decode(ids[:, :8], cache)
    cache.keep([2, 0])
    assert torch.allclose(model.decode(ids[[2, 0], 8:], cache), full[[2, 0], 8:], rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_prefill_in_chunks(chunk):
    model = eval_model()
    prompts = [tokens(n, seed=n).tolist() for n in (11, 1, 6)]
    last = prefill(model, DecodeCache.of(model, 3, 1), prompts, chunk=chunk)
    for prompt, row in zip(prompts, last):
        with torch.no_grad():
            assert torch.allclose(row, model(torch.tensor([prompt])).hidden[0, -1], rtol=0, atol=1e-9)


def test_cache_is_a_sixth_of_full_keys_and_values():
    shape = ModelConfig(vocab_size=5000)
    full = cache_width(ModelConfig(vocab_size=5000, attention="gqa"))
    assert full == 2 * shape.d_model
    assert cache_width(shape) == shape.d_c + shape.d_r <= full / 6
    assert DecodeCache(shape, 1, 1).bytes_per_token() == 4 * shape.n_layer * (shape.d_c + shape.d_r)


# ---------------------------------------------------------------- replies

def test_greedy_equals_recomputing_everything():
    model, ids = eval_model(), tokens(5).tolist()
    reply, text = generate(model, ids, 20, stop_ids=(), guard=False), list(ids)
    with torch.no_grad():
        for _ in range(20):
            logits = model(torch.tensor([text])).logits_1[0, -1]
            logits[:16] = float("-inf")
            text.append(logits.argmax().item())
    assert reply == text[5:]


@pytest.mark.parametrize(
    "options", [{}, dict(temperature=1.0, seed=5), dict(temperature=0.7, top_p=0.9, top_k=40, min_p=0.01, seed=1),
                                     dict(repetition_penalty=1.5, no_repeat_ngram=2),
                                     dict(frequency_penalty=0.7, presence_penalty=0.4)])
def test_each_reply_of_a_batch_is_as_alone(options):
    model = eval_model()
    prompts = [tokens(1 + n % 7, seed=n).tolist() for n in range(11)]
    together = generate_batch(model, prompts, 15, stop_ids=(40, 41, 42), **options)
    assert together == generate_batch(model, prompts, 15, batch_size=3, stop_ids=(40, 41, 42), **options)
    if "seed" not in options:
        assert together == [generate(model, p, 15, stop_ids=(40, 41, 42), speculate=False, **options) for p in prompts]
    assert len({tuple(r) for r in together}) > 5


def test_same_seed_same_reply():
    model = eval_model()
    for speculate in (False, True):
        made = [generate(model, [1, 20], 12, temperature=1.0, seed=s, speculate=speculate) for s in (3, 3, 4)]
        assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    "options", [{}, dict(temperature=2.0, seed=0), dict(temperature=1.0, top_p=0.5, seed=1, repetition_penalty=0.5)])
def test_reserved_ids_are_never_generated(options):
    model = eval_model()
    with torch.no_grad():
        for head in (model.fc1, model.fc2):
            # they would win almost always
            head.weight[:16] = head.weight[16:].abs().max() * torch.sign(head.weight[:16]) * 5
    for speculate in (False, True):
        reply = generate(model, [1, 20], 60, stop_ids=(), guard=False, speculate=speculate, **options)
        assert len(reply) == 60 and min(reply) >= 16
    assert min(map(min, generate_batch(model, [[1, 20], [1, 30, 4]], 60, stop_ids=(), guard=False, **options))) >= 16


def test_finish_says_why():
    model = eval_model()
    plain = generate_reply(model, [1, 20], 8, stop_ids=(), guard=False)
    assert plain.finish == "length" and len(plain.ids) == 8
    stop = next(i for i in range(1, 8) if plain.ids[i] not in plain.ids[:i])
    stopped = generate_reply(model, [1, 20], 8, stop_ids=(plain.ids[stop],), guard=False)
    assert stopped.finish == "stop" and stopped.ids == plain.ids[:stop]
    assert generate_reply(model, [1, 20], 0).finish == "length" and generate(model, [1, 20], 0) == []
    assert generate_replies(model, [[1, 20]], 0)[0] == Reply([], "length")


@pytest.mark.parametrize("speculate", [False, True])
def test_a_model_that_goes_round_is_stopped(speculate):
    model = eval_model()
    # nothing but the embedding reaches the heads: each id has one successor
    for block in model.blocks:
        block.attention.out.weight.data.zero_()
        block.mlp.down.data.zero_()
        block.mlp.shared.down.weight.data.zero_()
    reply = generate_reply(model, [1, 20], 5000, speculate=speculate)
    assert reply.finish in ("loop", "stop") and len(reply.ids) < 700
    looping = [generate_reply(model, [1, start], 5000, speculate=speculate).finish for start in range(16, 40)]
    assert "loop" in looping
    batch = generate_replies(model, [[1, start] for start in range(16, 40)], 5000)
    assert [r.finish for r in batch] == looping


def test_loop_guard_counts_rounds():
    def length_at_stop(ids):
        guard = LoopGuard()
        return next((n for n, i in enumerate(ids, 1) if guard.add(i)), None)

    assert length_at_stop([5] * 100) == LEAST
    assert length_at_stop([1, 2, 3] + [7, 8, 9] * 30) == 3 + LEAST
    assert length_at_stop(list(range(50)) * 4) == 200
    # seen three times only
    assert length_at_stop(list(range(64)) * 3 + [1]) is None
    assert length_at_stop([9] * 20 + [1] + [9] * 20) is None                                         # 哈哈哈哈 is a reply
    assert length_at_stop(list(range(65)) * 9) is None
    rng = random.Random(0)
    assert length_at_stop([rng.randrange(3) for _ in range(500)]) is None


def test_learned_positions_end_the_reply():
    model = eval_model(**toy.VARIANTS["learned"])
    for speculate in (False, True):
        reply = generate_reply(model, [20] * 60, 100, stop_ids=(), guard=False, speculate=speculate)
        # the last one need not be read
        assert reply.finish == "length" and len(reply.ids) == 5
    assert len(generate(model, [20] * 64, 100, stop_ids=())) == 1
    assert [len(r) for r in generate_batch(model, [[20] * 60, [21] * 64, [22]], 3, stop_ids=())] == [3, 1, 3]
    for bad in ([20] * 65, [], [300], [-1]):
        with pytest.raises(ValueError):
            generate(model, bad, 5)
        with pytest.raises(ValueError):
            generate_batch(model, [[20], bad], 5)
    with pytest.raises(ValueError):
        model.decode(torch.full((1, 65), 20), DecodeCache.of(model, 1, 65))


def test_mode_and_weights_are_left_alone():
    model = eval_model(torch.float32, dropout=0.5, router_noise=1.0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    expected = generate(model, [1, 20, 30], 10)
    model.train()
    assert generate(model, [1, 20, 30], 10) == expected and model.training
    writing = stream(model, [1, 20, 30], 10)
    next(writing)
    writing.close()
    assert model.training and toy.same_tensors(before, dict(model.state_dict()))
    model(tokens(1, 5), labels=tokens(1, 5)).loss.backward()                                         # still trainable
    assert model.fc1.weight.grad is not None


def test_what_is_prepared_once_serves_every_reply():
    model, prepared = eval_model(), {}
    made = [generate(model, [1, 20, 30], 12, guard=False, stop_ids=(), prepared=kept)
            for kept in (None, prepared, prepared)]
    assert made[0] == made[1] == made[2] and list(prepared) == [model]
    first = prepared[model]
    assert generate_batch(model, [[1, 20, 30]] * 2, 12, guard=False, stop_ids=(), prepared=prepared)[0] == made[0]
    assert prepared == {model: first}


def test_changed_weights_change_the_reply():
    """Nothing is kept between replies unasked, be the model frozen or not."""
    model = eval_model().requires_grad_(False)
    first = generate(model, [1, 20, 30], 12, guard=False, stop_ids=())
    other = toy.toy_model(seed=8).eval()
    model.load_state_dict(other.state_dict())
    changed = generate(model, [1, 20, 30], 12, guard=False, stop_ids=())
    assert changed == generate(other, [1, 20, 30], 12, guard=False, stop_ids=()) != first


def test_the_cache_of_a_reply_grows_as_it_needs(monkeypatch):
    asked, real = [], DecodeCache.of.__func__
    monkeypatch.setattr(DecodeCache, "of",
                        classmethod(lambda cls, model, rows, length, *more: asked.append(length)
                                    or real(cls, model, rows, length, *more)))
    next(iter(stream(toy.toy_model(), [5, 17, 20], 10 ** 8, guard=False)), None)
    assert asked and asked[0] <= 3 + generate_module.CHUNK + 1
