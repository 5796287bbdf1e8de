"""Every command on consoles that know no Chinese, and what a command says of a file it cannot read or write."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from test_report import make_run

ROOT = Path(__file__).resolve().parents[1]
TRAINING = [
    f"train_agent/{name}.py" for name in ("pre_train", "sft_train", "lora_train", "prefix_train", "memory_train",
                                          "train_gate", "dpo_train")]
USING = [f"chat_agent/{name}.py" for name in ("chat", "evaluate", "export", "serve")]
CONSOLES = {"ascii": {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
            "cp1252": {"PYTHONIOENCODING": "cp1252"}}
# words of a command -> its exit code; {…} is filled in by `place`
COMMANDS = {**{f"{script} --help": 0 for script in [*TRAINING, *USING, "run.py"]},
            "train_agent/pre_train.py --json_data_path no.jsonl --out_dir {folder}/o --log_dir {folder}/l --log_file "
            "{folder}/l.txt": 2,
            "chat_agent/chat.py --model no.pkl --prompt 你好": 3, "chat_agent/evaluate.py --batchsize 3": 2}
LIGHT = {"tools/plot.py --help": 0, "tools/plot.py {log} --output {folder}/图.png": 0, "tools/plot.py no.txt": 2,
         "tools/plot.py {log} --config {config}": 0,
         "tools/demo_data.py --help": 0, "tools/demo_data.py --out {folder}/data": 0, "tools/demo_data.py --bogus": 2,
         "tools/demo_data.py --out {log}": 2,
         "tools/check_data.py --help": 0, "tools/check_data.py {rows}": 0,
         "tools/check_data.py {rows} --json {folder}/no/such/x.json": 2,
         "tools/check_data.py no.jsonl": 2, "tools/report.py --help": 0,
         "tools/report.py {folder} --output {folder}/报告.html": 0,
         "tools/report.py {folder} --output {folder}": 2, "tools/report.py nobody": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    make_run(folder)
    rows = "".join(
        json.dumps({"messages": [{"role": "user", "content": f"{n}加一"}, {"role": "assistant", "content": str(n + 1)}]},
                              ensure_ascii=False) + "\n" for n in range(40))
    (folder / "rows.jsonl").write_text(rows, encoding="utf-8")
    (folder / "c.json").write_text("{}")
    return {"folder": folder, "log": folder / "log.txt", "rows": folder / "rows.jsonl", "config": folder / "c.json"}


def run(command, place, **env):
    script, *words = [word.format(**place) for word in command.split()]
    return subprocess.run([sys.executable, ROOT / script, *words], capture_output=True, cwd=place["folder"],
                          timeout=300, env={**os.environ, **env})


@pytest.mark.parametrize("console", CONSOLES)
@pytest.mark.parametrize("command", [*LIGHT, *COMMANDS])
def test_every_command_speaks_chinese_on_any_console(place, command, console):
    done = run(command, place, **CONSOLES[console])
    said, errors = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    assert done.returncode == {**LIGHT, **COMMANDS}[command], errors
    assert "Traceback" not in errors and any("\u4e00" <= c <= "\u9fff" for c in said + errors), errors
    if done.returncode:
        assert len(errors.strip().splitlines()) <= 3 and errors.strip().splitlines()[-1].startswith("错误："), errors
    assert not [path for path in place["folder"].rglob("*") if "tmp" in path.name]
