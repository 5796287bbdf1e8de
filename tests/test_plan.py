"""`--plan` against reality: parameters, activations, memory per rank, bytes on the wire."""
import statistics
import sys
from dataclasses import replace

import pytest
import torch

import ranks
import toy
from tools.errors import UserError
from train_agent.trainers import pre_training
from train_agent.trainers.trying import plan
from train_agent.trainers.dataset import Position
from train_agent.trainers.losses import next_tokens_loss
from train_agent.trainers.hardware.ram import SavedBytes

# Many experts that few tokens visit: large in memory, cheap to compute.
LARGE = dict(n_layer=4, n_head=4, d_model=128, d_c=32, d_q=64, d_r=16, hidden=256, other_experts=48, shared_experts=1, keep=1)


def test_what_a_request_may_say():
    request = plan.read_request("gpus=64, nodes=8,tokens=20e9,bandwidth_gbit=400")
    assert request == {"gpus": 64, "nodes": 8, "tokens": 20e9, "bandwidth_gbit": 400, "tflops": None, "memory_gb": None}
    assert plan.read_request("gpus=2")["nodes"] == 1
    for wrong in ("gpus", "gpus=x", "gpus=0", "cards=3", "gpus=1.5", "gpus=9,nodes=2", "tokens=-1", "tokens=nan", "tokens=inf"):
        with pytest.raises(UserError) as error:
            plan.read_request(wrong)
        assert error.value.code == 2


@pytest.mark.parametrize("variant", ["default", "tied", "dense", "half_dense", "gqa_learned", "one_head", "gpt2"])
def test_parameters_are_counted_exactly(variant):
    config = toy.toy_config(**toy.VARIANTS[variant])
    model = toy.TinySeek(config)
    total, largest, root, active = plan.count(config)
    assert total == sum(p.numel() for p in model.parameters())
    assert root == total - sum(p.numel() for b in model.blocks for p in b.parameters())
    assert largest == max(sum(p.numel() for p in b.parameters()) for b in model.blocks)
    idle = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("mlp.up", "mlp.down")) and p.ndim == 3) // 2
    assert active == total - idle - (0 if config.tie_embedding else model.embed.weight.numel())


@pytest.mark.parametrize("variant", ["default", "half_dense", "gqa", "one_head", "checkpointing"])
def test_activations_within_ten_percent(options, vocab, variant):
    changes = {"checkpointing": {"gradient_checkpointing": True}}.get(variant) or toy.VARIANTS.get(variant, {})
    chosen = options(rows=60, n_layer=4, d_model=64, hidden=64, d_c=32, d_q=48, other_experts=8, max_len=256, batch_size=4,
                     **{**{"n_head": 4}, **changes})
    chosen["vocab_size"] = len(vocab)
    stage = toy.build_stage(chosen)
    batch, counted = stage.train.batch(Position()), SavedBytes(stage.model)
    with counted:
        next_tokens_loss(stage.model, batch, {"targets_1": 1, "targets_2": 1, "tokens": 1})
    shape = plan.measure(chosen, speed=False)
    assert shape.token_bytes * batch.ids.numel() + shape.fixed_bytes == pytest.approx(counted.total, rel=0.1)


