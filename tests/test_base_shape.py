"""A stage takes the shape of the model it starts from; a user who asks for another one is refused, and told the
preset."""
import json

import pytest

import toy
from model.config import MODEL_KEYS
from tools.checkpoint import read_checkpoint
from tools.config_manager import ROOT, ConfigManager
from tools.errors import UserError
from train_agent import dpo_train, lora_train, pre_train, prefix_train, sft_train

PAIRS = [{"prompt": f"{a}呢？", "chosen": f"{a}。", "rejected": f"不见了{a}。"} for a in toy.THINGS]
SCRIPTS = {"sft": (sft_train, toy.dialogue_rows(20)), "lora": (lora_train, toy.dialogue_rows(20)),
           "prefix": (prefix_train, toy.dialogue_rows(20)), "dpo": (dpo_train, PAIRS)}


def arguments(folder, data, *more):
    return ["--out_dir", str(folder / "out"), "--log_dir", str(folder / "logs"), "--log_file", str(folder / "log.txt"),
            "--json_data_path", str(data), "--device", "cpu", "--mixed_precision", "no", "--max_steps", "1",
            "--max_len", "40", "--eval_share", "0", "--save_steps", "none", *more]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of preset `fast`, as the script makes it."""
    folder = tmp_path_factory.mktemp("shape")
    data = toy.write_rows(folder / "pre.jsonl", toy.text_rows(30))
    pre_train.main(arguments(folder, data, "--preset", "fast", "--vocab_data_path", str(data)))
    return folder / "out/TinySeek_Pre_final.pkl"


@pytest.mark.parametrize("stage", SCRIPTS)
def test_every_stage_goes_on_from_another_shape_without_its_preset(base, stage, tmp_path):
    script, rows = SCRIPTS[stage]
    data = toy.write_rows(tmp_path / f"{stage}.jsonl", rows)
    script.main(arguments(tmp_path, data, "--pretraining_model_path", str(base)))
    made = read_checkpoint(next((tmp_path / "out").glob("TinySeek_*_final.pkl")))
    had = read_checkpoint(base)["config"]
    assert all(made["config"][k] == had[k] for k in ("n_layer", "counted", "d_model", "activation", "dense_hidden"))
    assert made["run"]["counted"] == 6 and made["run"]["attention"] == "gqa"


def test_who_writes_out_the_shape_asks_for_the_same_run(base, tmp_path, capsys):
    data = toy.write_rows(tmp_path / "sft.jsonl", toy.dialogue_rows(20))
    sft_train.main(arguments(tmp_path, data, "--pretraining_model_path", str(base)))
    shape = ["--n_head", "4", "--d_model", "256", "--attention", "gqa", "--counted", "6", "--use_fc2", "false"]
    sft_train.main(arguments(tmp_path, data, "--pretraining_model_path", str(base), *shape))
    assert "从头开始：上次的训练已经完成" in capsys.readouterr().err                # not: the shape has changed


@pytest.mark.parametrize("asked, words", [
    (["--n_layer", "3"], "n_layer: 模型 4，配置 3"), (["--preset", "small"], "--preset fast"),
    (["--n_layer", "3", "--hidden", "16"], "--preset fast"), ("file", "--preset fast")])
def test_who_asks_for_another_shape_is_told_the_preset(base, tmp_path, asked, words):
    data = toy.write_rows(tmp_path / "sft.jsonl", toy.dialogue_rows(20))
    if asked == "file":
        (tmp_path / "mine.json").write_text(json.dumps({"n_layer": 2}), encoding="utf-8")
        asked = ["--config", str(tmp_path / "mine.json")]
    with pytest.raises(UserError) as error:
        sft_train.main(arguments(tmp_path, data, "--pretraining_model_path", str(base), *asked))
    assert error.value.code == 4 and words in str(error.value)


def test_which_keys_a_user_has_set():
    shipped = ConfigManager(ROOT / "model_config.json")
    plain = ConfigManager({"base": None}).config
    assert all(shipped.config[k] != plain[k] for k in shipped.stage("sft")["own_shape"])
    assert ConfigManager({"n_layer": 4}).own_shape == ["n_layer"]
    assert ConfigManager({"base": None, "n_layer": 4}).own_shape == ["n_layer"]
    assert ConfigManager(overrides={"num_hidden_layers": "4"}, stage="sft").own_shape == ["n_layer"]
    assert "counted" in ConfigManager(preset="fast").own_shape
    assert ConfigManager(ConfigManager({"n_layer": 4}).stage("sft")).own_shape == ["n_layer"]
