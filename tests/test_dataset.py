"""Batches: every token predicted once, nothing across documents, an order that depends on seed and epoch alone."""
import pickle
from collections import Counter

import numpy as np
import pytest
import torch

import toy
from tools.errors import UserError
from toy import dialogue_rows, text_rows, write_rows
from train_agent.trainers import dataset
from train_agent.trainers.dataset import PackedData, Position, loader
from train_agent.trainers.data import ahead
from train_agent.trainers.data.token_cache import open_cache
from train_agent.trainers.data.split import split_documents

CPU = torch.device("cpu")


@pytest.fixture
def make(ram_path, vocab):
    """make(rows, mode=..., **options) -> PackedData of these rows."""
    def build(rows=40, mode="pretraining", shuffle=True, documents=None, **changes):
        rows = text_rows(rows) if isinstance(rows, int) else rows
        cache = open_cache(write_rows(ram_path / "a.jsonl", rows), vocab, mode, ram_path / "cache")
        options = {"max_len": 24, "batch_size": 2, "seed": 5, "n_of_samples": None, "n_of_samplings": None,
                   "max_epochs": 1,
                   "num_workers": 0, "prefetch_factor": 2, "accumulation_steps": 1, **changes}
        data = PackedData(cache, range(len(cache)) if documents is None else documents, options, mode != "pretraining",
                          shuffle)
        data.options = options
        return data
    return build


def batches(data, epoch=0):
    return [data.batch(place) for place in data.places(epoch)]


def predictions(data, epoch=0):
    """Read the batches back: Counter of (head, context of the document so far, target) over one epoch."""
    seen = Counter()
    for batch in batches(data, epoch):
        for head, labels in ((1, batch.labels_1), (2, batch.labels_2)):
            for row in range(len(batch.ids)):
                for t in range(data.width):
                    if labels[row, t] >= 0:
                        start = t - int(batch.positions[row, t])
                        seen[head, tuple(batch.ids[row, start:t + 1].tolist()), int(labels[row, t])] += 1
    return seen


def expected(cache, width, truncate=False):
    """The same from the documents alone, cut as `packing.cut` says."""
    seen = Counter()
    for i in range(len(cache)):
        ids, supervised = cache.document(i)
        for t in range(len(ids) - 1 if not truncate else min(len(ids) - 1, width)):
            start = t // width * width
            for head in (1, 2):
                if t + head < len(ids) and supervised[t + head]:
                    seen[head, tuple(ids[start:t + 1].tolist()), int(ids[t + head])] += 1
    return seen


def test_every_token_is_predicted_exactly_once_and_no_target_crosses_a_document(make):
    data = make(epochs=1)
    assert max(len(data.cache.document(i)[0]) for i in range(len(data.cache))) > 2 * data.width    # some are cut
    assert predictions(data) == expected(data.cache, data.width)
    total = sum(len(data.cache.document(i)[0]) for i in range(len(data.cache)))
    heads = Counter(head for (head, _, _), n in predictions(data).items() for _ in range(n))
    assert heads == {1: total - len(data.cache), 2: total - 2 * len(data.cache)}


def test_D5_dialogues_learn_the_replies_of_both_heads_alone(make):
    data = make(dialogue_rows(20), "instruction_finetuning", max_len=64)
    assert predictions(data) == expected(data.cache, 64, truncate=True)
    end = 1
    assert all(target != 9 and target != 10 for _, _, target in predictions(data))
    assert any(target == end for _, _, target in predictions(data))


def test_long_dialogues_lose_their_end_not_their_beginning(make):
    data = make(dialogue_rows(20), "instruction_finetuning", max_len=16)
    assert predictions(data) == expected(data.cache, 16, truncate=True)


def test_counts_valid_and_padding_of_a_batch(make):
    for batch in batches(make(batch_size=3)):
        assert batch.tokens == int(batch.valid.sum())
        assert batch.targets_1 == int((batch.labels_1 >= 0).sum()) and batch.targets_2 == int(
            (batch.labels_2 >= 0).sum())
        assert (batch.ids[~batch.valid] == 0).all() and (batch.labels_1[~batch.valid] == -100).all()
        assert int(batch.positions.max()) < 24
        assert {t.dtype for t in (batch.ids, batch.positions, batch.labels_1, batch.labels_2)} == {torch.int64}


