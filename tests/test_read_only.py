"""An installation that cannot be written (a shared machine): --out_dir alone is enough; without it one clear line says
so."""
import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from test_pipeline import TINY

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="POSIX 的文件权限")
PARTS = ("model", "tools", "train_agent", "chat_agent", "data", "run.py", "model_config.json")
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24


def obey_modes():
    """root, too, is held to the modes of files by a process that begins without this right."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, 0, 0, 0)


@pytest.fixture(scope="module")
def install(tmp_path_factory):
    """A copy of the program without generated files, every file and folder of it read-only."""
    home = tmp_path_factory.mktemp("shared") / "小寻"
    home.mkdir()
    for part in PARTS:
        skip = shutil.ignore_patterns("__pycache__", "demo_*.jsonl", "demo_*.key")
        shutil.copytree(ROOT / part, home / part, ignore=skip) if (ROOT / part).is_dir() else shutil.copy(ROOT / part,
            home)
    everything = [home, *home.rglob("*")]
    for path in everything:
        path.chmod(0o555 if path.is_dir() else 0o444)
    probe = subprocess.run([sys.executable, "-c", "import os, sys; sys.exit(os.access(sys.argv[1], os.W_OK))", home],
                           preexec_fn=obey_modes)
    if probe.returncode:
        pytest.skip("这里的 root 不受文件权限约束")
    yield home
    for path in everything:
        path.chmod(0o755)


def run(home, where, *words, code=0):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, str(home / words[0]), *map(str, words[1:])], cwd=where, env=environment,
                          capture_output=True,
                          text=True, encoding="utf-8", preexec_fn=obey_modes, timeout=600)
    assert done.returncode == code and "Traceback" not in done.stderr, (
        f"{done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout + done.stderr


@pytest.mark.slow
def test_out_dir_is_enough_for_the_whole_way(install, tmp_path):
    out = tmp_path / "out"
    short = [*TINY, "--max_steps", 2, "--logging_steps", 1]
    run(install, tmp_path, "run.py", "--quick", "--out_dir", out, *short)
    assert {"report.json", "report.html", "log.txt", "logs", "data",
            "TinySeek_SFT_final.pkl"} <= {p.name for p in out.iterdir()}
    run(install, tmp_path, "train_agent/lora_train.py", "--out_dir", out, *short, "--rank", 2)
    run(install, tmp_path, "chat_agent/chat.py", "--out_dir", out, "--prompt", "你好", "--max_new_tokens", 2)
    run(install, tmp_path, "chat_agent/evaluate.py", "--out_dir", out, "--every", 400)
    run(install, tmp_path, "tools/report.py", "--out_dir", out)
    assert {p.name for p in tmp_path.iterdir()} == {"out"}


def test_without_it_one_line_names_it(install, tmp_path):
    for script, word in (("run.py", "--out_dir"), ("train_agent/pre_train.py", "数据文件不存在")):
        said = run(install, tmp_path, script, *TINY, code=2).strip().splitlines()[-1]
        assert said.startswith("错误：") and word in said, said
    assert not list(tmp_path.iterdir())
