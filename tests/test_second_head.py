"""Head 2: what it learns from, what its gradient reaches, and the token that it already knows when it drafts."""
import pytest
import torch

import toy
from model.generate import generate
from train_agent.trainers.dataset import Position


def batch_of(ids):
    return dict(input_ids=ids, labels=ids)


def gradients(model, ids, head):
    """Gradients of one head's loss alone."""
    model.zero_grad(set_to_none=True)
    model(**batch_of(ids)).loss_sums[head].backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_Q2_the_defaults_are_the_documented_loss():
    config = toy.toy_config()
    assert (config.fc2_every, config.fc2_gradient, config.fc2_token) == (1, 1.0, False)


@pytest.mark.parametrize("token", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_Q2_a_share_of_the_gradient_reaches_the_trunk(share, token):
    ids = torch.randint(16, 300, (2, 9))
    full, part = (gradients(toy.toy_model(fc2_gradient=g, fc2_token=token).train(), ids, 1) for g in (1.0, share))
    for name, grad in full.items():
        if name.startswith(("fc2", "follow")):
            assert torch.allclose(part[name], grad)
        elif share:
            assert torch.allclose(part[name], share * grad), name
        else:
            assert name not in part or not part[name].any(), name


def test_Q2_head_1_does_not_notice():
    ids = torch.randint(16, 300, (2, 9))
    one, other = (gradients(toy.toy_model(fc2_gradient=g).train(), ids, 0) for g in (1.0, 0.0))
    assert all(torch.equal(other[name], grad) for name, grad in one.items())


def test_Q2_one_target_in_so_many_and_counted_as_such(options):
    whole, thin = (toy.build_stage(options(rows=40, fc2_every=every)).train for every in (1, 4))
    seen = 0
    for number in range(whole.batches_in(0, 0)):
        a, b = (data.batch(Position(0, 0, number)) for data in (whole, thin))
        kept = b.labels_2 >= 0
        assert torch.equal(b.labels_2[kept], a.labels_2[kept]) and torch.equal(a.labels_1, b.labels_1)
        assert b.targets_2 == int(kept.sum()) and b.targets_1 == a.targets_1
        assert set(((b.positions[kept] + number) % 4).tolist()) <= {0}
        seen += b.targets_2 / a.targets_2
    assert 0.15 < seen / whole.batches_in(0, 0) < 0.35


def test_Q2_held_out_rows_are_scored_whole(options):
    held = toy.build_stage(options(rows=60, fc2_every=4, eval_share=0.1)).held["held"]
    batch = held.batch(Position())
    assert batch.targets_2 > 0.7 * batch.targets_1


def test_Q2_the_known_token_is_the_next_of_the_same_document():
    """A change of token t + 1 changes what head 2 says at t, and nothing that head 1 says there."""
    model = toy.toy_model(fc2_token=True).eval()
    torch.nn.init.normal_(model.follow.weight, std=0.3)
    ids = torch.randint(16, 300, (1, 8))
    other = ids.clone()
    other[0, 4] += 1
    with torch.no_grad():
        one, two = model(ids), model(other)
    assert torch.equal(one.logits_1[0, :4], two.logits_1[0, :4])
    assert torch.equal(one.logits_2[0, :3], two.logits_2[0, :3]) and not torch.allclose(one.logits_2[0, 3],
        two.logits_2[0, 3])


def test_Q2_a_fresh_projection_changes_nothing():
    ids = torch.randint(16, 300, (2, 7))
    with torch.no_grad():
        plain, known = (toy.toy_model(fc2_token=token).eval()(ids).logits_2 for token in (False, True))
    assert plain.shape == known.shape
    model = toy.toy_model(fc2_token=True)
    model.initialise()
    assert not model.follow.weight.any()


def test_Q2_the_drafting_head_reads_what_training_gave_it():
    """Logits of head 2 while decoding equal those of a full pass over the same tokens."""
    from model.decoding.cache import DecodeCache
    model = toy.toy_model(fc2_token=True).eval()
    torch.nn.init.normal_(model.follow.weight, std=0.3)
    ids = torch.randint(16, 300, (1, 9))
    with torch.inference_mode():
        cache = DecodeCache.of(model, 1, 16)
        hidden = model.decode(ids, cache)[0]
        drafted = cache.heads[1](model.ahead(hidden[:-1], ids[0, 1:]))
        assert torch.allclose(drafted, model(ids).logits_2[0, :-1], atol=1e-9)


def test_Q2_speculation_stays_lossless():
    model = toy.toy_model(fc2_token=True).eval()
    torch.nn.init.normal_(model.follow.weight, std=0.3)
    for seed in range(6):
        prompt = torch.randint(16, 300, (5,)).tolist()
        assert generate(model, prompt, 20, speculate=True) == generate(model, prompt, 20, speculate=False)
