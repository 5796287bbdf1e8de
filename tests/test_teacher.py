"""Distillation: the divergence is the plain KL, its table is what the teacher says, and a run goes on to the bit."""
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import toy
from model.build import build
from model.kernels.cross_entropy import head_cross_entropy
from model.kernels.distillation import distilled_cross_entropy
from tools.checkpoint import load_chain
from tools.errors import UserError
from train_agent.trainers.data.teacher_table import Lessons, Taught, open_table
from train_agent.trainers.data import teacher_table
from train_agent.trainers.dataset import Position

WORDS = 300


def said(logits, k, temperature, weight=1.0):
    best = (logits / temperature).log_softmax(-1).topk(k, -1)
    return Taught(best.indices, best.values, temperature, weight)


def case(seed=0, rows=600, width=16):
    torch.manual_seed(seed)
    head = torch.nn.Linear(width, WORDS, bias=False).double()
    hidden = torch.randn(rows, width, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, WORDS, (rows,))
    labels[::3] = -100
    return head, hidden, labels, torch.randn(rows, WORDS, dtype=torch.float64) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_B6_with_the_whole_vocabulary_it_is_the_plain_divergence(temperature):
    """k = V: value and both gradients as autograd has them from whole logits, in float64."""
    head, hidden, labels, teacher = case()
    weight = 0.7 * temperature ** 2
    total, count, extra = distilled_cross_entropy(head, hidden, labels, said(teacher, WORDS, temperature, weight))
    (total * 1.3).backward()
    found = total.item(), extra.item(), hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    logits, learned = head(hidden), labels >= 0
    kl = F.kl_div((logits / temperature).log_softmax(-1), (teacher / temperature).log_softmax(-1), log_target=True,
                  reduction="none").sum(-1)[learned].sum() * weight
    plain = head_cross_entropy(head, hidden.detach(), labels)[0]
    ((F.cross_entropy(logits, labels, reduction="sum") + kl) * 1.3).backward()
    assert count == int(learned.sum()) and found[1] == pytest.approx(kl.item(), rel=1e-9)
    assert found[0] == pytest.approx(float(plain) + kl.item(), rel=1e-9)
    assert torch.allclose(found[2], hidden.grad, rtol=0, atol=1e-9)
    assert torch.allclose(found[3], head.weight.grad, rtol=0, atol=1e-9 * float(head.weight.grad.abs().max()))


@pytest.mark.parametrize("k", [1, 5, WORDS - 1])
def test_the_other_words_count_as_one(k):
    head, hidden, labels, teacher = case(seed=k)
    total, _, extra = distilled_cross_entropy(head, hidden, labels, said(teacher, k, 2.0, 1.0))
    total.backward()
    found = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    logits, learned = head(hidden), labels >= 0
    p, q = ((one / 2.0).softmax(-1) for one in (teacher, logits))
    best = p.topk(k, -1)
    events = [torch.cat([one.gather(1, best.indices), 1 - one.gather(1, best.indices).sum(-1, keepdim=True)], -1)
              for one in (p, q)]
    kl = (events[0] * (events[0].log() - events[1].log())).sum(-1)[learned].sum()
    whole = (p * (p.log() - q.log())).sum(-1)[learned].sum()
    (F.cross_entropy(logits, labels, reduction="sum") + kl).backward()
    assert extra.item() == pytest.approx(kl.item(), rel=1e-8) and kl <= whole + 1e-9
    assert torch.allclose(found[0], hidden.grad, rtol=0, atol=1e-8)
    assert torch.allclose(found[1], head.weight.grad, rtol=0, atol=1e-7)


def test_a_student_that_gives_nothing_to_the_others_stays_finite():
    head, hidden, labels, teacher = case()
    head.weight.data *= 500
    total, *_ = distilled_cross_entropy(head.float(), hidden.float(), labels, said(teacher.float(), 3, 1.0))
    total.backward()
    assert torch.isfinite(total) and torch.isfinite(head.weight.grad).all()


# ---------------------------------------------------------------- whole stages

@pytest.fixture(scope="module")
def teacher(tmp_path_factory, vocab):
    """The path of a trained model with experts."""
    options = toy.toy_options(tmp_path_factory.mktemp("teacher"), vocab, "sft", max_steps=4)
    toy.train(options, "sft")
    return str(Path(options["out_dir"]) / "TinySeek_SFT_final.pkl")


@pytest.fixture
def school(ram_path, vocab, teacher):
    return School(ram_path, vocab, teacher)


class School:
    """student(): options of a student of each stage."""

    def __init__(self, folder, vocab, teacher):
        self.folder, self.vocab, self.teacher = folder, vocab, teacher
        self.data = {"max_epochs": 2, "teacher": teacher, "kd_topk": 5, "kd_temperature": 2.0}

    def student(self, stage="sft", place="student", **keys):
        (self.folder / place).mkdir(exist_ok=True)
        if stage == "lora":
            keys = {"pretraining_model_path": self.teacher, "rank": 2, **keys}
        dense = {} if stage == "lora" else {"use_moe": False}
        own = str(self.folder / place / f"{stage}.jsonl")
        return toy.toy_options(self.folder / place, self.vocab, stage,
                               **{"replay_data_path": own, **self.data, **dense, **keys})


