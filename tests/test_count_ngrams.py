"""Tables know what they counted: that text is left out in every stage, new text is counted, adapters count nothing."""
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ranks
import toy
from chat_agent.evaluation.scoring import document_losses
from model.kernels.ngram_head import EVERY_ORDER, UNLISTED, CountedHead, last_ids
from model.tiny_seek import TinySeek
from tools.checkpoint import read_checkpoint
from tools.saving.archive import write_torch
from toy import build_stage, dialogue_rows, same_tensors, text_rows, toy_config, toy_options, train
from train_agent.trainers.data import count_ngrams
from train_agent.trainers.dataset import Position
from train_agent.trainers.preflight import preflight
from train_agent.trainers.trainer import Trainer

COUNTED = dict(counted=4, use_fc2=False, max_steps=2, logging_steps=None)


@pytest.fixture(scope="module")
def world(tmp_path_factory, vocab):
    """A folder with a model pre-trained on 30 rows of text."""
    folder = tmp_path_factory.mktemp("counted")
    train(toy_options(folder, vocab, name="base", **COUNTED))
    return folder


def options(world, vocab, stage="sft", rows=24, base="base/TinySeek_Pre_final.pkl", **keys):
    keys = {**COUNTED, "pretraining_model_path": str(world / "out" / base), **keys}
    return toy_options(world, vocab, stage, rows, **keys)


def tables(model):
    weights = model if isinstance(model, dict) else model.state_dict()
    return {n.split("fc1.")[1]: t for n, t in weights.items() if "fc1.tables" in n or n.endswith("fc1.documents")}


def left_out(data):
    """Highest orders of all targets of the first chunk."""
    batches = [data.batch(Position(0, 0, i)) for i in range(data.batches_in(0, 0))]
    return torch.cat([b.left_out[b.labels_1 >= 0] for b in batches])


def flat(rows):
    return torch.tensor([i for row in rows for i in row]), torch.tensor([i for row in rows for i in range(len(row))])


def head_of(*texts):
    head = CountedHead(toy_config(counted=4, use_fc2=False))
    for rows in texts:
        head.count(*flat(rows))
    return head


def documents(seed, count=20):
    rows = torch.randint(16, 22, (count, 15), generator=torch.Generator().manual_seed(seed))
    return [[1, *row] for row in rows.tolist()]


# ---- the tables themselves ----

def test_texts_counted_one_after_the_other_add_up():
    one, two = documents(0), documents(1)
    both, whole = head_of(one, two), head_of(one + two)
    assert torch.equal(both.documents, whole.documents) and len(whole.documents) == 40
    for added, counted in zip(both.tables[:2], whole.tables):                     # every pair is kept: exactly the same
        assert same_tensors(added.state_dict(), counted.state_dict())
    before, ids = last_ids(flat(one + two)[0], flat(one + two)[1], 3)[:-1], flat(one + two)[0][1:]
    _, _, added = both.tables[2].facts(before, ids)
    _, _, counted = whole.tables[2].facts(before, ids)
    assert (added <= counted).all() and (added > 0).any()                         # pairs that each had once are missing


def test_a_head_knows_its_documents_and_an_older_one_looks_at_them():
    one, other = documents(0), [[1, *range(30, 45)], [1, 16, 17, 40]]
    head = head_of(one)
    assert head.holds(*flat(one + other)).tolist() == [True] * 20 + [False] * 2
    assert head.holds(*flat([row[:-1] for row in one])).sum() == 0                # a part of it is another document
    old = {n: t for n, t in head.state_dict().items() if n != "documents"}
    loaded = CountedHead(toy_config(counted=4, use_fc2=False))
    loaded.load_state_dict(old)
    assert loaded.documents.tolist() == [UNLISTED]
    assert loaded.holds(*flat(one + other)).tolist() == [True] * 20 + [False] * 2
    loaded.count(*flat(other))
    assert loaded.holds(*flat(one + other)).all() and UNLISTED in loaded.documents


def test_ids_beyond_what_bfloat16_can_write():
    """The ids read last are numbers of their own, whatever the precision of the hidden states."""
    model = TinySeek(replace(toy_config(counted=3, use_fc2=False), vocab_size=70_001)).to(torch.bfloat16).eval()
    rows = [[1, 70_000, 69_999, 65_793]] * 2
    model.fc1.count(*flat(rows))
    probabilities = model(torch.tensor(rows[:1])).logits_1[0].exp()
    assert all(probabilities[i, after] > 0.1 for i, after in enumerate(rows[0][1:]))


