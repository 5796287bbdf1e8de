"""A stage on another's weights: what has to be the same, and what may differ."""
import pytest

import toy
from model.config import ModelConfig
from tools.config_manager import ConfigManager
from tools.errors import UserError
from train_agent.trainers.start_model import fitting_shape

LEARNED = dict(position="learned", attention="gqa")


def started(options, name, base, max_position, **keys):
    path = str(toy.Path(base["out_dir"]) / base["name"] / "TinySeek_Pre_final.pkl")
    chosen = options("sft", rows=10, name=name, pretraining_model_path=path, **LEARNED, **keys)
    return toy.build_stage({**chosen, "max_position": max_position}, "sft")


def test_A6_a_longer_table_of_positions_is_no_conflict(options):
    """Each stage has its own max_len; the base's table is taken as it is, longer or shorter than the
    configuration's."""
    base = options(name="base", max_len=60, max_steps=1, **LEARNED)
    assert base["max_position"] >= 60
    toy.train({**base, "max_position": 60})
    for max_len, asked in ((40, 40), (60, 60), (40, 900)):
        stage = started(options, "on", base, max_len=max_len, max_position=asked)
        assert stage.model.config.max_position == stage.about["config"]["max_position"] == 60
    with pytest.raises(UserError, match="60 个位置.*max_len=80.*--max_len 60") as error:
        started(options, "too long", base, max_len=80, max_position=80)
    assert error.value.code == 4


def test_A6_the_command_line_of_one_stage_does_not_lock_out_the_next():
    """`--preset gpt2 --max_len 384` for pre-training, then SFT with the preset alone."""
    before, after = (ConfigManager("model_config.json", overrides=keys, preset="gpt2", stage=stage)
                     for keys, stage in (({"max_len": 384}, "pre"), ({}, "sft")))
    assert before.config["max_position"] == 384 != after.config["max_position"]

    class Words:
        def __len__(self):
            return before.config["vocab_size"]
    base = {"config": before.model()}
    assert fitting_shape(after.stage("sft"), Words(), base).max_position == 384


@pytest.mark.parametrize("stage", ["sft", "lora", "dpo"])
def test_A6_learned_positions_of_the_base_are_taken_over_unasked(stage):
    """Pre-training with `--position learned`, then a stage whose command says nothing about the shape."""
    before, after = (ConfigManager("model_config.json", overrides=keys, stage=name)
                     for keys, name in (({"position": "learned"}, "pre"), ({}, stage)))
    words = range(before.config["vocab_size"])
    assert fitting_shape(after.stage(stage), words, {"config": before.model()}) == ModelConfig.from_dict(before.model())
