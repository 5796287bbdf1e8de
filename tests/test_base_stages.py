"""Every stage on a base of another family: it learns, resumes to the bit, and goes back as the base's own
architecture."""
import copy
import json

import pytest
import torch

pytest.importorskip("safetensors")
transformers = pytest.importorskip("transformers")

import toy                                                                # noqa: E402
import toy_bases                                                          # noqa: E402
import toy_server                                                         # noqa: E402
from chat_agent import chat, evaluate, export                             # noqa: E402
from chat_agent.load import load                                          # noqa: E402
from chat_agent.session import Session                                    # noqa: E402
from model.build import APPLY, build                                      # noqa: E402
from model.generate import generate, generate_batch                       # noqa: E402
from tools import check_data, template                                                # noqa: E402
from tools.checkpoint import load_chain, read_checkpoint, weights_hash    # noqa: E402
from tools.config_manager import ConfigManager                            # noqa: E402
from tools.errors import UserError                                        # noqa: E402
from train_agent.trainers import gated_training                           # noqa: E402

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
PAIRS = [{"prompt": f"{a}呢？", "chosen": f"{a}。", "rejected": f"不见了{a}。"} for a in toy.THINGS]
SETTINGS = {"sft": {}, "lora": {"rank": 2, "lora_targets": "all"}, "prefix": {"prefix_len": 3},
            "memory": {"memory_tokens": 12, "memory_chapters": 4, "rank": 2}, "dpo": {},
            "rl": {"max_len": 128, "reward": "length", "reward_length": 16, "max_new_tokens": 12, "group_size": 4}}
