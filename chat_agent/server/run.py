"""Start, run and stop: one process with an event loop, the engine's thread and a few helpers, none of which outlives
it."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from chat_agent.server.app import create_app
from chat_agent.server.engine import Engine
from chat_agent.server.protocol import Guard
from chat_agent.server.replies import deliver
from tools.errors import UserError

BACKLOG = 512           # connections that wait to be accepted
SPARE = 128             # file descriptors for everything else
LINGER = 8.0            # seconds for which a page outlives the training that it shows: its viewers see the end


def end_with_parent():
    """Serve whoever started us through a pipe: when it is gone, so are we, some seconds later. Nobody's work is to be
    held up by us."""
    def wait():
        sys.stdin.buffer.read()
        time.sleep(LINGER)
        os._exit(0)
    if hasattr(os, "nice"):
        os.nice(10)
    threading.Thread(target=wait, name="parent", daemon=True).start()


def listen(host, port, any_port=False):
    """A listening socket; any_port: on another port where this one is taken. UserError 2 when the address is taken or
    not ours."""
    if any_port:
        try:
            return listen(host, port)
        except UserError:
            return listen(host, 0)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # localhost: 127.0.0.1 before ::1
        family, kind, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        sock = socket.socket(family, kind)
    except (OSError, UnicodeError):
        raise UserError(f"无法解析地址 {host}。请换一个 --host，例如 127.0.0.1。") from None
    try:
        if os.name != "nt":                             # on Windows the option would let two servers share a port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        sock.close()
        reason = getattr(error, "strerror", None) or "端口号不对"
        raise UserError(f"没能在 {host} 的端口 {port} 上开始服务（{reason}）。端口被占用时请换一个，例如 --port {port % 60000 + 1}。") from None
    return sock


def is_local(sock):
    address = sock.getsockname()[0]
    return address == "::1" or address.startswith("127.")


def network_address():
    """The address under which others on the local network reach this machine, None without a network. No packet is
    sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))             # an address that belongs to nobody (RFC 5737)
            return probe.getsockname()[0]
    except OSError:
        return None


def raise_descriptor_limit(wanted):
    """Let this process hold that many files where the system allows it. -> how many connections there may be"""
    try:
        import resource
    except ImportError:                                 # Windows counts otherwise
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + BACKLOG + SPARE
    if soft != resource.RLIM_INFINITY and soft < need:
        soft = need if hard == resource.RLIM_INFINITY else min(need, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(32, min(wanted, soft - BACKLOG - SPARE))


class Server(uvicorn.Server):
    """uvicorn's server with our way to stop: the first signal drains, a second one ends at once."""

    def __init__(self, config, engine, guard, limits):
        super().__init__(config)
        self.engine, self.guard, self.limits, self.signals = engine, guard, limits, 0

    @contextlib.contextmanager
    def capture_signals(self):
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        names = [signal.SIGINT, signal.SIGTERM] + ([signal.SIGBREAK] if os.name == "nt" else [])
        before = {name: signal.signal(name, self.handle_exit) for name in names}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def handle_exit(self, sig, frame):
        self.signals += 1
        self.should_exit, self.force_exit = True, self.signals > 1

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.watching = asyncio.ensure_future(self.guard.watch())

    async def shutdown(self, sockets=None):
        self.engine.drain()
        self.guard.stop()
        asyncio.get_running_loop().call_later(self.limits.drain_time, self.engine.cut_off)
        await super().shutdown(sockets)
        self.watching.cancel()


def serve(models, limits, sock, curves, rules, threads=None, ready=None):
    """Serve until a signal comes. models: Models; sock: from `listen`; curves: Curves; ready: called when requests are
    answered."""
    async def run():
        loop = asyncio.get_running_loop()
        engine = Engine(limits, lambda news: _post(loop, news), threads)
        engine.start()
        guard = Guard(limits)
        app = create_app(models, engine, curves, limits, pool, rules)
        config = uvicorn.Config(
            app, http=guard.protocol, ws="none", loop="asyncio", lifespan="off", log_level="error", access_log=False,
            proxy_headers=False, server_header=False, h11_max_incomplete_event_size=limits.headers,
            timeout_graceful_shutdown=int(limits.drain_time) + 3, backlog=BACKLOG)
        server = Server(config, engine, guard, limits)
        try:
            if ready:
                loop.call_soon(ready)
            await server.serve([sock])
        finally:
            engine.close()
    pool = ThreadPoolExecutor(1, "prepare")
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise UserError("笔记本里已经有一个事件循环在跑，服务开不起来。请在终端里运行：python chat_agent/serve.py")
    try:
        asyncio.run(run())
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _post(loop, news):
    try:
        loop.call_soon_threadsafe(deliver, news)
    except RuntimeError:                                # the loop has ended before the engine
        print("（服务已停，剩下的回答不再送出。）", file=sys.stderr)