def direct(stage, batch, teacher):
    """The divergence of a batch without any table: whole logits of both."""
    with torch.no_grad():
        logs = [(m(batch.ids, positions=batch.positions, layout=batch.layout, return_logits=True).logits_1 /
                 stage.options["kd_temperature"]).log_softmax(-1) for m in (teacher.eval(), stage.model.eval())]
    nats = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)[batch.labels_1 >= 0].sum()
    return float(nats) * stage.options["kd_alpha"] * stage.options["kd_temperature"] ** 2


@pytest.mark.parametrize("stage_name", ["pre", "sft", "lora"])
def test_B6_every_batch_says_what_the_teacher_says_there(school, stage_name):
    """MoE to dense, packed rows, cut documents: the loss's divergence is that of both models side by side."""
    options = school.student(stage_name, kd_topk=None, kd_alpha=0.5, max_len=12, batch_size=3)
    stage, teacher = toy.build_stage(options, stage_name), build(load_chain(school.teacher)).double()
    stage.model.double()
    stage.train.teacher = open_table(
        teacher, "exact", Lessons(stage.train.cache, stage.train.ever(), 12, stage.train.truncate), len(school.vocab),
        options, torch.device("cpu"), "no")
    if stage_name == "lora":
        for name, parameter in stage.model.named_parameters():
            parameter.data += 0.3 * torch.randn_like(parameter) if parameter.requires_grad else 0
    for place in (Position(0, 0, 0), Position(1, 0, 2)):
        batch = stage.train.batch(place)
        _, sums = stage.loss(stage.model, batch, {"targets_1": 1, "targets_2": 1, "tokens": 1})
        plain = stage.loss(stage.model, toy_without(batch), {"targets_1": 1, "targets_2": 1, "tokens": 1})[1]
        assert float(sums["kd"]) == pytest.approx(direct(stage, batch, teacher), rel=1e-9)
        assert float(sums["ce_1"]) == pytest.approx(float(plain["ce_1"]), rel=1e-9) and float(sums["kd"]) > 0
    assert stage.train.batch(Position(0, 0, 0)).taught.ids.shape[2] == len(school.vocab)


def toy_without(batch):
    return type(batch)(**{**batch.__dict__, "taught": None})


@pytest.mark.parametrize("stage_name", ["pre", "sft", "lora"])
def test_B6_a_killed_run_goes_on_to_the_bit(school, stage_name, capsys):
    keys = dict(max_steps=8, save_steps=3, num_workers=0)
    whole = toy.train(school.student(stage_name, **keys), stage_name)
    assert "kd" in whole.history[0] and "各记 5 个最可能的" in capsys.readouterr().err
    torn = school.student(stage_name, "torn", **keys)
    toy.train(torn, stage_name, kill_after=5)
    again = toy.train(torn, stage_name)
    label = {"pre": "Pre", "sft": "SFT", "lora": "Lora"}[stage_name]
    one, other = (toy.final(loop.options, label)[0]["weights"] for loop in (whole, again))
    assert toy.same_tensors(one, other)
    assert capsys.readouterr().err.count("各记") == 1                       # made once for both starts


def test_a_student_from_nothing_takes_the_teachers_words(school):
    options = school.student("pre", "anew", max_steps=2)
    Path(options["vocab_trg_path"]).unlink()
    stage = toy.build_stage(options, "pre")
    assert stage.about["vocab_hash"] == school.vocab.hash and Path(options["vocab_trg_path"]).exists()


@pytest.mark.parametrize("wrong, said", [("words", "answer.py"), ("counted", "counted"), ("gone", "找不到老师")])
def test_who_cannot_be_teacher_and_student_is_told_so(school, wrong, said):
    options = school.student("pre", "wrong", **({"counted": 2, "use_fc2": False} if wrong == "counted" else {}))
    if wrong == "words":
        type(school.vocab).create_vocab(["另外的字"] * 9, vocab_size=450, texts=True, progress=False).save(
            options["vocab_trg_path"])
    if wrong == "gone":
        options["teacher"] = "nowhere.pkl"
    with pytest.raises(UserError, match=said) as caught:
        toy.build_stage(options, "pre")
    assert caught.value.code == (3 if wrong == "gone" else 4)


def test_a_full_disk_is_told_before_and_a_damaged_table_is_made_again(school, monkeypatch, capsys):
    options = school.student("sft", max_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(teacher_table.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
        with pytest.raises(UserError, match="磁盘放不下") as caught:
            toy.build_stage(options, "sft")
        assert caught.value.code == 7
    table = toy.build_stage(options, "sft").train.teacher
    raw = bytearray((table.folder / "logs.npy").read_bytes())
    raw[-1] ^= 1
    (table.folder / "logs.npy").write_bytes(raw)
    before = np.array(table.ids)
    capsys.readouterr()
    again = toy.build_stage(options, "sft").train.teacher
    assert "已损坏" in capsys.readouterr().err and np.array_equal(again.ids, before)


def test_held_out_losses_stay_those_of_the_data(school):
    options = school.student("sft", eval_share=0.2, max_steps=2)
    stage = toy.build_stage(options, "sft")
    assert stage.held["held"].teacher is None and stage.train.teacher is not None


def test_groups_hold_every_piece_once(school, monkeypatch):
    data = toy.build_stage(school.student("pre", "plain", teacher=None), "pre").train
    monkeypatch.setattr(teacher_table, "AT_ONCE", 25)
    lessons = Lessons(data.cache, data.ever(), 40, False)
    assert len(lessons.groups) > 5 and np.array_equal(np.concatenate(lessons.groups), lessons.pieces)
    assert (np.diff(lessons.places) > 0).all()