def test_pieces_of_a_long_document_are_left_out_exactly(tmp_path, vocab):
    """Each target's loss is that of tables without its one occurrence, also where a piece begins within a document."""
    rows = [{"text": "".join(r["text"] for r in text_rows(6, seed))} for seed in range(3)]
    stage = build_stage(toy_options(tmp_path, vocab, rows=rows, max_len=12, batch_size=64, **COUNTED))
    stage.model.double()
    batch, head = stage.train.batch(Position(0, 0, 0)), stage.model.fc1
    found = stage.model(batch.ids, labels_1=batch.labels_1, positions=batch.positions, layout=batch.layout, each=True,
                        left_out=batch.left_out).losses_1.flatten()
    ids, positions = count_ngrams.text_of(stage.train.cache, stage.train.documents)
    hidden, before, _ = stage.model.encode(batch.ids, batch.positions, batch.layout)
    whole, inner = last_ids(ids.roll(1), positions - 1, head.past), positions > 0
    assert set(batch.left_out[batch.labels_1 >= 0].tolist()) > {2, 3, EVERY_ORDER}
    for place in range(0, len(found), 7):
        target = int(batch.labels_1.flatten()[place])
        if target < 0:
            continue
        known = int(min(batch.positions.flatten()[place] + 1, head.past))         # ids before it that are seen
        same = inner & (ids == target) & (whole[:, :known] == before[place, :known]).all(1)
        others = inner.clone()
        others[same.nonzero()[0]] = False
        for table in head.tables:
            table.__init__(table.order, table.vocab_size)
            table.count(whole[others], ids[others])
        alone = head.losses(hidden[place:place + 1], torch.tensor([target]), before[place:place + 1])
        assert float(alone.detach()) == pytest.approx(float(found[place].detach()), rel=1e-6), place


# ---- stages ----

def test_going_on_with_the_same_text_counts_nothing_twice(world, vocab):
    base = read_checkpoint(world / "out/base/TinySeek_Pre_final.pkl")
    stage = build_stage(options(world, vocab, "pre", 30, pretraining_model_path=None, name="on",
                                init_from=str(world / "out/base/TinySeek_Pre_final.pkl")))
    assert stage.notes["counted_tokens"] == 0 and same_tensors(tables(stage.model), tables(base["weights"]))
    assert stage.train.counted.all() and (left_out(stage.train) > 0).all()


def test_going_on_with_more_text_counts_what_is_new(world, vocab, tmp_path):
    stage = build_stage(options(world, vocab, "pre", text_rows(30) + text_rows(20, 5), name="more"))
    whole = build_stage(toy_options(tmp_path, vocab, rows=text_rows(30) + text_rows(20, 5), **COUNTED))
    assert 0 < stage.notes["counted_tokens"] < whole.notes["counted_tokens"]
    assert torch.equal(stage.model.fc1.documents, whole.model.fc1.documents)
    for added, counted in zip(stage.model.fc1.tables[:2], whole.model.fc1.tables):
        assert same_tensors(added.state_dict(), counted.state_dict())


def test_fine_tuning_counts_its_dialogues_and_resumes_bit_for_bit(world, vocab):
    keys = dict(rows=dialogue_rows(40, 3), eval_share=0.1, max_steps=6, save_steps=2)
    whole = train(options(world, vocab, name="whole", **keys), "sft")
    assert train(options(world, vocab, name="torn", **keys), "sft", stop_after=3).exit == 143
    assert train(options(world, vocab, name="torn", **keys), "sft", kill_after=5).exit == -9
    again = train(options(world, vocab, name="torn", **keys), "sft")
    assert again.exit == 0 and same_tensors(whole.model.state_dict(), again.model.state_dict())
    base = read_checkpoint(world / "out/base/TinySeek_Pre_final.pkl")["weights"]
    stage = whole.stage
    assert stage.notes["counted_tokens"] > 100 and stage.notes["counting_cpu_seconds"] >= 0
    assert len(stage.model.fc1.documents) > len(base["fc1.documents"])
    assert (left_out(stage.train) > 0).all() and (left_out(stage.held["held"]) == 0).all()


def test_fine_tuning_after_a_mixed_pre_training(world, vocab):
    """Training and held-out dialogues were counted before: both are left out, nothing is counted again."""
    rows = dialogue_rows(40, 4)
    train(options(world, vocab, "pre", text_rows(30) + rows, pretraining_model_path=None, name="mixed"))
    stage = build_stage(options(world, vocab, "sft", rows, base="mixed/TinySeek_Pre_final.pkl", eval_share=0.1), "sft")
    assert stage.notes["counted_tokens"] == 0
    for data in (stage.train, stage.held["held"]):
        assert (left_out(data) > 0).all()


