"""What happens before a script can begin: an old Python, a missing package, Ctrl-C during imports, and a notebook's own
command line."""
import ast
import glob
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHAT = ["chat_agent/chat.py", "chat_agent/serve.py", "chat_agent/evaluate.py", "chat_agent/export.py",
        "chat_agent/answer.py"]
SCRIPTS = ["run.py", *CHAT, "train_agent/sft_train.py", "train_agent/pre_train.py", "tools/check_data.py",
           "tools/report.py", "tools/plot.py",
           "tools/demo_data.py"]


def run(code, *words, **how):
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, encoding="utf-8", timeout=120,
                          cwd=ROOT, **how)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_old_python_is_told_in_one_line(script):
    code = ("import runpy, sys; sys.version_info = (3, 9, 18, 'final', 0); runpy.run_path(sys.argv[1], "
            "run_name='__main__')")
    done = run(code, script)
    assert done.returncode == 2
    assert done.stderr == "错误：需要 Python 3.10 以上，现在是 3.9。请换一个新的 Python 运行（命令可能叫 python3.11 之类）。\n"


def test_an_old_python_can_read_the_beginning_of_every_script():
    tops = ["run.py", *glob.glob("chat_agent/*.py", root_dir=ROOT), *glob.glob("train_agent/*.py", root_dir=ROOT),
            "tools/check_data.py", "tools/report.py", "tools/plot.py", "tools/demo_data.py"]
    for name in [*tops, "tools/__init__.py", "tools/process/__init__.py"]:
        ast.parse((ROOT / name).read_text(encoding="utf-8"), feature_version=(3, 8))
    ast.parse((ROOT / "tools/process/first.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_progress_bars_do_not_fill_a_file():
    code = ("from tools.process.first import check_machine; check_machine(); import tqdm; "
            "print(tqdm.tqdm(range(1)).mininterval)")
    free = {name: value for name, value in os.environ.items() if name != "TQDM_MININTERVAL"}
    assert run(code, env=free).stdout == "10.0\n" and run(code, env={**free, "TQDM_MININTERVAL": "3"}).stdout == "3.0\n"


@pytest.mark.parametrize("package, script", [
    ("torch", "run.py"), ("torch", "chat_agent/chat.py"), ("torch", "chat_agent/evaluate.py"),
    ("torch", "chat_agent/export.py"),
    ("torch", "train_agent/sft_train.py"), ("numpy", "tools/check_data.py"), ("numpy", "tools/plot.py"),
    ("tqdm", "chat_agent/evaluate.py"),
    ("fastapi", "chat_agent/serve.py")])
def test_a_missing_package_is_told_in_one_line(package, script):
    code = ("import runpy, sys, importlib.abc\n"
            "script, package = sys.argv[1:]\n"
            "class Hidden(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            "        if name.split('.')[0] == package: raise ModuleNotFoundError(f'No module named {name!r}', "
            "name=name)\n"
            "sys.meta_path.insert(0, Hidden())\n"
            "sys.argv = [script]\n"
            "runpy.run_path(script, run_name='__main__')")
    done = run(code, script, package)
    assert done.returncode == 2 and "Traceback" not in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert package in done.stderr and "pip install -r requirements" in done.stderr


def test_a_bug_keeps_its_traceback():
    done = run("from tools.process.first import check_machine; check_machine(); import tools.nonsense")
    assert done.returncode == 1 and "Traceback" in done.stderr


def until_it_listens(pid):
    """Waits until a process has a handler for SIGTERM: Python itself takes some time before its first line, more on a
    busy machine."""
    status = Path(f"/proc/{pid}/status")
    for _ in range(1500 if status.exists() else 15):
        caught = next((line for line in status.read_text().splitlines() if line.startswith("SigCgt")),
                      "0 0") if status.exists() else "0 0"
        if int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.01)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("script", CHAT)
def test_ctrl_c_while_importing_leaves_no_traceback(script):
    for wait in (0.0, 0.35, 0.85):
        process = subprocess.Popen([sys.executable, script, "--model", "/nowhere.pkl"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, cwd=ROOT)
        until_it_listens(process.pid)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=60)[1].decode()
        assert process.returncode in (143, 3, 2) and "Traceback" not in errors, (wait, errors)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_the_interpreters_exit_changes_nothing(number):
    code = ("import atexit, os, signal, sys; from tools.process.signals import end_on_signals; end_on_signals()\n"
            "atexit.register(lambda: os.kill(os.getpid(), int(sys.argv[1])))\n"
            "class Late:\n"
            "    def __del__(self, kill=os.kill, me=os.getpid(), number=int(sys.argv[1])): kill(me, number)\n"
            "sys.late = Late()\n"
            "from tools.cli import guarded; guarded(lambda: 3)")
    done = run(code, str(int(number)))
    assert (done.returncode, done.stderr) == (3, "")


# ---------------------------------------------------------------- notebooks

@pytest.mark.parametrize("script, mine", [
    ("/x/site-packages/ipykernel_launcher.py", False), ("/x/site-packages/colab_kernel_launcher.py", False),
    ("C:\\x\\ipykernel\\__main__.py", False), ("chat_agent/chat.py", True), ("my_launcher.py", True), ("", True)])
def test_the_words_of_a_kernel_are_not_ours(monkeypatch, script, mine):
    from tools.process.first import arguments
    monkeypatch.setattr(sys, "argv", [script, "-f", "kernel-1.json"])
    assert arguments() == (["-f", "kernel-1.json"] if mine else [])


@pytest.fixture(scope="module")
def kernel():
    manager = pytest.importorskip("jupyter_client.manager")
    pytest.importorskip("ipykernel")
    one, client = manager.start_new_kernel(kernel_name="python3", cwd=str(ROOT),
                                           env={**os.environ, "PYTHONPATH": str(ROOT)})

    def execute(code):
        """(status, all that was printed or shown as an error)"""
        shown = []

        def hear(message):
            content = message["content"]
            shown.append(content.get("text") or "\n".join(content.get("traceback", [])))
        reply = client.execute_interactive(code, timeout=120, output_hook=hear, allow_stdin=False)
        return reply["content"]["status"], "".join(shown)
    yield execute
    client.stop_channels()
    one.shutdown_kernel(now=True)


MODULES = [("chat_agent.chat", "找不到模型"), ("chat_agent.evaluate", "找不到模型"), ("chat_agent.export", "请写 --to"),
           ("chat_agent.serve", "笔记本")]


@pytest.mark.parametrize("module, said", MODULES)
def test_main_in_a_cell_reads_no_words_of_the_kernels(kernel, module, said, tmp_path):
    """Without a model each ends with its own line; none speaks of -f."""
    status, shown = kernel(f"import os; os.chdir({str(tmp_path)!r})\nfrom {module} import main\nmain()"
                           if module != "chat_agent.evaluate" else
                           f"from {module} import main\nmain(['--model', '/nowhere.pkl'])")
    assert (said in shown or "错误：" in shown) and "-f 这个选项" not in shown and "Traceback" not in shown, shown


def test_scripts_run_in_a_cell(kernel):
    for script, words, said in (("chat", "--model /nowhere.pkl --prompt 你好", "找不到模型"),
                                ("serve", "--model /nowhere.pkl", "笔记本"),
                                ("evaluate", "--model /nowhere.pkl", "找不到模型"), ("export", "--to hf", "--output")):
        _, shown = kernel(f"%run {ROOT}/chat_agent/{script}.py {words}")
        assert said in shown and "Traceback" not in shown and "asyncio" not in shown, shown
    assert kernel("print(3 + 4)")[1] == "7\n"                                  # the kernel lives


def test_a_chat_in_a_notebook_without_input_ends(kernel, tmp_path):
    from test_chat import save_model
    import toy
    path = save_model(tmp_path / "m.pkl", toy.toy_vocab())
    status, shown = kernel(f"from chat_agent.chat import main\nmain(['--model', {path!r}])")
    assert status == "ok" and "Traceback" not in shown
    status, shown = kernel(f"main(['--model', {path!r}, '--prompt', '苹果', '--max_new_tokens', '3'])")
    assert status == "ok" and "Traceback" not in shown


@pytest.mark.parametrize("own", [None, "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
def test_idle_threads_sleep_soon_unless_the_user_says_otherwise(own):
    code = ("import os; from tools.process.first import WAITING, check_machine; check_machine(); "
            "print([os.environ.get(n) for n in WAITING])")
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={**clean, **({own: "7"} if own else {})},
                          capture_output=True, text=True)
    expected = {None: ["1000", "1"], "OMP_WAIT_POLICY": [None, None], "GOMP_SPINCOUNT": ["7", None],
                "KMP_BLOCKTIME": [None, "7"]}
    assert done.stdout.strip() == str(expected[own])


@pytest.mark.parametrize("script", ["run.py", "train_agent/pre_train.py", "chat_agent/chat.py", "bench/train_speed.py"])
def test_it_is_said_before_torch_is_loaded(script):
    code = (f"import sys, os, runpy; sys.argv = ['x', '--help']\n"
            "class Watch:\n    def find_spec(self, name, *_):\n        if name == 'torch':\n            print('spin', "
            "os.environ.get('GOMP_SPINCOUNT')); os._exit(0)\n"
            f"sys.meta_path.insert(0, Watch())\nrunpy.run_path({script!r}, run_name='__main__')")
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert done.stdout.strip() == "spin 1000", done.stderr
