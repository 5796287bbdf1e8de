"""Which optimizer, which parameters in which group, and one step of each against its formula."""
import pytest
import torch

from tools.config_manager import ConfigManager
from tools.errors import UserError
from toy import toy_model
from train_agent.trainers.optimizers import build_optimizers, parameter_groups, set_rates


@pytest.fixture
def options(tmp_path):
    """options(stage="pre", **changes) -> the options of the preset small, TinySeek's own rates."""
    (tmp_path / "config.json").write_text('{"weight_decay": 0.1}', encoding="utf-8")

    def make(stage="pre", **changes):
        return ConfigManager(tmp_path / "config.json", overrides=changes, preset="small", stage=stage).stage(stage)
    return make


def named(model, rate=5e-4):
    return [(n, p, rate) for n, p in model.named_parameters()]


def test_O1_adam_is_the_default_of_the_tinyseek_stages(options):
    for stage, rate in (("pre", 5e-4), ("sft", 5e-5)):
        chosen = options(stage)
        assert (chosen["optimizer"], chosen["init_lr"]) == ("adam", rate)
        optimizer, = build_optimizers(named(toy_model(), rate), chosen)
        assert type(optimizer) is torch.optim.Adam
        for group in optimizer.param_groups:
            assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (rate, (0.9, 0.95), 1e-8, 0.0)


def test_O2_adamw_decays_matrices_only(options):
    model = toy_model(norm="layer")
    optimizer, = build_optimizers(named(model), options(optimizer="adamw"))
    assert type(optimizer) is torch.optim.AdamW
    decayed = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, p in model.named_parameters():
        assert decayed[id(p)] == (0.1 if p.ndim >= 2 else 0.0), name
    assert all((g["betas"], g["eps"]) == ((0.9, 0.95), 1e-8) for g in optimizer.param_groups)


def test_O2_sgd(options):
    weight = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer, = build_optimizers([("w", weight, 0.5)], options(optimizer="sgd", weight_decay=0.1, beta1=0.9))
    velocity, expected = 0.0, 1.0
    for gradient in (2.0, 1.0):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        # beta1 is the momentum, as --help says
        velocity = 0.9 * velocity + gradient + 0.1 * expected
        expected -= 0.5 * velocity
    assert float(weight[0, 0].detach()) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_O1_O2_steps_are_the_formula(options, kind):
    """Adam (Kingma & Ba), and AdamW (Loshchilov & Hutter) with the decay beside the gradient."""
    weight = torch.nn.Parameter(torch.full((1, 1), 2.0, dtype=torch.float64))
    optimizer, = build_optimizers([("w", weight, 0.1)], options(optimizer=kind, init_lr=0.1))
    w, m, v = 2.0, 0.0, 0.0
    for t, gradient in enumerate((3.0, -1.0, 0.5), 1):
        weight.grad = torch.full_like(weight, gradient)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient ** 2
        w *= 1 - 0.1 * (0.1 if kind == "adamw" else 0)
        w -= 0.1 * (m / (1 - 0.9 ** t)) / ((v / (1 - 0.95 ** t)) ** 0.5 + 1e-8)
        assert float(weight.detach()) == pytest.approx(w, rel=1e-9)


def rated(model):
    """Three components by name, as the memory stage has them, and one frozen tensor."""
    model.embed.weight.requires_grad_(False)
    rate = {"attention": 2e-4, "mlp": 1e-4}
    return [(n, p, next((r for k, r in rate.items() if k in n), 1e-5)) for n, p in model.named_parameters()]


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "muon"])
def test_O3_groups_are_disjoint_and_complete(options, kind):
    model = toy_model()
    triples = rated(model)
    optimizers = build_optimizers(triples, options(optimizer=kind))
    placed = [(id(p), g["lr"]) for o in optimizers for g in o.param_groups for p in g["params"]]
    assert len(placed) == len(set(placed)) == len({i for i, _ in placed})
    assert dict(placed) == {id(p): rate for _, p, rate in triples if p.requires_grad}
    assert id(model.embed.weight) not in dict(placed)


def test_O3_rates_and_their_ratio(options):
    optimizers = build_optimizers(rated(toy_model()), options())
    set_rates(optimizers, 0.5)
    assert {g["lr"] for o in optimizers for g in o.param_groups} == {1e-4, 5e-5, 5e-6}


def test_O3_nothing_trainable_is_an_error(options):
    model = toy_model().requires_grad_(False)
    with pytest.raises(UserError) as error:
        build_optimizers(named(model), options())
    assert error.value.code == 2


def test_muon_takes_the_inner_matrices_only(options):
    triples = named(toy_model())
    muon, rest = parameter_groups(triples, options(optimizer="muon"))
    names = {id(p): name for name, p, _ in triples}
    inner, outer = ({names[id(p)] for g in groups for p in g["params"]} for groups in (muon, rest))
    assert inner and all(n.startswith("blocks.") and "router" not in n and "norm" not in n for n in inner)
    assert {"embed.weight", "fc1.weight", "fc2.weight",
            "blocks.0.mlp.router.weight"} <= outer


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "muon"])
def test_every_optimizer_lowers_the_loss_and_its_state_comes_back(options, kind):
    model = toy_model(dtype=torch.float32)
    ids = torch.randint(16, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    optimizers = build_optimizers(named(model, 2e-3), options(optimizer=kind, init_lr=2e-3))
    losses = []
    for _ in range(12):
        loss = model(ids, labels=ids).total_loss
        loss.backward()
        losses.append(float(loss.detach()))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert losses[-1] < losses[0]
    again = build_optimizers(named(model, 2e-3), options(optimizer=kind, init_lr=2e-3))
    for new, old in zip(again, optimizers, strict=True):
        new.load_state_dict(old.state_dict())
        assert all(g["base_lr"] == 2e-3 for g in new.param_groups)
