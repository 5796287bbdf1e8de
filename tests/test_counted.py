"""Counts mixed into head 1: a distribution, the plain gradients, each training position predicted without itself."""
import pytest
import torch
from torch.nn import functional as F

from model.kernels.ngram_head import EVERY_ORDER, CountedHead, last_ids
from model.lora import apply_lora
from model.tiny_seek import TinySeek
from toy import build_stage, decode_in_pieces, pack, toy_config, toy_model, toy_options, toy_vocab, train

ORDER = 4


def corpus(count=40, length=31, seed=0):
    """Documents that begin with 1 and repeat themselves a lot: ids (T,), positions (T,), rows (count, length)."""
    rows = torch.randint(16, 24, (count, length), generator=torch.Generator().manual_seed(seed))
    rows[:, 0] = 1
    return rows.flatten(), torch.arange(length).repeat(count), rows


def counted_model(**changes):
    model, (ids, positions, rows) = toy_model(counted=ORDER, use_fc2=False, **changes), corpus()
    emptied(model.fc1).count(ids, positions)
    return model, rows[:3]


def emptied(head):
    for table in head.tables:
        table.__init__(table.order, table.vocab_size)
    head.documents = head.documents[:0]
    return head


def labels_nll(model, rows):
    return F.cross_entropy(model(rows).logits_1[:, :-1].flatten(0, 1), rows[:, 1:].flatten())


def test_tables_hold_what_followed():
    head = CountedHead(toy_config(counted=4, use_fc2=False))
    ids = torch.tensor([1, 20, 21, 20, 21, 22, 1, 20, 21])
    positions = torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2])
    head.count(ids, positions)
    two, three, four = head.tables
    here = torch.tensor([[20, 1]])                                                # ... 1 20 ?
    assert [float(f) for f in two.facts(here, torch.tensor([21]))] == [3, 1, 3]
    assert [float(f) for f in two.facts(torch.tensor([[21]]), torch.tensor([22]))] == [2, 2, 1]
    assert [float(f) for f in three.facts(here, torch.tensor([21]))] == [2, 1, 2]
    once = torch.tensor([[21, 20, 21]])
    assert [float(f) for f in three.facts(once, torch.tensor([22]))] == [2, 2, 1]
    assert [float(f) for f in four.facts(once, torch.tensor([22]))] == [0, 0, 0]  # seen once: left out
    assert [float(f) for f in two.facts(torch.tensor([[99]]), torch.tensor([22]))] == [0, 0, 0]


def test_logits_are_log_probabilities_and_the_loss_is_theirs():
    model, rows = counted_model()
    out = model(rows, labels=rows, return_logits=True)
    torch.testing.assert_close(out.logits_1.exp().sum(-1), torch.ones(3, 31, dtype=torch.float64), rtol=0, atol=1e-6)
    assert float(out.loss) == pytest.approx(float(labels_nll(model, rows)), rel=1e-6)
    plain = F.linear(out.hidden[..., :16], model.fc1.weight).log_softmax(-1)
    assert (plain - out.logits_1).abs().max() > 0.1                               # the tables have a say


def test_gradients_of_the_chunked_loss_are_those_of_the_logits():
    model, rows = counted_model(use_moe=False)
    model(rows, labels=rows).loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    labels_nll(model, rows).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_the_loss_knows_what_lora_adds_to_the_head():
    model, rows = counted_model(use_moe=False)
    before = float(model(rows, labels=rows).loss)
    apply_lora(model, 2, targets="heads")
    model.fc1.weight_lora[0].b.data.normal_()
    out = model(rows, labels=rows, return_logits=True)
    assert float(out.loss) == pytest.approx(float(labels_nll(model, rows)), rel=1e-6) != before
    each = model(rows, labels_1=torch.nn.functional.pad(rows[:, 1:], (0, 1), value=-100), each=True).losses_1
    assert float(each.sum() / (rows.numel() - len(rows))) == pytest.approx(float(out.loss), rel=1e-6)
    out.loss.backward()
    assert all(p.grad.abs().max() > 0 for p in model.fc1.weight_lora.parameters())


def test_in_training_a_position_is_predicted_as_if_it_had_not_been_counted():
    model, _ = counted_model()
    ids, positions, rows = corpus()
    row = rows[:1]
    left_out = float(model(row, labels=row, left_out=torch.full_like(row, EVERY_ORDER)).loss)
    with_it = float(model.eval()(row, labels=row).loss)
    before = last_ids(ids.roll(1), positions - 1, ORDER - 1)
    total = 0.0
    for t in range(1, row.shape[1]):
        others = positions > 0
        # the tables without this one occurrence
        others[t] = False
        for table in model.fc1.tables:
            table.__init__(table.order, table.vocab_size)
            table.count(before[others], ids[others])
        total -= float(model(row).logits_1[0, t - 1, row[0, t]])
    assert left_out == pytest.approx(total / (row.shape[1] - 1), rel=1e-6)
    assert left_out > with_it + 0.01


def test_packed_documents_and_cached_tokens_find_their_own_contexts():
    model, rows = counted_model()
    documents = [row[:length].tolist() for row, length in zip(rows, (9, 20, 13))]
    batch, starts = pack(documents, 31)
    packed = model.eval()(**batch).logits_1.flatten(0, 1)
    for document, start in zip(documents, starts):
        alone = model(torch.tensor([document])).logits_1[0]
        torch.testing.assert_close(packed[start:start + len(document)], alone, rtol=0, atol=1e-9)
    torch.testing.assert_close(decode_in_pieces(model, rows, [1, 5, 25]), model(rows).logits_1, rtol=0, atol=1e-9)


def test_tables_travel_in_the_checkpoint():
    model, rows = counted_model()
    fresh = TinySeek(model.config).double()
    fresh.load_state_dict(model.state_dict(), strict=True)
    with torch.device("meta"):
        assigned = TinySeek(model.config)
    assigned.load_state_dict(model.state_dict(), strict=True, assign=True)
    for other in (fresh, assigned):
        assert torch.equal(other.eval()(rows).logits_1, model.eval()(rows).logits_1)


def test_refused_where_it_cannot_be():
    for wrong in ({"counted": 1}, {"counted": -2}, {"counted": 9}, {"counted": 3, "use_fc2": True}, {"qk_norm": True}):
        with pytest.raises(ValueError):
            toy_config(**{"use_fc2": False, **wrong})


def test_a_run_counts_its_training_text_and_resumes_bit_for_bit(tmp_path):
    keys = dict(counted=3, use_fc2=False, max_steps=6, embedding_lr=1e-3)
    whole = train(toy_options(tmp_path / "a", toy_vocab(), **keys)) if (tmp_path / "a").mkdir() is None else None
    (tmp_path / "b").mkdir()
    options = toy_options(tmp_path / "b", toy_vocab(), **keys)
    assert train(options, stop_after=3).exit == 143
    again = train(options)
    assert whole.stage.train.counted.all()
    assert whole.stage.notes["counted_tokens"] == build_stage(options).notes["counted_tokens"] > 100
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    rates = {g["base_lr"] for optimizer in whole.optimizers for g in optimizer.param_groups}
    assert rates == {5e-3, 1e-3}
