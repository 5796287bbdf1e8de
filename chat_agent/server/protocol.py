"""uvicorn's HTTP protocol with the patience taken out of it: deadlines and bounds for every connection, whatever its
client does. uvicorn's own limits do not suffice: it has none for slow headers, slow bodies and readers that do not
read, and its `limit_concurrency` turns newcomers away while idle connections keep their places.

Once a second all connections are looked at. Slow headers, slow bodies, silence and readers that do not read end with
the connection. When there are too many, the one that has been waiting longest without asking anything goes, so that a
newcomer always gets in.
"""

import asyncio
import socket
import time

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from chat_agent.server.errors import ApiError

SEND_BUFFER = 128 << 10     # bytes of a reply that the kernel may hold for a reader
PIPELINED = 64 << 10        # bytes that a client may send ahead of its answer


class Guard:
    """All connections of one server."""

    def __init__(self, limits):
        self.limits, self.connections, self.stopping = limits, {}, False

    def protocol(self, **arguments):
        """What uvicorn calls for each new connection."""
        return Guarded(self, **arguments)

    def add(self, connection):
        self.connections[connection] = None
        if len(self.connections) > self.limits.connections:
            quiet, stuck = ([c for c in self.connections if getattr(c, kind)] for kind in ("quiet", "stuck"))
            victim = (quiet or stuck or [connection])[0]
            victim.transport.abort()
            self.connections.pop(victim, None)

    async def watch(self):
        while True:
            await asyncio.sleep(1.0)
            self.sweep(time.monotonic())

    def sweep(self, now):
        for connection in list(self.connections):
            connection.check(now, self.limits)

    def stop(self):
        """Connections that have asked nothing yet are of no more use."""
        self.stopping = True
        for connection in list(self.connections):
            if connection.idle:
                connection.transport.close()            # after what it is still owed
            elif connection.reading:
                connection.transport.abort()


class Guarded(H11Protocol):
    def __init__(self, guard, **arguments):
        super().__init__(**arguments)
        self.guard, self.since, self.asked, self.stuck, self.ahead = guard, time.monotonic(), None, None, 0

    def connection_made(self, transport):
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.guard.add(self)

    def connection_lost(self, exc):
        self.guard.connections.pop(self, None)
        super().connection_lost(exc)

    @property
    def idle(self):
        """No request is under way: silence, or headers that are still coming."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def quiet(self):
        """Idle, and nothing left to send."""
        return self.idle and not self.transport.get_write_buffer_size()

    @property
    def reading(self):
        """The body of a request is still coming."""
        return not self.idle and self.cycle.more_body

    def data_received(self, data):
        if self.idle and self.asked is None:
            self.asked = time.monotonic()               # the first byte of a request
        if not self.idle and not self.cycle.more_body:
            self.ahead += len(data)
            if self.ahead > PIPELINED:
                self.transport.abort()
                return
        super().data_received(data)
        if self.flow.read_paused and not self.idle and not self.cycle.more_body:
            self.flow.resume_reading()                  # or we would not notice when this client leaves

    def on_response_complete(self):
        self.since, self.asked, self.ahead = time.monotonic(), None, 0
        super().on_response_complete()

    def check(self, now, limits):
        """End what has taken too long."""
        if self.transport.get_write_buffer_size():
            self.stuck = self.stuck or now
            if now - self.stuck > limits.write_time:
                self.transport.abort()
                return
        else:
            self.stuck = None
        if self.transport.is_closing():
            return
        if self.reading:
            if now - (self.asked or self.since) > limits.body_time:
                self.refuse(ApiError(408, "请求的内容来得太慢。", "timeout"))
        elif self.idle and self.asked is not None:
            if now - self.asked > limits.header_time:
                self.refuse(ApiError(408, "请求来得太慢。", "timeout"))
        elif self.idle and now - self.since > limits.idle_time:
            self.transport.close()

    def refuse(self, error):
        """Answer outside of h11, whose state may be anything, and close."""
        if not self.idle and self.cycle.response_started:
            self.transport.abort()
            return
        body, phrase = error.body(), {400: "Bad Request", 408: "Request Timeout"}[error.status]
        head = (f"HTTP/1.1 {error.status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                "connection: close\r\n\r\n")
        self.transport.write(head.encode() + body)
        self.transport.close()

    def send_400_response(self, msg):
        self.refuse(ApiError(400, "这不是正确的 HTTP 请求。", "bad_request"))

    def timeout_keep_alive_handler(self):
        """Left to `check`."""

    def shutdown(self):
        try:
            super().shutdown()
        except h11.LocalProtocolError:
            self.transport.abort()
