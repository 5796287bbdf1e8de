"""A run that goes on with steps of another size, or with more to do: no row is lost, and the schedule still ends where
the data does."""
import math

import pytest

from toy import build_stage, same_tensors, train
from train_agent.trainers import dataset
from train_agent.trainers.dataset import Position
from train_agent.trainers.running.regrouping import more_steps, regrouped


def seen(loop):
    """Data rows of every micro-batch that was trained on, in their order."""
    return [row for step in loop.history for place in step["places"] for row in loop.stage.train.source_rows(place)]


@pytest.mark.parametrize("had, has", [(1, 3), (3, 1), (2, 5)])
def test_another_batch_size_loses_no_row(options, had, has):
    keys = dict(rows=60, max_len=16, dropout=0.1)                       # short rows: a document or a piece of one each
    first = train(options(batch_size=had, **keys), stop_after=4)
    again = train(options(batch_size=has, allow_change=True, **keys))
    rows = seen(first) + seen(again)
    assert set(rows) == set(seen(train(options(batch_size=2, name="whole", **keys)))) == set(range(60))
    assert again.history[0]["step"] == 5 and again.step == again.total_steps
    assert again.history[0]["places"][0].batch == 4 * had // has


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
@pytest.mark.parametrize("had, has", [(1, 4), (4, 1)])
def test_the_schedule_ends_where_the_data_does(options, scheduler, had, has):
    keys = dict(rows=60, max_len=16, batch_size=1, scheduler=scheduler, max_epochs=3)
    chosen = options(accumulation_steps=had, **keys)
    first = train(chosen, stop_after=int(0.4 * build_stage(chosen).train.steps(had)))
    again = train(options(accumulation_steps=has, allow_change=True, **keys))
    assert abs(again.step - again.total_steps) <= 3                     # a chunk's last step may be a small one
    rates = [step["lr"] for step in again.history]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.3 * rates[0]
    assert rates[0] == pytest.approx(first.history[-1]["lr"], rel=0.05), "and goes on where it was"


@pytest.mark.parametrize("scheduler", ["linear", "cosine"])
@pytest.mark.parametrize("had, has, limit, stop", [(2, 1, 20, 10), (2, 4, 20, 10), (1, 6, 40, 20), (1, 6, 40, 4),
                                                   (3, 1, 20, 5)])
def test_the_rate_goes_on_where_it_was_with_a_limit_of_steps(options, scheduler, had, has, limit, stop):
    """Also where the new steps no longer reach the limit, and in the middle of the warm-up."""
    keys = dict(rows=60, max_len=16, batch_size=1, scheduler=scheduler, max_epochs=1, max_steps=limit, warmup_steps=6)
    first = train(options(accumulation_steps=had, **keys), stop_after=stop)
    again = train(options(accumulation_steps=has, allow_change=True, **keys))
    before, after = ([step["lr"] for step in loop.history] for loop in (first, again))
    strides = [abs(before[-1] - before[-2]), abs(after[1] - after[0])]
    assert abs(after[0] - before[-1]) <= 1.2 * max(strides) and (after[0] < before[-1]) == (stop >= 6)
    falling = after[max(0, 6 - stop):]
    assert falling == sorted(falling, reverse=True) and abs(again.step - again.total_steps) <= 1
    assert after[-1] < 0.4 * 5e-3


def test_what_was_regrouped_once_resumes_bit_for_bit(options):
    keys = dict(rows=60, max_len=16, batch_size=1, scheduler="cosine", dropout=0.1, allow_change=True)
    finals = []
    for name, stops in (("through", [6, None]), ("stopped", [6, 9, None])):
        for number, stop in enumerate(stops):
            loop = train(options(name=name, accumulation_steps=1 if number == 0 else 3, **keys), stop_after=stop)
        finals.append(loop)
    assert finals[0].total_steps == finals[1].total_steps and finals[1].history[0]["step"] == 10
    assert same_tensors(finals[0].model.state_dict(), finals[1].model.state_dict())


def test_more_epochs_go_on_even_where_the_steps_were_estimated_too_high(options, monkeypatch):
    real = dataset.PackedData.steps
    monkeypatch.setattr(dataset.PackedData, "steps", lambda *a: real(*a) + 5)
    first = train(options())
    assert first.step < first.total_steps
    again = train(options(max_epochs=2))
    assert again.history[0]["step"] == first.step + 1 and again.step == 2 * first.step


def test_places_and_steps():
    assert regrouped(Position(1, 2, 9), 4, 8) == Position(1, 2, 4) and regrouped(Position(0, 0, 3), 8,
        2) == Position(0, 0, 12)

    class Data:
        epochs, chunks = 2, 4

        def batches_in(self, epoch, chunk):
            return 10
    assert more_steps(Data(), Position(0, 0, 0), 0, 100) == 0
    assert more_steps(Data(), Position(1, 0, 0), 20, 100) == 20 + 50 - 100
    assert more_steps(Data(), Position(1, 2, 5), 7, 80) == 7 + math.ceil(80 * 0.1875) - 80
    assert more_steps(Data(), Position(1, 4, 0), 9, 80) == 9 - 80


def test_other_held_out_data_is_asked_about_and_begins_a_new_count(options, ram_path):
    from toy import text_rows, write_rows
    held = write_rows(ram_path / "held.jsonl", text_rows(5, seed=9))
    keys = dict(max_steps=9, eval_steps=2)
    train(options(eval_share=0.2, **keys), stop_after=5)
    assert train(options(eval_data_path=str(held), **keys), stop_after=3).history[0]["step"] == 1
    again = build_stage(options(eval_data_path=str(held), **keys))
    assert again.held["held"].cache is not again.train.cache
