"""Bad clients, by the hundred: what they send and how they behave. Plain asyncio streams, so that nothing corrects
them."""
import asyncio
import json
import random
import re
import socket

POST = ("POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\ncontent-type: "
        "application/json\r\n")
GOOD = {"model": "one", "messages": [{"role": "user", "content": "你好"}], "temperature": 0, "max_tokens": 8}


def post(body, length=None, head=POST):
    """The bytes of a request; `length` may lie."""
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return head.encode() + b"content-length: %s\r\n\r\n" % str(len(body) if length is None else length).encode() + body


def _ask(**changes):
    return post({**GOOD, **changes})


def odd_values(rng):
    huge = rng.choice([10**400, -10**400, 1e308, -1e308, 2**63, -2**63 - 1])
    return rng.choice(
        [None, [], {}, "", "x" * rng.randint(1, 10_000), True, huge, -1, 0.5, [[]], [None], {"a": {"b": []}}, [huge]])


def garbage(rng):
    """One bad request as (bytes, whether the sender keeps its side open)."""
    fields = ["model", "messages", "temperature", "top_p", "n", "max_tokens", "stop", "seed", "stream",
              "stream_options",
              "repetition_penalty", "tools", "logit_bias", "response_format", "prompt", "template", "path"]
    kinds = [
        lambda: post(
            rng.choice(
                [b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"\xff\xfe", b"tru", b'{"model"',
                 b"[" * rng.randint(1, 200_000)])),
        lambda: post(
            b'{"model": "one", "messages": [{"role": "user", "content": "x"}], "temperature": %s}' % rng.choice(
            [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"--1", b"0x10"])),
        lambda: _ask(**{rng.choice(fields): odd_values(rng)}),
        lambda: _ask(**{rng.choice(fields): odd_values(rng), rng.choice(fields): odd_values(rng)}),
        lambda: _ask(messages=[{"role": rng.choice(["user", "tool", 3]), "content": "x"}] * 10_000),
        lambda: _ask(messages=[{"role": "r" * 1_000_000, "content": "x"}]),
        lambda: _ask(messages=[{"role": "user", "content": "长" * rng.randint(20_000, 300_000)}]),
        lambda: _ask(
            messages=[
                rng.choice(
                    [3, None, [], "x", {}, {"role": "user"}, {"content": "x"},
                     {"role": "user", "content": "\udcff"}])]),
        lambda: _ask(
            model=rng.choice(["", "none", "../one", "/etc/passwd", "one\0", "one.pkl", "o" * 100_000, 3, ["one"], {}])),
        # the rest looks like another request
        lambda: post(b"{}" * 5, length=rng.choice([3, 0, 5])),
        lambda: post(b"x" * rng.randint(1, 500),
                     length=rng.choice([-1, "x", "1e3", "99999999999999999999", 2 << 20, "5, 6"])),
        lambda: post(b"A" * (1 << 20) + b"A" * rng.randint(1, 100_000)),
        lambda: (POST + "transfer-encoding: chunked\r\n\r\n"
                 + rng.choice(["zz\r\n", "5\r\nabc\r\n0\r\n\r\n", "fffffffffff\r\nx", "-1\r\n"])).encode(),
        lambda: rng.randbytes(rng.randint(1, 2000)) + b"\r\n\r\n",
        lambda: b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: " + b"b" * rng.choice([100, 40_000, 100_000])
        + b"\r\nconnection: close\r\n\r\n",
        lambda: f"{rng.choice(['GET', 'PUT', 'DELETE', 'PATCH', 'TRACE', 'FOO'])} "
                f"{rng.choice(['/v1/chat/completions', '/health/', '/v1', '*', '//', '/%', '/curves/%00'])} "
                f"HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode(),
        lambda: _ask(stop=odd_values(rng)).replace(b"/chat/", rng.choice([b"/", b"/chat/"])),
    ]
    return rng.choice(kinds)()