def test_layout_is_that_of_the_documents(make):
    """Slots of one line of the layout: positions count up from 0 within each document."""
    for batch in batches(make(batch_size=4)):
        positions, layout, base = batch.positions.flatten(), batch.layout, 0
        gather = layout.gather if layout.gather is not None else torch.arange(positions.numel())
        real = torch.zeros(len(gather), dtype=torch.bool)
        real[layout.scatter if layout.scatter is not None else slice(None)] = True
        for documents, length in layout.shapes:
            for line in range(base, base + documents * length, length):
                flat = gather[line:line + length][real[line:line + length]]
                if batch.valid.flatten()[flat[0]]:
                    assert positions[flat].tolist() == list(range(len(flat)))
                assert (flat.diff() == 1).all() and len({int(f) // 24 for f in flat}) == 1
            base += documents * length


def test_order_is_a_pure_function_of_seed_and_epoch(make):
    def order(epoch, **changes):
        data = make(n_of_samples=10, max_epochs=3, **changes)
        return [b.ids.tolist() for b in batches(data, epoch)]
    first = order(0)
    torch.manual_seed(9), np.random.seed(9)
    assert order(0) == first
    assert order(1) != first and order(0, seed=6) != first
    data = make(n_of_samples=10, max_epochs=3)
    # in whatever sequence they are asked for
    data.batch(Position(2, 1, 0))
    assert [b.ids.tolist() for b in batches(data, 0)] == first
    assert predictions(data, 0) == predictions(data, 1) == expected(data.cache, 24)


@pytest.mark.parametrize("per_chunk", [1, 7, 40, 1000])
def test_D6_chunks_hold_each_record_once_and_the_last_is_not_dropped(make, per_chunk):
    data = make(40, n_of_samples=per_chunk)
    assert data.chunks == -(-40 // per_chunk)
    rows = [data.source_rows(Position(0, c, b)) for c in range(data.chunks) for b in range(data.batches_in(0, c))]
    by_chunk = [set().union(*(data.source_rows(Position(0, c, b)) for b in range(data.batches_in(0, c))))
                for c in range(data.chunks)]
    assert sorted(r for chunk in by_chunk for r in chunk) == list(range(40)) and rows
    assert predictions(data) == expected(data.cache, 24)


def test_D6_records_are_data_rows_however_many_documents_they_hold(make):
    """Texts with <|im_end|> in them are several documents; their row stays together, and rows are what is counted."""
    rows = [{"text": "<|im_end|>".join([f"第{i}行"] * (1 + i % 4))} for i in range(40)]
    data = make(rows, n_of_samples=10, max_epochs=2)
    assert len(data.documents) == 100 and data.chunks == 4
    for epoch in range(2):
        chunks = [[int(r) for r in data.cache.rows[data._in_chunk(epoch, c)]] for c in range(4)]
        assert all(len(set(chunk)) == 10 for chunk in chunks)
        assert sorted(sum(chunks, [])) == sorted(data.cache.rows.tolist())
        assert len(set.union(*map(set, chunks))) == 40
    assert chunks != [[int(r) for r in data.cache.rows[data._in_chunk(0, c)]] for c in range(4)]


def test_D6_samplings_bound_a_run_and_are_clamped_to_the_file(make):
    assert make(40, n_of_samples=10, n_of_samplings=2).chunks == 2
    assert make(40, n_of_samples=10, n_of_samplings=99).chunks == 4
    few = make(40, n_of_samples=10, n_of_samplings=2, max_epochs=2)
    assert few.steps(1) == sum(few.batches_in(e, c) for e in range(2) for c in range(2))
    assert make(40, n_of_samplings=3).chunks == 1                                 # one chunk is the whole file


def walk(data, start=Position(), accumulation=1, rank=0, world=1):
    return list(data.groups(start, accumulation, rank, world))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_walk_taken_up_anywhere_goes_on_as_the_whole_one(make, accumulation):
    data = make(n_of_samples=9, max_epochs=2)
    whole = walk(data, accumulation=accumulation)
    assert data.steps(accumulation) == len(whole)
    for i, (_, after, _) in enumerate(whole):
        assert [positions for positions, _, _ in walk(data, after, accumulation)] == [positions
            for positions, _, _ in whole[i + 1:]]
    assert [p for positions, _, _ in whole for p in positions] == \
        data.places() + data.places(1)
    # the partial one is there
    assert any(len(positions) < accumulation for positions, _, _ in whole) or accumulation == 1


def test_a_run_that_is_prolonged_goes_on_where_it_ended(make):
    """More chunks or more epochs than before: the position after the last step is the next chunk's, not lost."""
    short, long = make(n_of_samples=9, n_of_samplings=2), make(n_of_samples=9, n_of_samplings=4)
    ended = walk(short)[-1][1]
    assert [p for p, _, _ in walk(long, ended)] == [[Position(0, c, b)] for c in (2, 3)
                                                    for b in range(long.batches_in(0, c))]
    longer = make(n_of_samples=9, n_of_samplings=2, max_epochs=2)
    assert walk(longer, ended)[0][0] == [Position(1, 0, 0)]


def test_ranks_share_every_step_and_none_is_left_without_work(make):
    """Each micro-batch goes to exactly one rank; a rank with nothing to do would wait for the others for ever."""
    data = make(n_of_samples=9)
    alone = [p for positions, _, _ in walk(data, accumulation=4) for p in positions]
    ranks = [walk(data, accumulation=2, rank=r, world=2) for r in range(2)]
    assert [after for _, after, _ in ranks[0]] == [after for _, after, _ in ranks[1]]
    shared = [p for steps in zip(*ranks) for positions, _, _ in steps for p in positions]
    idle = [p for p in shared if p.batch == dataset.NOTHING]
    assert Counter(p for p in shared if p not in idle) == Counter(alone)
    assert all(positions for steps in ranks for positions, _, _ in steps) and idle
    nothing = data.batch(idle[0])
    assert (nothing.tokens, nothing.targets_1, nothing.targets_2, nothing.position) == (0, 0, 0, None)
    assert not nothing.valid.any() and (nothing.labels_1 < 0).all() and (nothing.labels_2 < 0).all()


def test_an_estimated_number_of_steps_loses_no_data(make, monkeypatch):
    """Beyond EXACT_UP_TO documents the number is an estimate, close enough for a schedule."""
    data = make(300, n_of_samples=50, max_epochs=2, batch_size=4)
    exact = data.steps(2)
    monkeypatch.setattr(dataset, "EXACT_UP_TO", 0)
    assert abs(data.steps(2) - exact) <= 0.1 * exact
    assert len(walk(data, accumulation=2)) == exact


@pytest.mark.parametrize("workers", [0, 2])
def test_D7_loader_gives_the_walk_in_order(make, workers):
    data = make(n_of_samples=12, max_epochs=2, num_workers=workers, accumulation_steps=3)
    start = walk(data, accumulation=3)[2][1]
    got = list(loader(data, start, data.options, CPU))
    expected_walk = walk(data, start, 3)
    assert [([b.position for b in group], after, count) for group, after, count in got] == expected_walk
    for group, _, _ in got[:3]:
        for batch in group:
            assert torch.equal(batch.ids, data.batch(batch.position).ids)


@pytest.mark.parametrize("workers", [0, 2])
def test_D7_loading_draws_no_random_numbers(make, workers):
    """Otherwise dropout would differ with the number of workers, and after a resume."""
    data = make(num_workers=workers)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(loader(data, Position(), data.options, CPU))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_D7_fewer_rows_than_a_batch(make, workers):
    data = make([{"text": "书"}], batch_size=16, num_workers=workers, accumulation_steps=4)
    (group, after, count), = loader(data, Position(), data.options, CPU)
    assert len(group) == 1 and group[0].ids.shape == (1, 24) and group[0].tokens == 2 and count == 1


def test_loader_pins_for_cuda_only(make, monkeypatch):
    """Workers, prefetch and pinned memory reach torch's loader."""
    asked = {}
    monkeypatch.setattr(ahead, "DataLoader", lambda data, **options: asked.update(options) or [])
    data = make(num_workers=3, prefetch_factor=5)
    for device, pinned in ((CPU, False), (torch.device("cuda"), True)):
        list(loader(data, Position(), data.options, device))
        assert (asked["num_workers"], asked["prefetch_factor"], asked["pin_memory"]) == (3, 5, pinned)


def test_data_travels_to_a_worker_without_its_tokens(make):
    data = make()
    del data.options
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again.batch(Position()).ids, data.batch(Position()).ids)
    assert len(pickle.dumps(data)) < 5000


def test_held_out_rows_are_no_training_rows(make):
    cache = make([{"text": "书<|im_end|>茶"}] * 100).cache
    training, held = split_documents(cache, 0.1)
    assert len(held) == 20 and len(training) == 180                               # units of a row stay together
    assert not set(cache.rows[training]) & set(cache.rows[held])
    assert len(split_documents(cache, 0.0)[1]) == 0


def test_nothing_left_to_train_on_is_an_error(make):
    with pytest.raises(UserError) as error:
        make(documents=np.zeros(0, dtype=int))
    # of the data, like every file without a usable row
    assert error.value.code == 8


def test_E2_held_out_data_is_used_whole_whatever_bounds_the_training(make):
    """n_of_samples and n_of_samplings are about training."""
    data = make(40, shuffle=False, n_of_samples=5, n_of_samplings=2, max_epochs=3)
    assert predictions(data) == expected(data.cache, 24) and data.epochs == 1


def test_the_vocabulary_reads_the_field_that_the_training_reads(options, ram_path):
    rows = [{"completion": row["text"]} for row in toy.text_rows(60)]
    chosen = options(rows=rows, text_field="completion", vocab_trg_path=str(ram_path / "new.json"), vocab_size=500)
    stage = toy.build_stage({**chosen, "vocab_data_path": chosen["json_data_path"]})
    assert (ram_path / "new.json").is_file() and len(stage.train.documents) == 60


def test_what_a_stage_cannot_use_is_refused(options):
    for stage, keys in (("pre", {"replay_share": 0.2}), ("gate", {"init_from": "a.pkl"}),
                        ("gate", {"replay_share": 0.2})):
        with pytest.raises(UserError) as error:
            toy.build_stage(options(stage, **keys), stage)
        assert error.value.code == 2 and next(iter(keys)) in str(error.value)


class FiveTokens:
    """Two documents, EABCD and EXYZW, of which B, C and Y are supervised; a cache of raw numbers as make_batch reads
    it."""
    tokens = np.array([ord(c) + 256 * (c in "BCY") for c in "EABCDEXYZW"])

    def bounds(self, documents):
        return np.asarray(documents) * 5, np.asarray(documents) * 5 + 5

    def split(self, numbers):
        return numbers & 255, numbers > 255


def test_make_batch_makes_the_batch_of_its_docstring():
    pieces = np.array([[0, 0, 4], [1, 0, 4]])
    made = dataset.make_batch(FiveTokens(), pieces, [[0, 1]], 1, 10)
    assert made.tokens == 8 and (made.targets_1, made.targets_2) == (3, 3)
    for name, shown in (("ids", "E A B C E X Y Z . ."), ("labels_1", ". B C . . Y . . . ."),
                        ("labels_2", "B C . . Y . . . . .")):
        assert " ".join(chr(n) if n > 0 else "." for n in getattr(made, name)[0].tolist()) == shown
    assert made.positions[0].tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 8,
                                          9] and made.valid[0].tolist() == [True] * 8 + [False] * 2
    assert f"{shown}      segments of 4, 4 and 2" in dataset.make_batch.__doc__