LABELS = {"sft": "SFT", "lora": "Lora", "prefix": "Prefix", "memory": "Memory", "dpo": "DPO", "rl": "RL"}


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def base(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    toy_bases.base_folder(folder / "folder", request.param)
    export.main(["--from", "hf", str(folder / "folder"), "--output", str(folder / "base.pkl")])
    return folder


def options_of(folder, stage, name, **keys):
    data = toy.write_rows(folder / f"{stage}.jsonl", PAIRS if stage == "dpo" else toy.dialogue_rows(16, 3))
    general = {"replay_data_path": str(toy.write_rows(folder / "general.jsonl", toy.dialogue_rows(4, 9)))}
    asked = {**general,
             "out_dir": str(folder / "out"), "log_dir": str(folder / "logs"), "log_file": str(folder / "log.txt"),
             "json_data_path": str(data), "device": "cpu", "mixed_precision": "no", "max_len": 48, "batch_size": 2,
             "eval_share": 0, "save_steps": None, "eval_steps": None, "logging_steps": 1, "max_steps": 4, "name": name,
             "pretraining_model_path": str(folder / "base.pkl"), **SETTINGS.get(stage, {}), **keys}
    return ConfigManager(overrides=asked, stage=stage).stage(stage)


def final(loop):
    return toy.Path(loop.stage.options["out_dir"], loop.stage.options["name"], f"TinySeek_{loop.stage.label}_final.pkl")


def ids(rows=2, length=20):
    return torch.randint(3, 400, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stage", SETTINGS)
def test_B3_a_stage_learns_on_a_base_and_leaves_it_alone(base, stage):
    options = options_of(base, stage, stage)
    loop, before = toy.train(options, stage), read_checkpoint(base / "base.pkl")
    assert loop.exit == 0 and loop.step == 4
    chain = load_chain(final(loop))
    assert chain[-1]["vocab_hash"] == before["vocab_hash"] and chain[-1]["config"]["d_model"] == 32
    if stage == "rl":
        assert all(step["gap"] < 1e-5 for step in loop.history)
    if stage in ("sft", "dpo", "rl"):
        assert weights_hash(chain[-1]["weights"]) != weights_hash(before["weights"])
    else:
        assert chain[1]["base"]["hash"] == weights_hash(before["weights"])
    with torch.no_grad():
        made = build(chain)(ids()).logits_1
        assert torch.equal(made, loop.model.eval()(ids()).logits_1)
        assert not torch.equal(made, build([before])(ids()).logits_1)


@pytest.mark.parametrize("stage", ["sft", "memory"])
def test_B3_a_resumed_run_is_the_uninterrupted_one(base, stage):
    whole = toy.train(options_of(base, stage, f"whole_{stage}", save_steps=2), stage)
    assert toy.train(options_of(base, stage, f"torn_{stage}", save_steps=2), stage, kill_after=3).exit == -9
    again = toy.train(options_of(base, stage, f"torn_{stage}", save_steps=2), stage)
    assert again.exit == 0 and again.step == whole.step == 4
    assert toy.same_tensors(*(read_checkpoint(final(loop))["weights"] for loop in (whole, again)))


@torch.no_grad()
def test_B3_a_new_adapter_is_the_base_and_packed_is_unpacked(base):
    model, vocab, _ = load(base / "base.pkl", "cpu")
    plain = model(ids()).logits_1
    for kind, more in (("lora", {"rank": 2, "targets": "all"}), ("prefix", {"length": 3}), ("memory", {})):
        assert torch.equal(APPLY[kind](copy.deepcopy(model), **more).eval()(ids()).logits_1, plain), kind
    documents = [template.render(row["conversations"], vocab)[0].tolist() for row in toy.dialogue_rows(4)]
    batch, starts = toy.pack(documents, max(map(len, documents)) + 5)
    packed = model(**batch).logits_1.flatten(0, 1)
    for document, start in zip(documents, starts):
        alone = model(torch.tensor([document])).logits_1[0]
        assert (packed[start:start + len(document)] - alone).abs().max() < 1e-5


def test_B3_merged_is_unmerged_and_goes_back_as_the_bases_architecture(base, tmp_path):
    lora = final(toy.train(options_of(base, "lora", "to_merge", init_lr=0.05), "lora"))
    export.main(["--model", str(lora), "--to", "merged", "--output", str(tmp_path / "m.pkl")])
    export.main(["--model", str(tmp_path / "m.pkl"), "--to", "hf", "--output", str(tmp_path / "hf")])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", trust_remote_code=False).eval()
    kind = json.loads((base / "folder/config.json").read_text(encoding="utf-8"))["architectures"][0]
    assert type(theirs).__name__ == kind
    with torch.no_grad():
        unmerged = build(load_chain(lora))(ids()).logits_1
        assert (build(load_chain(tmp_path / "m.pkl"))(ids()).logits_1 - unmerged).abs().max() < 1e-5
        assert (theirs(ids()).logits - unmerged).abs().max() < 1e-4 * unmerged.abs().max()
        assert (unmerged - build(load_chain(base / "base.pkl"))(ids()).logits_1).abs().max() > 1e-3
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "hf" / name).read_bytes() == (base / "folder" / name).read_bytes()
    export.main(["--from", "hf", str(tmp_path / "hf"), "--output", str(tmp_path / "back.pkl")])
    one, two = (read_checkpoint(tmp_path / name) for name in ("m.pkl", "back.pkl"))
    assert weights_hash(one["weights"]) == weights_hash(two["weights"]) and one["stage"] == two["stage"]
    with pytest.raises(UserError, match="convert_hf_to_gguf"):
        export.main(["--model", str(tmp_path / "m.pkl"), "--to", "gguf", "--output", str(tmp_path / "m.gguf")])


ASKED = {"a": ("{}呢？", "很好看"), "b": ("说说{}。", "不见了")}


def gate_options(base, name, **keys):
    """Two LoRAs on the base, each taught one kind of question, and a gate on both kinds."""
    rows = {kind: [{"conversations": [{"role": "user", "content": asked.format(thing)},
                                      {"role": "assistant", "content": reply * 2}]} for thing in toy.THINGS * 2]
            for kind, (asked, reply) in ASKED.items()}
    experts = [base / f"out/expert_{kind}/TinySeek_Lora_final.pkl" for kind in rows]
    for kind, path in zip(rows, experts):
        if not path.exists():
            data = toy.write_rows(base / f"rows_{kind}.jsonl", rows[kind])
            toy.train(options_of(base, "lora", f"expert_{kind}", json_data_path=str(data), init_lr=2e-2,
                                 max_steps=30, rank=4, replay_share=0), "lora")
    mixed = toy.write_rows(base / "mixed.jsonl", [row for pair in zip(*rows.values()) for row in pair])
    asked = {"experts": [str(path) for path in experts], "json_data_path": str(mixed), "init_lr": 1e-2, "batch_size": 8,
             "gate_hidden": 16, "max_steps": 24, "max_epochs": 20, "pretraining_model_path": None, **keys}
    return options_of(base, "gate", name, **asked)


def test_B3_a_gate_chooses_between_adapters_of_a_base(base, capsys):
    loop = toy.train(gate_options(base, "gate"), "gate")
    assert loop.exit == 0
    report = gated_training.gate_report(loop.model, loop.stage.train)
    assert report["accuracy"] > 0.9 and report["regret"] < report["regret_best_single"] / 2
    model, vocab, _ = load(final(loop), "cpu")
    asked = [asked.format(thing) for thing in toy.THINGS for asked, _ in ASKED.values()]
    prompts = [template.render_prompt([{"role": "user", "content": text}], vocab) for text in asked]
    picks = model.gate.choose(prompts)
    assert picks == [0, 1] * len(toy.THINGS)                            # in a chat as in training
    before = [{"role": "user", "content": asked[1]}, {"role": "assistant", "content": "不见了"},
              {"role": "user", "content": asked[0]}]
    assert model.gate.choose([template.render_prompt(before, vocab)]) == picks[:1]
    replies = generate_batch(model, prompts, 6)
    assert replies == [generate(model.experts[pick], prompt, 6) for pick, prompt in zip(picks, prompts)]
    assert model.experts[0].embed.weight.data_ptr() == model.experts[1].embed.weight.data_ptr()
    chat.main(["--model", str(final(loop)), "--prompt", asked[0], "--max_new_tokens", "6", "--device", "cpu"])
    assert capsys.readouterr().out


def test_B3_a_resumed_gate_is_the_uninterrupted_one(base):
    whole = toy.train(gate_options(base, "whole_gate", max_steps=4, save_steps=2), "gate")
    assert toy.train(gate_options(base, "torn_gate", max_steps=4, save_steps=2), "gate", kill_after=3).exit == -9
    again = toy.train(gate_options(base, "torn_gate", max_steps=4, save_steps=2), "gate")
    assert again.exit == 0 and toy.same_tensors(*(read_checkpoint(final(loop))["weights"] for loop in (whole, again)))


def test_B3_what_a_base_cannot_do_is_said(base, capsys):
    with pytest.raises(UserError, match="prefix_kind"):
        toy.train(options_of(base, "prefix", "role", prefix_kind="role"), "prefix")


def test_B3_a_base_answers_and_is_evaluated(base, capsys):
    path = str(base / "base.pkl")
    model, vocab, payload = load(path, "cpu")
    session = Session(model, vocab, 60)
    for asked in ("你好", "书呢？", "月亮" * 10):
        said = "".join(piece for piece in session.ask(asked, 8))
    assert session.dropped and session.used <= 60 - 8 and said == session.messages[-1]["content"]
    chat.main(["--model", path, "--prompt", "你好", "--max_new_tokens", "6", "--device", "cpu"])
    assert capsys.readouterr().out.strip()
    chat.main(["--model", path, "--prompt", "你好", "--max_new_tokens", "6", "--device", "cpu", "--rope_scaling",
               "yarn", "--rope_factor", "8", "--rope_original", "4"])
    assert capsys.readouterr().out.strip()
    data = toy.write_rows(base / "held.jsonl", toy.dialogue_rows(4) + toy.text_rows(2))
    evaluate.main(["--model", path, "--task", "bpc", "--data", str(data), "--device", "cpu"])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert 0 < found["bpc"]["bits_per_char"] < 99 if "bpc" in found else found


def with_tools(folder, said="九点了。"):
    """Rows of which one calls a tool, and rows of which all do."""
    called = {"messages": [{"role": "user", "content": "几点了？"}, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "clock", "arguments": "{}"}}]},
        {"role": "tool", "content": "九点"}, {"role": "assistant", "content": said}]}
    return (toy.write_rows(folder / "mixed.jsonl", [called, *toy.dialogue_rows(8)]),
            toy.write_rows(folder / "called.jsonl", [called, called]))


