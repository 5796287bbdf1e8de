"""The start from pair counts: what is counted, what is fitted, and that nothing but first values changes."""
import math

import pytest
import torch

import toy
from tools.errors import UserError
from train_agent.trainers.data import pair_start
from train_agent.trainers.dataset import Position

CPU = torch.device("cpu")


def stage(options, **keys):
    return toy.build_stage(options(rows=60, **{"copy_start": False, **keys}))


def by_hand(data, words, ahead):
    table = torch.zeros(words, words)
    for document in data.documents:
        begin, end = data.cache.bounds([document])
        ids = data.cache.split(data.cache.tokens[int(begin[0]):int(end[0])])[0]
        for one, other in zip(ids[:-ahead], ids[ahead:]):
            table[int(one), int(other)] += 1
    return table


@pytest.mark.parametrize("block", [10, 4_000_000])
def test_Q1_pairs_are_counted_inside_documents(options, monkeypatch, block):
    monkeypatch.setattr(pair_start, "BLOCK", block)
    made = stage(options)
    words = made.model.config.vocab_size
    tables, tokens = pair_start.count_pairs(made.train, words, 2, CPU)
    begin, end = made.train.cache.bounds(made.train.documents)
    assert tokens == (end - begin).sum()
    for ahead, table in enumerate(tables, 1):
        assert torch.equal(table, by_hand(made.train, words, ahead))


def test_Q1_a_long_text_gives_its_first_documents(options, monkeypatch):
    monkeypatch.setattr(pair_start, "MOST", 50)
    made = stage(options)
    _, tokens = pair_start.count_pairs(made.train, made.model.config.vocab_size, 1, CPU)
    first = made.train.cache.bounds(made.train.documents[:1])
    assert 0 < tokens <= max(50, first[1][0] - first[0][0])


@pytest.mark.parametrize(
    "shape", [{}, {"use_fc2": False}, {"norm": "layer"}, {"attention": "gqa", "position": "alibi"},
              {"counted": 3, "use_fc2": False}])
def test_Q1_the_first_loss_is_the_counts(options, shape):
    """Before any step head k knows the k-th next token as well as the counts do: far below ln V, close to the
    conditional entropy."""
    made = stage(options, pair_start=60, **{"counted": 0, **shape})
    words = made.model.config.vocab_size
    tables, _ = pair_start.count_pairs(made.train, words, 2, CPU)
    made.begin(CPU)
    batch = made.train.batch(Position())
    made.model.eval()
    out = made.model(batch.ids, labels_1=batch.labels_1, labels_2=batch.labels_2, positions=batch.positions,
                     layout=batch.layout,
                     left_out=batch.left_out)
    for total, count, table in zip(out.loss_sums, out.counts, tables):
        shares = table / table.sum(1, keepdim=True).clamp_min(1)
        entropy = -(table * shares.clamp_min(1e-9).log()).sum() / table.sum()
        assert total / count < entropy + 0.6 < math.log(words) - 1.5


def test_Q1_only_embedding_and_heads_change(options):
    made = stage(options, pair_start=2)
    before = {n: p.clone() for n, p in made.model.named_parameters()}
    random_state = torch.get_rng_state()
    notes = made.begin(CPU)
    changed = {n for n, p in made.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"embed.weight", "fc1.weight", "fc2.weight"} and notes["pair_tokens"] > 0
    assert torch.equal(torch.get_rng_state(), random_state) and all(p.grad is None for p in made.model.parameters())


def test_Q1_the_seed_decides(options):
    def weights(seed):
        made = stage(options, pair_start=2, seed=seed)
        made.begin(CPU)
        return made.model.embed.weight
    assert torch.equal(weights(3), weights(3)) and not torch.equal(weights(3), weights(4))


def test_Q1_a_fresh_run_fits_and_a_resumed_one_does_not(options, monkeypatch):
    fits = []
    real = pair_start.fit
    monkeypatch.setattr(pair_start, "fit", lambda *a: fits.append(1) or real(*a))
    chosen = options(rows=30, pair_start=1)
    loop = toy.train(chosen, stop_after=3)
    assert loop.exit == 143 and fits == [1]
    assert toy.train(chosen).exit == 0 and fits == [1]


@pytest.mark.parametrize("keys, part", [({"tie_embedding": True}, "tie_embedding"), ({"init_from": "x"}, "检查点")])
def test_Q1_what_cannot_be_done_is_refused_when_asked_for_and_left_out_otherwise(options, monkeypatch, keys, part):
    model = toy.toy_model(**{k: v for k, v in keys.items() if k == "tie_embedding"})
    chosen = {"init_from": None, "pretraining_model_path": None, **keys}
    assert pair_start.passes_for(model, {**chosen, "pair_start": None}) == 0
    with pytest.raises(UserError, match=part) as caught:
        pair_start.passes_for(model, {**chosen, "pair_start": 3})
    assert caught.value.code == 2
    monkeypatch.setattr(pair_start, "WIDEST", 100)
    with pytest.raises(UserError, match="词表有 300 个词"):
        pair_start.passes_for(toy.toy_model(), {"init_from": None, "pretraining_model_path": None, "pair_start": 3})


def test_Q1_fitted_tables_learn_at_a_third_of_the_rate(options):
    for keys, expected in (({"pair_start": 1}, 1e-3), ({"pair_start": 0}, 3e-3),
                           ({"pair_start": 1, "embedding_lr": 2e-3}, 2e-3)):
        rates = {name: rate for name, _, rate in stage(options, init_lr=3e-3, **keys).trainable()}
        assert rates["embed.weight"] == rates["fc1.weight"] == rates["fc2.weight"] == pytest.approx(expected)
        assert rates["blocks.0.attention.out.weight"] == 3e-3