def test_replayed_text_is_left_out(world, vocab):
    """The general rows: those of the pre-training text are in the tables, others are counted with the dialogues."""
    general = toy.write_rows(world / "general.jsonl", text_rows(30) + text_rows(10, 7))
    keys = dict(rows=dialogue_rows(24, 3), replay_share=0.3, replay_data_path=str(general), max_epochs=3)
    stage = build_stage(options(world, vocab, name="replay", **keys), "sft")
    assert all((stage.train._order(epoch)[0] >= 24).any() for epoch in range(3))
    assert stage.train.counted[stage.train.ever()].all() and (left_out(stage.train) > 0).all()
    lora = build_stage(options(world, vocab, "lora", name="replay_lora", **keys), "lora")
    assert 0 < lora.train.counted.sum() < len(lora.train.ever())
    assert set(left_out(lora.train).tolist()) == {0, EVERY_ORDER}


@pytest.mark.parametrize("stage, keys", [("lora", {"rank": 2}), ("prefix", {"prefix_len": 3}),
                                         ("memory", {"memory_tokens": 12, "memory_chapters": 4})])
def test_adapters_leave_the_tables_alone(world, vocab, stage, keys):
    rows = dialogue_rows(24, 3)
    train(options(world, vocab, "sft", rows, name="chat"), "sft")
    base = read_checkpoint(world / "out/chat/TinySeek_SFT_final.pkl")["weights"]
    rows += dialogue_rows(10, 8)
    built = build_stage(options(world, vocab, stage, rows, base="chat/TinySeek_SFT_final.pkl", name=stage, **keys),
                        stage)
    assert same_tensors(tables(built.model), tables(base)) and "counted_tokens" not in built.notes
    documents = built.train.counted[built.train.ever()]
    assert documents[:24].all() and not documents[24:].any()
    loop = toy.run_loop(built)
    assert same_tensors(tables(loop.model), tables(base))


def test_preferred_replies_that_were_counted_are_left_out(world, vocab):
    chats = [{"conversations": [{"role": "user", "content": f"{a}呢？"}, {"role": "assistant", "content": f"{a}，{a}。"}]}
             for a in toy.THINGS]
    train(options(world, vocab, "sft", chats, name="prefers"), "sft")
    pairs = [{"prompt": f"{a}呢？", "chosen": f"{a}，{a}。", "rejected": f"{b}，{a}不见了。"}
             for a, b in zip(toy.THINGS, toy.THINGS[1:])]
    stage = build_stage(options(world, vocab, "dpo", pairs, base="prefers/TinySeek_SFT_final.pkl", batch_size=4), "dpo")
    batch = stage.train.batch(Position(0, 0, 0))
    chosen = batch.owner.view(1, -1) % 2 == 0
    assert (batch.left_out[chosen] == EVERY_ORDER).all() and (batch.left_out[~chosen] == 0).all()
    loop = toy.run_loop(stage)                                                    # the reference is left out likewise
    assert loop.history[0]["margin"] == pytest.approx(0, abs=1e-4)


def test_a_checkpoint_that_kept_no_list(world, vocab, capsys):
    """It is said, and what was counted is found by looking at it."""
    payload = read_checkpoint(world / "out/base/TinySeek_Pre_final.pkl")
    payload["weights"] = {n: t for n, t in payload["weights"].items() if n != "fc1.documents"}
    (world / "out/old").mkdir(exist_ok=True)
    write_torch(world / "out/old/TinySeek_Pre_final.pkl", payload)
    stage = build_stage(options(world, vocab, "pre", 30, base="old/TinySeek_Pre_final.pkl", name="new"))
    assert stage.train.counted.all() and stage.notes["counted_tokens"] == 0
    assert "旧版本" in capsys.readouterr().err
    stage = build_stage(options(world, vocab, "sft", dialogue_rows(24, 3), base="old/TinySeek_Pre_final.pkl"), "sft")
    assert stage.notes["counted_tokens"] > 100 and stage.train.counted.all()


def test_more_text_than_can_be_counted(tmp_path, vocab, monkeypatch, capsys):
    monkeypatch.setattr(count_ngrams, "MOST", 400)
    stage = build_stage(toy_options(tmp_path, vocab, **COUNTED))
    assert 0 < stage.notes["counted_tokens"] <= 600 and 0 < stage.train.counted.sum() < len(stage.train.ever())
    assert {0, EVERY_ORDER} < set(left_out(stage.train).tolist())
    said = capsys.readouterr().err
    assert "400" in said and "--counted 0" in said


