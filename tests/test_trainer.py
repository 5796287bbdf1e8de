"""T9, D11, D13: the names that people import, thin over the same loop."""
import math

import pytest
import torch
from torch import nn

import toy
from tools.checkpoint import read_checkpoint, read_pair
from tools.config_manager import ConfigManager
from tools.errors import UserError
from train_agent.trainers import (TextDataset, Trainer, TrainingConfig,
                                  create_dataloader, get_cosine_schedule_with_warmup)

VOCAB = 11


class Numbers(torch.utils.data.Dataset):
    """Counting sequences: easy to learn, uneven in length of what counts."""

    def __init__(self, count, length=8):
        self.count, self.length = count, length

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        window = torch.arange(i, i + self.length + 1) % VOCAB
        targets = window[1:].clone()
        targets[: i % 3] = -1
        return window[:-1], targets


class Guess(nn.Module):
    """Somebody's own module: tokens (B, T) -> logits (B, T, V)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(VOCAB, 16), nn.Linear(16, VOCAB)

    def forward(self, tokens):
        return self.out(self.embed(tokens))


def config(folder, **keys):
    given = dict(batch_size=4, seq_len=8, epochs=3, learning_rate=0.05, warmup_steps=2, eval_interval=4,
                 save_interval=1000, device="cpu",
                 mixed_precision="no", output_dir=str(folder))
    return TrainingConfig(**{**given, **keys})


def test_T9_any_module_with_data_sets_learns(ram_path):
    trainer = Trainer(Guess(), Numbers(20), Numbers(7), config(ram_path))
    before = trainer.evaluate()
    metrics = trainer.train()
    assert trainer.loop.step == 15 and trainer.evaluate() < 0.5 * before < math.log(VOCAB) + 1
    assert metrics["eval_loss"] == pytest.approx(trainer.evaluate()) and metrics["loss"] < before
    assert (ram_path / "trainer" / "TinySeek_Pre_final.pkl").exists() and (ram_path / "trainer" / "log.txt").exists()


def test_T9_evaluate_counts_targets(ram_path):
    model, data = Guess(), Numbers(7)
    trainer = Trainer(model, Numbers(4), data, config(ram_path, batch_size=3))
    total = count = 0
    for tokens, targets in (data[i] for i in range(7)):
        keep = targets >= 0
        total += float(nn.functional.cross_entropy(model(tokens[None])[0][keep], targets[keep], reduction="sum"))
        count += int(keep.sum())
    assert trainer.evaluate() == pytest.approx(total / count, rel=1e-6)
    with pytest.raises(UserError):
        Trainer(Guess(), Numbers(4), config=config(ram_path)).evaluate()


def test_T9_epoch_by_epoch_is_the_whole_training(ram_path):
    whole, steps = Trainer(Guess(), Numbers(10), Numbers(4), config(ram_path, run_name="whole")), []
    whole.train()
    parts = Trainer(Guess(), Numbers(10), Numbers(4), config(ram_path, run_name="parts"))
    means = [parts.train_epoch() for _ in range(3)]
    assert parts.loop.step == whole.loop.step == 9 and means[0] > means[1] > means[2]
    assert toy.same_tensors(parts.model.state_dict(), whole.model.state_dict())
    with pytest.raises(UserError):
        parts.train_epoch()
    assert parts.train()["loss"] == pytest.approx(whole.loop.metrics["loss"])


def test_T9_save_checkpoint(ram_path):
    trainer = Trainer(Guess(), Numbers(10), None, config(ram_path))
    trainer.train_epoch()
    path = trainer.save_checkpoint(ram_path / "mine" / "first.pt")
    payload, state = read_pair(path)
    assert path.name == "first.pkl" and payload["step"] == state["step"] == 3 and state["optimizers"][0]["state"]
    assert toy.same_tensors(payload["weights"], dict(trainer.model.state_dict()))


def test_T9_a_model_with_an_auxiliary_loss(ram_path):
    class Out:
        def __init__(self, logits, aux_loss):
            self.logits, self.aux_loss = logits, aux_loss

    class WithAux(Guess):
        def forward(self, tokens):
            return Out(super().forward(tokens), self.out.weight.pow(2).sum())
    trainer = Trainer(model=WithAux(), train_dataset=Numbers(4), val_dataset=None,
                      config=config(ram_path, learning_rate=1e-9, epochs=1))
    metrics = trainer.train()
    aux = float(WithAux().out.weight.pow(2).sum())
    assert metrics["loss"] - metrics["ce_1"] == pytest.approx(aux, rel=1e-4)


def test_T9_our_model_on_text_windows(ram_path, vocab):
    text = ram_path / "a.txt"
    text.write_text("".join(row["text"] for row in toy.text_rows(30)), encoding="utf-8")
    data = TextDataset(text, vocab, 16)
    model = toy.TinySeek(toy.ModelConfig(vocab_size=len(vocab), **toy.SHAPE))
    trainer = Trainer(model, data, TextDataset(text, vocab, 16, stride=40),
                      config(ram_path, seq_len=16, learning_rate=5e-3), tokenizer=vocab)
    before = trainer.evaluate()
    metrics = trainer.train()
    assert {"ce_1", "ce_2", "lexp"} <= metrics.keys() and trainer.evaluate() < before
    payload = read_checkpoint(ram_path / "trainer" / "TinySeek_Pre_final.pkl")
    assert payload["vocab_hash"] == vocab.hash and payload["config"]["d_model"] == 16, "chat and evaluate can read it"


def test_T9_from_a_configuration(options):
    chosen = options(rows=20, max_epochs=2, eval_share=0.2)
    by_hand, trainer = toy.train({**chosen, "name": "hand"}), Trainer({**chosen, "name": "trainer"}, stage="pre")
    trainer.train_epoch()
    assert trainer.loop.position.epoch == 0 or trainer.loop.position.chunk == 0
    trainer.train()
    assert toy.same_tensors(trainer.model.state_dict(), by_hand.model.state_dict())
    assert trainer.evaluate() == pytest.approx(by_hand.held["eval_loss"])


def test_T9_a_second_trainer_begins_afresh_as_the_script_does(options):
    chosen = options(rows=20, max_steps=3)
    for _ in range(2):
        trainer = Trainer(chosen, stage="pre")
        trainer.train()
        assert trainer.loop.step == 3 and len(trainer.loop.losses) == 3
    assert list(toy.Path(chosen["out_dir"]).glob("backup_*"))


def test_T9_a_given_model_takes_the_place(options, vocab):
    chosen = options(rows=20, max_steps=2)
    model = toy.TinySeek(toy.ModelConfig(vocab_size=len(vocab), **{**toy.SHAPE, "n_layer": 1}))
    trainer = Trainer(chosen, model=model)
    assert trainer.model is model
    trainer.train()
    payload = read_checkpoint(toy.Path(chosen["out_dir"]) / "TinySeek_Pre_final.pkl")
    assert payload["config"]["n_layer"] == 1 and toy.same_tensors(payload["weights"], dict(model.state_dict()))
    with pytest.raises(UserError) as error:
        Trainer(chosen, model=toy.TinySeek(toy.ModelConfig(vocab_size=100, **toy.SHAPE)))
    assert error.value.code == 4
    with pytest.raises(UserError):
        Trainer(chosen, model=Guess())


def test_T9_the_stage_is_what_training_mode_says(tmp_path):
    from train_agent.trainers.trainer import _stage_of
    (tmp_path / "their.yaml").write_text("training:\n  training_mode: instruction_finetuning\n", encoding="utf-8")
    (tmp_path / "ours.json").write_text('{"training_mode": "pretraining"}', encoding="utf-8")
    for config, stage in (({"training": {"training_mode": "instruction_finetuning"}}, "sft"),
                          (str(tmp_path / "their.yaml"), "sft"),
                          ({"training_mode": "pretraining"}, "pre"), (str(tmp_path / "ours.json"), "pre"), ({}, "pre"),
                          (str(toy.Path(__file__).parents[1] / "model_config.json"), "pre")):
        assert _stage_of(ConfigManager(config)) == stage


def test_T9_training_config_is_checked(ram_path):
    chosen = config(ram_path).options()
    assert (chosen["init_lr"], chosen["max_norm"], chosen["max_epochs"], chosen["max_len"],
            chosen["optimizer"]) == (0.05, 1.0, 3, 8, "adamw")
    assert config(ram_path, more={"accumulation_steps": 2, "early_stopping": True}).options()["accumulation_steps"] == 2
    with pytest.raises(UserError):
        config(ram_path, learning_rate=-1.0).options()


# ---- TextDataset ----

class Letters:
    def encode(self, text):
        return [ord(c) for c in text]


@pytest.mark.parametrize("count, length, stride, windows",
                         [(1000, 128, None, 7), (129, 128, None, 1), (1000, 128, 64, 14), (10, 3, 1, 7)])
def test_D13_windows(tmp_path, count, length, stride, windows):
    path = tmp_path / "a.txt"
    path.write_text("".join(chr(97 + i % 26) for i in range(count)))
    data = TextDataset(path, Letters(), length, stride)
    assert len(data) == len(list(data)) == windows == (count - (length + 1)) // (stride or length) + 1
    tokens, targets = data[windows - 1]
    assert tokens.shape == targets.shape == (length,) and torch.equal(tokens[1:], targets[:-1])
    assert int(tokens[0]) == 97 + (windows - 1) * (stride or length) % 26 and torch.equal(data[-1][0], tokens)
    with pytest.raises(IndexError):
        data[windows]


def test_D13_too_short_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("abc")
    with pytest.raises(UserError) as error:
        TextDataset(tmp_path / "a.txt", Letters(), 3)
    assert error.value.code == 2
    with pytest.raises(UserError):
        TextDataset(tmp_path / "a.txt", Letters(), 2, stride=-1)
    with pytest.raises(UserError):
        TextDataset(tmp_path / "none.txt", Letters(), 2)


def test_D13_rows_of_a_data_file(ram_path, vocab):
    path = toy.write_rows(ram_path / "a.jsonl", [{"text": "书和茶"}, {"text": "月亮"}])
    assert vocab.decode(TextDataset(path, vocab, 3).ids.tolist()) == "书和茶\n月亮"


# ---- create_dataloader ----

def test_D11_batches_go_straight_into_the_model(ram_path, vocab):
    path = toy.write_rows(ram_path / "a.jsonl", toy.dialogue_rows(20))
    batches = create_dataloader(str(path), vocab, batch_size=2, max_length=48, cache_dir=ram_path / "cache")
    model = toy.TinySeek(toy.ModelConfig(vocab_size=len(vocab), **toy.SHAPE))
    epochs = [list(batches), list(batches)]
    for epoch in epochs:
        for batch in epoch:
            outputs = model(**batch)
            assert torch.isfinite(outputs.loss) and outputs.aux_loss is not None
    tokens = [sorted(int(b["valid"].sum()) for b in epoch) for epoch in epochs]
    assert sum(tokens[0]) == sum(tokens[1]) and len(batches) == len(epochs[1])
    assert not torch.equal(epochs[0][0]["input_ids"], epochs[1][0]["input_ids"]), "another order in every epoch"


def test_D11_num_samples_shuffle_and_modes(ram_path, vocab):
    path = toy.write_rows(ram_path / "a.jsonl", toy.text_rows(20))
    keys = dict(tokenizer=vocab, batch_size=1, max_length=128, cache_dir=ram_path / "cache",
                training_mode="pretraining")
    few = list(create_dataloader(path, num_samples=3, shuffle=False, **keys))
    texts = [vocab.decode(b["input_ids"][b["valid"]].tolist()) for b in few]
    assert sum(int((b["positions"] == 0)[b["valid"]].sum()) for b in few) == 3
    assert all(row["text"][:6] in "".join(texts) for row in toy.text_rows(3))
    plain = create_dataloader(path, shuffle=False, **keys)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(plain, plain, strict=True))
    for wrong in ({"training_mode": "else"}, {"batch_size": 0}, {"max_length": 1}):
        with pytest.raises(UserError):
            create_dataloader(path, **{**keys, **wrong})
    with pytest.raises(UserError):
        create_dataloader(str(ram_path / "none.jsonl"), **keys)


@pytest.mark.parametrize("workers", [0, 2])
def test_D7_workers_prefetch_and_fewer_rows_than_a_batch(ram_path, vocab, workers):
    path = toy.write_rows(ram_path / "a.jsonl", toy.text_rows(3))
    batches = create_dataloader(path, vocab, batch_size=64, max_length=64, num_workers=workers,
                                cache_dir=ram_path / "cache", training_mode="pretraining")
    found = list(batches)
    assert len(found) == len(batches) == 1 and 1 <= found[0]["input_ids"].shape[0] <= 3


def test_D8_training_mode_decides_what_is_a_target(ram_path, vocab):
    path = toy.write_rows(ram_path / "a.jsonl", toy.dialogue_rows(10))
    keys = dict(tokenizer=vocab, batch_size=4, max_length=64, cache_dir=ram_path / "cache", shuffle=False)
    talk, text = (list(create_dataloader(path, training_mode=mode, **keys))
                  for mode in ("instruction_finetuning", "pretraining"))
    targets = [sum(int((b["labels_1"] >= 0).sum()) for b in batches) for batches in (talk, text)]
    tokens = sum(int(b["valid"].sum()) for b in text)
    assert 0 < targets[0] < targets[1] and targets[1] > 0.9 * tokens
    with pytest.raises(UserError):
        create_dataloader(path, training_mode="finetuning", **keys)


def test_S6_the_schedule_for_somebody_elses_loop():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 2, 10)
    rates = []
    for _ in range(11):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert rates[0] == 0 and rates[2] == 1 and rates[10] == pytest.approx(0.1)


def test_a_trainer_of_a_module_starts_from_what_it_was_given(ram_path):
    with pytest.raises(UserError, match="init_from"):
        Trainer(model=Guess(), train_dataset=Numbers(4), config=config(ram_path, more={"init_from": "a.pkl"}))
