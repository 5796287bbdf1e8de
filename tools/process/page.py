"""A page to watch a training on: a process of its own beside it, on this machine only, and only where it is asked for.
"""

import contextlib
import importlib.util
import os
import subprocess
import sys
import threading
import webbrowser

from tools.config_manager import ROOT
from tools.errors import UserError

SERVER = ROOT / "chat_agent" / "serve.py"
READY = "已就绪："


@contextlib.contextmanager
def page_beside(options, out_dir=None):
    """Offers the page for as long as the block runs, if the keys `page` or `open` ask for one. The page lasts a few
    seconds longer, so that whoever looks sees how it ended. UserError 2 where packages for it are missing."""
    here = not int(os.environ.get("RANK", 0)) and not os.environ.get(MINE)
    if not here or not (options["page"] or options["open"]):
        if here:
            print("（想在网页里看它怎么学会说话：加 --open）", flush=True)
        yield
        return
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"网页要用 {'、'.join(missing)}。请先安装：python -m pip install -r requirements-serve.txt，"
                        "或去掉 --page。")
    process = start(options, out_dir or options["out_dir"])
    os.environ[MINE] = "1"                               # a stage inside of a pipeline offers no second page
    try:
        yield process
    finally:
        del os.environ[MINE]
        process.stdin.close()                            # the server notices


MINE = "TINYSEEK_PAGE"


def start(options, out_dir):
    """The server's process; `address` appears on it when it answers."""
    words = [sys.executable, str(SERVER), "--beside", "--device", "cpu", "--threads", "1", "--out_dir", str(out_dir),
             "--log_dir", str(options["log_dir"])]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               encoding="utf-8", errors="replace", start_new_session=True,
                               env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"})
    threading.Thread(target=_listen, args=(process, options["open"]), daemon=True).start()
    return process


def _listen(process, wanted):
    """Passes the address on, and in the end why there is none; everything else that the server says is its own."""
    last, told = "", False
    with contextlib.suppress(ValueError, OSError):
        for line in process.stdout:
            last = line.strip() or last
            if READY in line and not told:
                process.address = line.partition(READY)[2].split()[0]
                told, address = True, process.address + "/#curves"
                print(f"训练的网页：{address}　（只有本机能看，训练结束就停）", flush=True)
                if wanted:
                    webbrowser.open(address)
    if not told:
        print(f"网页没有开成：{last or '服务没有启动'}", file=sys.stderr, flush=True)
