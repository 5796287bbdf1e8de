"""A server for OpenAI clients and a page to chat on: python chat_agent/serve.py --model out/TinySeek_SFT_final.pkl

    python chat_agent/serve.py --model a.pkl --model 小助手=b.pkl --host 0.0.0.0 --api_key 一串密钥
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
         -d '{"model": "SFT_final", "messages": [{"role": "user", "content": "你好"}]}'
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.signals import end_on_signals

if __name__ == "__main__":
    end_on_signals()            # first: importing torch takes seconds

import dataclasses
import os

from tools.acting.toolbox import toolbox
from tools.cli import guarded, parse
from tools.config.keys import STRETCH
from tools.config.stages import made_by
from tools.errors import UserError
from tools.process.first import in_notebook

KEY_VARIABLE = "TINYSEEK_API_KEY"
READS = ("device", "threads", "out_dir", "name", "log_dir", *STRETCH)
OPTIONS = [
    ("--model", {"action": "append", "metavar": "文件",
                 "help": "模型或适配器 .pkl，可写几次；写成 名字=文件 可自己起名（默认 out/TinySeek_SFT_final.pkl）"}),
    ("--host", {"default": "127.0.0.1", "metavar": "地址",
                "help": "在哪个地址上服务；0.0.0.0 让别的机器也能用，这时请加 --api_key（127.0.0.1）"}),
    ("--port", {"type": int, "default": 8000, "metavar": "数", "help": "端口，0 = 任选一个空的（8000）"}),
    ("--api_key", {"metavar": "密钥", "help": f"要求客户端带上这个密钥；也可放在环境变量 {KEY_VARIABLE} 里，那样别人在进程列表中看不到"}),
    ("--allow_origin", {"action": "append", "metavar": "网址",
                        "help": "允许别的网页（如 https://app.nextchat.dev）用这个服务，可写几次；* = 都允许"}),
    ("--allow_host", {"action": "append", "metavar": "名字", "help": "没有密钥时还认哪些主机名，可写几次（默认只认 IP 地址、localhost 和本机名）"}),
    ("--max_new_tokens", {"type": int, "default": 1024, "metavar": "数", "help": "一个回答最多多少个词元，请求要得更多也只给这么多（1024）"}),
    ("--max_batch", {"type": int, "default": 16, "metavar": "数", "help": "同时写多少个回答（16）"}),
    ("--max_queue", {"type": int, "default": 64, "metavar": "数", "help": "最多多少个回答排队，再多的请求得到 429（64）"}),
    ("--request_time", {"type": float, "default": 300.0, "metavar": "秒", "help": "一个请求最长的时间，到时回答就此打住（300）"}),
    ("--beside", {"action": "store_true", "help": "训练脚本的 --page 用：端口被占用就换一个，训练结束后自己停"}),
    ("--tools", {"nargs": "*", "metavar": "名字",
                 "help": "网页上学过工具的模型可用的工具：calculate calendar convert（不写名字就是这些），自己的 .py 文件，供查找的 .jsonl、.txt 文件"}),
    ("--context", {"type": int, "metavar": "数", "help": "对话最多占多少个词元，更早的整轮先忘掉（默认为训练时的 max_len）"}),
]


def main(argv=None):
    manager, options = parse(argv, "服务：OpenAI 式接口，和浏览器里的聊天页", extra=OPTIONS, only_run_keys=True, reads=READS)
    if in_notebook():
        raise UserError("服务要一直占着一个进程，笔记本里不能这样启动。请在终端里运行 python chat_agent/serve.py，"
                        "或在单元格里写 !python chat_agent/serve.py --model 文件。")
    run, limits = need_packages(), limits_of(options)
    options.box = toolbox(options.tools) if options.tools is not None else None
    key = options.api_key if options.api_key is not None else os.environ.get(KEY_VARIABLE)
    check_key(key)
    origins, config = [origin_of(one) for one in options.allow_origin or ()], manager.config
    limits = dataclasses.replace(limits, connections=run.raise_descriptor_limit(limits.connections))
    sock = run.listen(options.host, options.port, options.beside)
    if options.beside:
        run.end_with_parent()
    warn(options.host, key, run.is_local(sock), origins)
    with sock:
        models = open_models(options, config)
        models.box = options.box
        rules = rules_of(key, options.allow_host, origins, limits)
        run.serve(models, limits, sock, curves_of(config, limits), rules, config["threads"],
                  lambda: announce(sock, run.network_address(), key))
    print("服务已停止。")
    return 143


def warn(host, key, local, origins):
    if not key and not local:
        print(f"警告：{host} 让别的机器也能连上，却没有密钥，谁都能用。请加 --api_key，或改回 --host 127.0.0.1。", file=sys.stderr)
    if not key and "*" in origins:
        print("警告：--allow_origin * 又没有密钥：你打开的任何网页都能用这个服务。请加 --api_key，或写明网址。", file=sys.stderr)


def origin_of(word):
    """--allow_origin as browsers write it: https://name[:port]. UserError 2 for anything else."""
    from urllib.parse import urlsplit
    if word in ("*", "null"):
        return word
    try:
        parts = urlsplit(word)
        more = parts.query or parts.fragment or parts.username
        good = parts.scheme and parts.netloc and parts.path in ("", "/") and not more
    except ValueError:
        good = False
    if not good:
        raise UserError(f"--allow_origin 应是 https://名字 或 http://名字:端口 这样的网址，或 *，不能是 {word}。")
    return f"{parts.scheme}://{parts.netloc}".lower()


