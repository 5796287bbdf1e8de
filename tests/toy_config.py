"""A configuration file in a folder of its own, and what a wrong one must say."""
import json

import pytest

from tools.config_manager import ConfigManager
from tools.errors import UserError


@pytest.fixture
def make(tmp_path, monkeypatch):
    """make({...}, overrides=…) -> ConfigManager over a file with that content; the current folder is another one."""
    folder = tmp_path / "项目 one"
    folder.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    def build(content=None, name="model_config.json", **keywords):
        text = content if isinstance(content, str) else json.dumps(content or {}, ensure_ascii=False)
        (folder / name).write_text(text, encoding="utf-8")
        return ConfigManager(folder / name, **keywords)

    build.folder, build.elsewhere = folder, elsewhere
    return build


def refused(make, content=None, *words, **keywords):
    """The message of the UserError that this configuration must raise, containing `words`."""
    with pytest.raises(UserError) as caught:
        make(content, **keywords)
    message = str(caught.value)
    assert caught.value.code == 2
    assert "\n" not in message and any("\u4e00" <= c <= "\u9fff" for c in message)
    for word in words:
        assert word in message, message
    return message
