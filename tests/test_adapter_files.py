"""chat, evaluate and serve take any kind of file, know from the file what it is and which base it needs, and never
guess."""
import json

import pytest
import torch

import toy
from chat_agent import chat, evaluate, serve
from chat_agent.load import load
from model import ModelConfig, TinySeek
from model.build import attach, build, own_weights
from model.gate import Gate
from tools.checkpoint import load_chain, weights_hash, write_torch
from tools.config_manager import ConfigManager
from tools.errors import UserError

KINDS = {"Lora": {"type": "lora", "rank": 2, "targets": ["all"]},
         "Prefix": {"type": "prefix", "kind": "kv", "length": 3},
         "Memory": {"type": "memory", "tokens": 8, "chapters": 4, "topk": 2}}
TURN = {"start": 9, "ends": [1, 9, 10, 11]}


def shape(vocab):
    return ModelConfig(**{**toy.SHAPE, "vocab_size": len(vocab), "init_std": 0.2})


def write(path, vocab, stage, weights, base=None, adapter=None, kind="adapter"):
    payload = {"format": 1, "kind": kind, "stage": stage, "config": shape(vocab).to_dict() if kind != "gate" else {},
               "vocab_hash": vocab.hash, "vocab": vocab.state(), "weights": weights, "adapter": adapter, "base": base,
               "step": 1, "metrics": {},
               "run": {"max_len": 64, "name": path.stem}}
    write_torch(path, payload)
    return payload


@pytest.fixture(scope="module")
def files(tmp_path_factory, vocab):
    """{kind: path} of a base, three adapters on it, an adapter on an adapter, and a gate; nobody's weights are zero."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    model = TinySeek(shape(vocab))
    base = write(folder / "base.pkl", vocab, "SFT", model.state_dict(), kind="model")
    paths = {"SFT": folder / "base.pkl"}
    above = {**dict.fromkeys(KINDS, ("base.pkl", [base])), "Upper": None}
    for stage in above:
        below, chain = above[stage] or ("Lora.pkl", load_chain(paths["Lora"]))
        adapted = attach(build(chain), KINDS.get(stage, KINDS["Prefix"]))
        weights = {n: torch.randn_like(t) * 0.3 for n, t in own_weights(adapted).items()}
        paths[stage] = folder / f"{stage}.pkl"
        write(paths[stage], vocab, stage.replace("Upper", "Prefix"), weights,
              {"path": below, "hash": weights_hash(chain[-1]["weights"])},
              KINDS.get(stage, KINDS["Prefix"]))
    experts = [{"path": f"{name}.pkl", "hash": weights_hash(load_chain(paths[name])[-1]["weights"])} for name in KINDS]
    paths["gate"] = folder / "gate.pkl"
    gate = Gate(len(vocab), 3, 8, TURN).state_dict()
    write(paths["gate"], vocab, "gate", gate,
          adapter={"type": "gate", "vocab_size": len(vocab), "hidden": 8, "turn": TURN, "experts": experts},
          kind="gate")
    return paths


EVERY = ["SFT", *KINDS, "Upper", "gate"]
CODES = {
    "chat": lambda path: chat.main(["--model", path, "--prompt", "苹果呢？", "--max_new_tokens", "3", "--device", "cpu"]),
         "evaluate": lambda path: evaluate.main(
             ["--model", path, "--task", "exact", "--data", str(toy_questions(path)), "--device", "cpu"]),
         "serve": lambda path: serve.load_all([path], {"device": "cpu"}, serve_options())}


def toy_questions(path):
    rows = [{**row, "task": "玩具"} for row in toy.dialogue_rows(3, 1)]
    return toy.write_rows(str(path) + ".jsonl", rows)


def serve_options():
    return type("Options", (), {"context": None, "box": None})()


@pytest.mark.parametrize("script", CODES)
@pytest.mark.parametrize("kind", EVERY)
def test_every_script_takes_every_kind_of_file(files, kind, script, capsys):
    if script == "serve":
        pytest.importorskip("fastapi")
    found = CODES[script](str(files[kind]))
    said = capsys.readouterr().out
    if script == "evaluate":
        stage = json.loads(said.strip().splitlines()[-1])["models"][0]["stage"]
        assert stage == kind.replace("Upper", "Prefix")
    if script == "serve":
        assert len(found.all if hasattr(found, "all") else list(found)) == 1


def test_who_loads_a_model_learns_which_trainings_made_it(files):
    made = {kind: [run["name"] for run in load(path, "cpu")[2]["runs"]] for kind, path in files.items()}
    assert made["SFT"] == ["base"] and made["gate"] == ["gate"] and made["Upper"] == ["base", "Lora", "Upper"]


@pytest.mark.parametrize("kind", EVERY[1:])
def test_the_adapter_counts(files, kind):
    """What is loaded is not the base."""
    ids = torch.randint(20, 200, (1, 9))
    ids[0, 1] = 9
    with torch.no_grad():
        logits = [build(load_chain(files[name]))(ids) for name in ("SFT", kind)]
    plain, adapted = (out if isinstance(out, torch.Tensor) else out.logits_1 for out in logits)
    assert (plain - adapted).abs().max() > 1e-3


@pytest.mark.parametrize("script", CODES)
@pytest.mark.parametrize("kind", EVERY[1:])
@pytest.mark.parametrize("fault,code", [("missing", 3), ("another", 4)])
def test_a_missing_base_is_3_and_another_one_4(files, kind, script, fault, code, tmp_path, vocab):
    if script == "serve":
        pytest.importorskip("fastapi")
    alone = tmp_path / files[kind].name
    alone.write_bytes(files[kind].read_bytes())
    if kind in ("Upper", "gate"):                        # the adapters are there, what they stand on is not
        for name in KINDS:
            (tmp_path / f"{name}.pkl").write_bytes(files[name].read_bytes())
    if fault == "another":
        torch.manual_seed(9)
        write(tmp_path / "base.pkl", vocab, "SFT", TinySeek(shape(vocab)).state_dict(), kind="model")
    with pytest.raises(UserError) as error:
        CODES[script](str(alone))
    assert error.value.code == code and "base.pkl" in str(error.value)


def test_a_gate_without_one_of_its_experts_is_3(files, tmp_path):
    for name in ("SFT", "gate", "Lora", "Memory"):
        (tmp_path / files[name].name).write_bytes(files[name].read_bytes())
    with pytest.raises(UserError) as error:
        load_chain(tmp_path / "gate.pkl")
    assert error.value.code == 3 and "Prefix.pkl" in str(error.value)


def test_no_stage_is_trained_on_random_weights():
    """Adaptations ask for a trained base by default."""
    stages = [ConfigManager().stage(name) for name in ("lora", "prefix", "memory")]
    assert all(options["pretraining_model_path"].endswith("TinySeek_SFT_final.pkl") for options in stages)