@pytest.fixture(scope="module")
def reality(tmp_path_factory):
    """{name: (options, results per rank)} of short runs of a model of 20 million parameters, each in fresh processes."""
    folder = tmp_path_factory.mktemp("plan")
    found, vocab = {}, toy.toy_vocab()

    def options(name, **keys):
        made = toy.toy_options(folder, vocab, rows=60, **{**LARGE, "max_len": 64, "name": name, "max_steps": 4, "resume": "none", **keys})
        return {**made, "vocab_size": len(vocab)}
    for name, count, keys in (("alone", 1, {}), ("DDP", 2, {}), ("FULL_SHARD", 2, {"distributed": "fsdp"}),
                              ("SHARD_GRAD_OP", 2, {"distributed": "fsdp", "fsdp_sharding": "SHARD_GRAD_OP", "accumulation_steps": 2})):
        chosen = options(name, **keys)
        small = options(name + " warm-up", **{**keys, **toy.SHAPE, "max_steps": 2})       # what is imported on the way is no tensor
        results = ranks.launch(folder, [{"options": one, "float64": False} for one in (small, chosen)], count)
        found[name] = chosen, [r[1] for r in results]
    return found


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@linux
@pytest.mark.parametrize("name", ["alone", "DDP", "FULL_SHARD", "SHARD_GRAD_OP"])
def test_memory_per_rank_within_ten_percent(reality, name):
    options, results = reality[name]
    shape = plan.measure(options, speed=False)
    assert 15e6 < shape.total < 30e6
    expected = plan.memory(shape, options, "DDP" if name == "alone" else name, len(results), "no")["total"]
    for result in results:
        assert expected == pytest.approx(result["peak"], rel=0.1), f"{name}: planned {expected / 1e6:.0f} MB, used {result['peak'] / 1e6:.0f} MB"


@linux
@pytest.mark.parametrize("name", ["DDP", "FULL_SHARD", "SHARD_GRAD_OP"])
def test_bytes_on_the_wire_within_ten_percent(reality, name):
    options, results = reality[name]
    shape = plan.measure(options, speed=False)
    expected = plan.traffic(shape, options, name, 2, "no", gloo=True)
    for result in results:
        sent = statistics.median(result["sent"])
        assert expected == pytest.approx(sent, rel=0.1), f"{name}: planned {expected / 1e6:.1f} MB, sent {sent / 1e6:.1f} MB"


def test_the_table_follows_from_the_shape(options):
    chosen = options(plan="gpus=64,nodes=8,tokens=20e9,bandwidth_gbit=400,tflops=200", rows=1, distributed="fsdp", n_layer=6)
    made = plan.make_plan(chosen)
    ddp, zero2, full = made["rows"]
    assert [r["strategy"] for r in made["rows"]] == list(plan.STRATEGIES) and made["precision"] == "no"
    assert full["memory"]["total"] < zero2["memory"]["total"] < ddp["memory"]["total"]
    assert full["memory"]["optimizer"] == pytest.approx(ddp["memory"]["optimizer"] / 64)
    assert ddp["traffic"] == pytest.approx(2 * 63 / 64 * 4 * made["shape"].total)
    assert zero2["traffic"] == pytest.approx(ddp["traffic"]) and full["traffic"] > zero2["traffic"]
    assert ddp["days"] == pytest.approx(20e9 / ddp["tokens_per_s"] / 86400)
    faster = plan.make_plan({**chosen, "plan": chosen["plan"].replace("=400", "=4000")})["rows"][0]
    assert faster["moving"] == pytest.approx(ddp["moving"] / 10) and faster["step"] <= ddp["step"]
    single = plan.make_plan({**chosen, "plan": "gpus=1,tflops=200"})["rows"][0]
    assert single["traffic"] == 0 and single["days"] is None


def test_the_command_prints_and_starts_nothing(options, capsys):
    chosen = options(plan="gpus=4,tokens=1e6,memory_gb=0.0001", rows=3)
    result = pre_training.pre_train({**chosen, "json_data_path": "not there.jsonl"})
    said = capsys.readouterr().out
    assert result["rate"] > 0 and "实测" in said and "放不下" in said and all(name in said for name in plan.STRATEGIES)
    assert not toy.Path(chosen["out_dir"]).exists() and not toy.Path(chosen["log_file"]).exists()


def test_measuring_leaves_the_random_state_alone(options):
    before = torch.get_rng_state()
    plan.measure(options(rows=1), speed=True)
    assert torch.equal(before, torch.get_rng_state())


def test_flops_are_those_of_a_dense_count():
    config = replace(toy.toy_config(use_moe=False), n_layer=1)
    assert plan.flops(1000, 10, config) == 10 * (6 * 1000 + 6 * config.d_model * 10)
