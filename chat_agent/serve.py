"""A server for OpenAI clients and a page to chat on: python chat_agent/serve.py --model out/TinySeek_SFT_final.pkl

    python chat_agent/serve.py --model a.pkl --model 小助手=b.pkl --host 0.0.0.0 --api_key 一串密钥
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
         -d '{"model": "SFT_final", "messages": [{"role": "user", "content": "你好"}]}'
"""

import dataclasses
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

from tools.cli import guarded, parse
from tools.errors import UserError
from tools.process.first import in_notebook

KEY_VARIABLE = "TINYSEEK_API_KEY"
OPTIONS = [
    ("--model", {"action": "append", "metavar": "文件", "help": "模型或适配器 .pkl，可写几次；写成 名字=文件 可自己起名（默认 out/TinySeek_SFT_final.pkl）"}),
    ("--host", {"default": "127.0.0.1", "metavar": "地址", "help": "在哪个地址上服务；0.0.0.0 让别的机器也能用，这时请加 --api_key（127.0.0.1）"}),
    ("--port", {"type": int, "default": 8000, "metavar": "数", "help": "端口，0 = 任选一个空的（8000）"}),
    ("--api_key", {"metavar": "密钥", "help": f"要求客户端带上这个密钥；也可放在环境变量 {KEY_VARIABLE} 里，那样别人在进程列表中看不到"}),
    ("--max_new_tokens", {"type": int, "default": 1024, "metavar": "数", "help": "一个回答最多多少个词元，请求要得更多也只给这么多（1024）"}),
    ("--max_batch", {"type": int, "default": 16, "metavar": "数", "help": "同时写多少个回答（16）"}),
    ("--max_queue", {"type": int, "default": 64, "metavar": "数", "help": "最多多少个回答排队，再多的请求得到 429（64）"}),
    ("--request_time", {"type": float, "default": 300.0, "metavar": "秒", "help": "一个请求最长的时间，到时回答就此打住（300）"}),
    ("--context", {"type": int, "metavar": "数", "help": "对话最多占多少个词元，更早的整轮先忘掉（默认为训练时的 max_len）"}),
]


def main(argv=None):
    manager, options = parse(argv, "服务：OpenAI 式接口，和浏览器里的聊天页", extra=OPTIONS, only_run_keys=True)
    if in_notebook():
        raise UserError("服务要一直占着一个进程，笔记本里不能这样启动。请在终端里运行 python chat_agent/serve.py，"
                        "或在单元格里写 !python chat_agent/serve.py --model 文件。")
    run, limits = need_packages(), limits_of(options)
    key = options.api_key if options.api_key is not None else os.environ.get(KEY_VARIABLE)
    check_key(key)
    config, paths = manager.config, options.model or [str(Path(manager.config["out_dir"]) / "TinySeek_SFT_final.pkl")]
    limits = dataclasses.replace(limits, connections=run.raise_descriptor_limit(limits.connections))
    sock = run.listen(options.host, options.port)
    if not key and not run.is_local(sock):
        print(f"警告：{options.host} 让别的机器也能连上，却没有密钥，谁都能用。请加 --api_key，或改回 --host 127.0.0.1。", file=sys.stderr)
    with sock:
        models = load_all(paths, config, options)
        run.serve(models, limits, sock, config["log_dir"], key, config["threads"], lambda: announce(sock, models, key))
    print("服务已停止。")
    return 143


def need_packages():
    """The part that needs FastAPI and uvicorn. UserError 2 where they are missing."""
    try:
        from chat_agent.server import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "uvicorn", "starlette", "h11"):
            raise
        raise UserError(f"缺少 {error.name}。请先安装服务所需的包：python -m pip install -r requirements-serve.txt") from None
    return run


def limits_of(options):
    from chat_agent.server.limits import Limits
    numbers = {"batch": options.max_batch, "queue": options.max_queue, "new_tokens": options.max_new_tokens,
               "request_time": options.request_time}
    if min(options.max_batch, options.max_new_tokens) < 1 or options.max_queue < 0 or not 0 < options.request_time < 1e9:
        raise UserError("--max_batch、--max_new_tokens 至少为 1，--max_queue 至少为 0，--request_time 应大于 0。")
    if options.context is not None and options.context < 8 or not 0 <= options.port <= 65535:
        raise UserError("--context 至少为 8，--port 在 0 到 65535 之间。")
    return Limits(**numbers, choices=min(Limits.choices, options.max_batch + options.max_queue))     # more could never be taken at once


def check_key(key):
    if key is not None and (not key.strip() or key != key.strip() or not key.isascii() or not key.isprintable()):
        raise UserError("密钥不能为空，只能用看得见的英文字符、数字和符号，两头没有空格。")


def load_all(paths, config, options):
    """--model values -> Models. UserError as `load` raises them; 2 for two models of one name."""
    from chat_agent.chat import short_names
    from chat_agent.load import TITLES, context_of, load
    from chat_agent.server.models import Models, Served
    named = [split_name(path) for path in paths]
    names = [name or short for (name, _), short in zip(named, short_names([path for _, path in named]))]
    if len(set(names)) < len(names):
        raise UserError("有两个模型同名。请用 --model 名字=文件 给它们起不同的名字。")
    served = []
    for name, (_, path) in zip(names, named):
        model, vocab, payload = load(path, config["device"])
        served.append(Served(name, model, vocab, context_of(model, payload, options.context), payload["stage"] == "Pre",
                             TITLES.get(payload["stage"], payload["stage"]), int(Path(path).stat().st_mtime)))
        print(f"{name}：{path}，{served[-1].title}，{sum(p.numel() for p in model.parameters()) / 1e6:.1f} M 参数", flush=True)
    return Models(served)


def split_name(word):
    """`name=path` -> (name, path); a path of its own that holds a `=` stays whole."""
    name, equals, path = word.partition("=")
    if not equals or not name or "/" in name or "\\" in name or Path(word).exists():
        return None, word
    return name, path


def announce(sock, models, key):
    host, port = sock.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    print(f"已就绪：http://{host}:{port}　（接口 http://{host}:{port}/v1{'，需要密钥' if key else ''}；按 Ctrl-C 停止）", flush=True)


if __name__ == "__main__":
    guarded(main)