async def talk(port, data, patience=120.0):
    """Send bytes, half-close never, read to the end -> (status or None, body)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        answer = await asyncio.wait_for(read_answer(reader), patience)
    except (ConnectionError, asyncio.TimeoutError):
        return None, b""
    finally:
        writer.close()
    return answer


async def read_answer(reader):
    """One response of fixed length or up to the end -> (status, body); (None, b"") where none comes."""
    head = b""
    while b"\r\n\r\n" not in head:
        part = await reader.read(65536)
        if not part:
            return None, head
        head += part
    head, _, body = head.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    found = re.search(rb"content-length: (\d+)", head.lower())
    while found is None or len(body) < int(found[1]):
        part = await reader.read(65536)
        if not part:
            break
        body += part
    return status, body


async def at_once(count, width, act):
    """act(i) for i in range(count), `width` of them at any time -> results."""
    results, numbers = [None] * count, iter(range(count))

    async def work():
        for i in numbers:
            results[i] = await act(i)
    await asyncio.gather(*(work() for _ in range(min(width, count))))
    return results


async def throw_garbage(port, count, width, seed=0):
    """-> list of (status, length of the body, what was sent)."""
    async def one(i):
        data = garbage(random.Random(f"{seed}/{i}"))
        status, body = await talk(port, data, 20.0)
        return status, len(body), data
    return await at_once(count, width, one)


async def drip(port, seconds, data):
    """One byte a second, until time is over or the server has had enough."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for at in range(int(seconds)):
            writer.write(data[at % len(data):][:1])
            await writer.drain()
            await asyncio.sleep(1.0)
        writer.close()
    except OSError:
        pass


async def idle(port, seconds):
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.sleep(seconds)
        writer.close()
    except OSError:
        pass


async def never_read(port, seconds, tokens=1000):
    """Ask for a long stream and let it pile up."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        await asyncio.get_running_loop().sock_sendall(sock,
                                                      post(
                                                          {**GOOD, "stream": True, "temperature": 1.5,
                                                           "max_tokens": tokens}))
        await asyncio.sleep(seconds)
    except OSError:
        pass
    finally:
        sock.close()


async def leave_midway(port, i):
    """Read the first pieces of a stream and hang up; who is told to come back later does. -> whether it had begun"""
    for _ in range(400):
        status = await _begin_and_leave(port, i)
        if status != 429:
            return status == 200
        await asyncio.sleep(0.05)
    return False


async def _begin_and_leave(port, i):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(post({**GOOD, "stream": True, "temperature": 1.5, "max_tokens": 1000, "seed": i}))
    try:
        status = int((await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 120)).split(b" ", 2)[1])
        if status == 200 and i % 3:
            await asyncio.wait_for(reader.readuntil(b'"content":"'), 120)
        return status
    except (asyncio.IncompleteReadError, ConnectionError, asyncio.TimeoutError):
        return None
    finally:
        if i % 2:
            writer.transport.abort()                    # a reset instead of a polite end
        writer.close()


def path_tricks(count, seed=0):
    """Raw request targets and model names that try to get out."""
    rng, tricks = random.Random(seed), []
    ups = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..\\", "%252e%252e%252f", "....//", "..;/", "%c0%ae%c0%ae/",
           ".%2e/"]
    goals = ["etc/passwd", "etc/hosts", "secret.txt", "chat_agent/serve.py", "model_config.json",
             "logs/../secret.jsonl", "proc/self/environ"]
    starts = ["/", "/static/", "/curves/", "/v1/models/", "/v1/", "//", "/static//", "/./"]
    while len(tricks) < count:
        name = rng.choice(ups) * rng.randint(0,
                                             9) + rng.choice(goals) + rng.choice(
                                                 ["", "%00", "%00.js", ".jsonl", "?x", "#", "%0a", "/"])
        tricks.append(
            (rng.choice(starts) + rng.choice(["", "/", "file:/"]) + name,
             rng.choice(["", "/", "file:///", "./", "C:\\"]) + name))
    return tricks


async def slow_body(port, seconds, head):
    """The head at once, then a byte a second."""
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        for _ in range(int(seconds)):
            writer.write(b"x")
            await writer.drain()
            await asyncio.sleep(1.0)
        writer.close()
    except OSError:
        pass