@pytest.mark.parametrize("stage", ["sft", "lora"])
def test_B3_rows_with_tools_are_left_out_and_told_where_the_base_has_no_words_for_them(base, stage, tmp_path, capsys):
    mixed, called = map(str, with_tools(tmp_path, f"{stage}，{base.name}。"))             # a cache is told of once
    own = options_of(base, stage, f"tools_{stage}", replay_data_path=mixed, cache_dir=str(tmp_path / "cache"))
    assert toy.train(own, stage).step == 4
    assert "带工具的整行（这个底座还不能用工具） 1 行" in capsys.readouterr().err
    assert toy.train({**own, "json_data_path": mixed, "name": f"own_{stage}"}, stage).step == 4
    with pytest.raises(UserError) as caught:
        toy.train({**own, "json_data_path": called, "name": f"called_{stage}"}, stage)
    assert caught.value.code == 8


def test_B3_rows_with_tools_are_not_scored_and_named_by_the_check(base, tmp_path, capsys):
    mixed, called = map(str, with_tools(tmp_path))
    run = ["--model", str(base / "base.pkl"), "--task", "bpc", "--device", "cpu", "--data"]
    evaluate.main([*run, mixed])
    said = capsys.readouterr()
    assert "跳过 1 行带工具的对话" in said.err and json.loads(said.out.strip().splitlines()[-1])
    with pytest.raises(UserError, match="只有带工具的对话"):
        evaluate.main([*run, called])
    check_data.main([mixed, "--vocab", str(base / "base.pkl")])
    assert "带工具，底座不能用" in capsys.readouterr().out


def test_B3_a_base_is_served(base, tmp_path):
    pytest.importorskip("fastapi")
    with toy_server.serving(tmp_path, models={"one": base / "base.pkl"}) as server:
        session = Session(*load(base / "base.pkl", "cpu")[:2], 60)
        expected = "".join(piece for piece in session.ask("你好", 12))
        assert server.chat("你好") == expected
