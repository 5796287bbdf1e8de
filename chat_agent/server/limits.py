"""Every number that keeps one client from harming the others."""

from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes or tokens, times in seconds."""

    batch: int = 16                # replies of one model that are written side by side
    queue: int = 64                # replies that may wait for a place; one more is answered 429
    new_tokens: int = 1024         # of one reply; a request that asks for more gets this many
    choices: int = 8               # replies to one request (n, or n times the prompts of /v1/completions)
    messages: int = 1000           # of one conversation
    stops: int = 4                 # stop strings, each of at most `stop_length` characters
    stop_length: int = 128
    body: int = MIB                # of one request
    heard_out: int = 4 * MIB       # a larger body is refused after it has been read, up to this size; beyond it at once
    bodies: int = 64 * MIB         # of all requests being read
    request_time: float = 300.0    # from a request's arrival to the last token of its reply
    queue_time: float = 60.0       # of waiting for a place
    header_time: float = 10.0      # from the first byte of a request to the end of its headers
    body_time: float = 60.0        # from there to the end of its body
    idle_time: float = 15.0        # of a connection on which nothing is asked
    write_time: float = 60.0       # for which a reader may leave something in our buffer
    drain_time: float = 20.0       # that replies under way get after SIGTERM
    connections: int = 4096        # beyond it the longest-waiting one is closed
    headers: int = 32 * KIB
    curve_points: int = 600        # of each curve that the page gets
    log_size: int = 1024 * MIB     # the largest logs/*.jsonl that is read