def rules_of(key, hosts, origins, limits):
    import socket

    from chat_agent.server.access import Rules, own_names
    names = own_names(socket.gethostname()) | {name.lower().rstrip(".") for name in hosts or ()}
    return Rules(key, tuple(names), tuple(origins), limits.heard_out)


def curves_of(config, limits):
    from chat_agent.server.curves import Curves
    return Curves(config["log_dir"], limits, Path(config["out_dir"], config["name"] or ""))


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
    few = min(options.max_batch, options.max_new_tokens) < 1 or options.max_queue < 0
    if few or not 0 < options.request_time < 1e9:
        raise UserError("--max_batch、--max_new_tokens 至少为 1，--max_queue 至少为 0，--request_time 应大于 0。")
    if options.context is not None and options.context < 8 or not 0 <= options.port <= 65535:
        raise UserError("--context 至少为 8，--port 在 0 到 65535 之间。")
    # more could never be taken at once
    return Limits(**numbers, choices=min(Limits.choices, options.max_batch + options.max_queue))


def check_key(key):
    if key is not None and (not key.strip() or key != key.strip() or not key.isascii() or not key.isprintable()):
        raise UserError("密钥不能为空，只能用看得见的英文字符、数字和符号，两头没有空格。")


def open_models(options, config):
    """-> Models. Without --model what is finished in out_dir; while a first training is under way there are only the
    curves."""
    from chat_agent.load import USUAL, model_paths
    from chat_agent.server.finals import Finals
    from chat_agent.server.models import Models
    if options.model or config["name"]:
        return Models(load_all(model_paths(options.model, config), config, options))
    known, usual = {}, Path(config["out_dir"], USUAL)
    finals = Finals(config["out_dir"], lambda paths: load_all(paths, config, options, known))
    found = finals() or []
    if str(usual) in finals.failed:
        raise finals.failed[str(usual)][1]
    if not found:
        print(f"还没有模型 {usual}：先只有训练曲线。训练完成后这里会自己用上它；现在训练请运行 python run.py", flush=True)
    return Models(found, finals)


def load_all(paths, config, options, known=None):
    """--model values -> list of Served. UserError as `load` raises them; 2 for two models of one name. known: a dict
    kept between calls, so that files that are still the same are not read again."""
    from chat_agent.chat import short_names
    from chat_agent.load import context_of, load, stretch_of, talk_of
    from chat_agent.server.models import Served
    from chat_agent.session import crowded, tools_size
    named = [split_name(path) for path in paths]
    names = [name or short for (name, _), short in zip(named, short_names([path for _, path in named]))]
    if len(set(names)) < len(names):
        raise UserError("有两个模型同名。请用 --model 名字=文件 给它们起不同的名字。")
    served, known = [], {} if known is None else known
    for name, (own, path) in zip(names, named):
        file = path, Path(path).stat().st_mtime_ns if Path(path).exists() else 0
        if file not in known:
            known[file] = load(path, config["device"], stretch_of(options, config))
            size = sum(p.numel() for p in known[file][0].parameters()) / 1e6
            print(f"{name}：{path}，{made_by(known[file][2]['stage'])}，{size:.1f} M 参数", flush=True)
        model, vocab, payload = known[file]
        title = made_by(payload["stage"])
        label = own or (f"{title}（{name}）" if len(paths) > 1 else title)
        served.append(Served(name, model, vocab, context_of(model, payload, options.context), payload["stage"] == "Pre",
                             title, file[1] // 10 ** 9, label, **talk_of(payload)))
        if options.box and "calls" in served[-1].acts:
            offered = [{"role": "tools", "content": options.box.offered}]
            if why := crowded(tools_size(offered, vocab), served[-1].context):
                print(f"{name}：{why}；网页上它不用工具。", flush=True)
            else:
                served[-1].tools = tuple(options.box.definitions)
    return served


def split_name(word):
    """`name=path` -> (name, path); a path of its own that holds a `=` stays whole."""
    name, equals, path = word.partition("=")
    if not equals or not name or "/" in name or "\\" in name or Path(word).exists():
        return None, word
    return name, path


def announce(sock, network, key):
    """Where the server is; bound to all addresses, also where others on the network find it."""
    host, port = sock.getsockname()[:2]
    everywhere = host in ("0.0.0.0", "::")
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    print(f"已就绪：http://{host}:{port}　（接口 http://{host}:{port}/v1{'，需要密钥' if key else ''}；按 Ctrl-C 停止）", flush=True)
    if everywhere and network:
        print(f"同一个网络里的别的机器请打开：http://{network}:{port}", flush=True)


if __name__ == "__main__":
    guarded(main)