def test_a_model_given_to_the_trainer_gets_the_tables(world, vocab):
    mine = TinySeek(build_stage(options(world, vocab, "pre", 30, pretraining_model_path=None)).model.config)
    keys = dict(pretraining_model_path=None, name="mine", resume="none")
    trainer = Trainer(options(world, vocab, "pre", 30, **keys), model=mine)
    assert trainer.model is mine and mine.fc1.documents.numel() == 30 and trainer.stage.train.counted.all()
    assert np.isfinite(trainer.train()["loss"])


def test_scores_of_counted_documents_leave_them_out(world, vocab):
    from model.build import build
    model = build([read_checkpoint(world / "out/base/TinySeek_Pre_final.pkl")])
    stage = build_stage(options(world, vocab, "pre", 30, name="scored"))
    texts = [stage.train.cache.document(i) for i in range(4)]
    ids, size = torch.from_numpy(texts[2][0]), len(texts[2][0]) - 1
    every = torch.full((1, size), EVERY_ORDER)
    inside = model(ids[None, :-1], labels_1=ids[None, 1:], each=True, left_out=every).losses_1
    assert document_losses(model, texts, window=512)[0][2] == pytest.approx(float(inside.sum()), rel=1e-6)
    seen = model(ids[None, :-1], labels_1=ids[None, 1:], each=True).losses_1
    assert float(inside.sum()) > float(seen.sum()) + 1


def test_two_processes_count_once_and_share(tmp_path, vocab):
    keys = dict(COUNTED, rows=60, n_of_samples=13, max_epochs=2, resume="none", max_steps=4, logging_steps=1)
    jobs = [{"options": toy_options(tmp_path, vocab, name="ddp", **keys)},
            {"options": toy_options(tmp_path, vocab, name="fsdp", distributed="fsdp", **keys)}]
    (ddp, fsdp), _ = ranks.launch(Path(tmp_path), jobs)
    alone = build_stage(toy_options(tmp_path, vocab, name="one", accumulation_steps=2, **keys))
    alone.model.double()
    loop = toy.run_loop(alone)
    for result in (ddp, fsdp):
        assert [h["loss"] for h in result["history"]] == pytest.approx([h["loss"] for h in loop.history], abs=1e-9)
    for name in ("ddp", "fsdp"):
        saved = read_checkpoint(tmp_path / f"out/{name}/TinySeek_Pre_final.pkl")["weights"]
        assert same_tensors(tables(saved), tables(loop.model))


# ---- what the preflight says ----

def natural(count, seed):
    """Rows of characters drawn at random: what one says tells nothing of another, so tables know little of new rows."""
    rng = np.random.default_rng(seed)
    letters = "".join(toy.THINGS)
    return ["".join(rng.choice(list(letters), 40)) for _ in range(count)]


def said(stage):
    found = preflight(stage, seconds=0, say=None)["first_loss"]
    return found["level"], found["text"]


def test_a_healthy_counted_run_is_no_leak(tmp_path, vocab):
    rows = toy.text_rows(120)
    stage = build_stage(toy_options(tmp_path, vocab, rows=rows, eval_share=0.2, batch_size=8, **COUNTED))
    level, text = said(stage)
    assert level == "ok" and "来自计数表" in text and stage.train.counted[stage.train.documents].all()


def test_counted_text_cut_in_another_way_is_a_leak(tmp_path, vocab):
    texts = natural(60, 1)
    keys = dict(COUNTED, eval_share=0.2, batch_size=8, max_len=100)
    train(toy_options(tmp_path, vocab, rows=[{"text": t} for t in texts], name="base", **{**keys, "eval_share": 0.0}))
    joined = [{"text": a + b} for a, b in zip(texts[::2], texts[1::2])]
    other = [{"text": t} for t in natural(8, 2)]
    rows = [other.pop() if i % 5 == 0 and other else joined.pop() for i in range(30)]        # every fifth is held out
    path = str(tmp_path / "out/base/TinySeek_Pre_final.pkl")
    stage = build_stage(toy_options(tmp_path, vocab, rows=rows, name="again", init_from=path, **keys))
    level, text = said(stage)
    assert level == "warn" and "换了分段" in text
    rows = [{"text": t} for t in natural(30, 3)]
    stage = build_stage(toy_options(tmp_path, vocab, rows=rows, name="new", init_from=path, **keys))
    assert said(stage)[0] == "ok"
