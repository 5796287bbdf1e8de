"""From a request to its reply: the body read within bounds, jobs for the engine, and the answer, whole or as a stream.

While a reply is written somebody always listens for the client; when it leaves, its jobs are marked and free their
slots.
"""

import asyncio
import time
from itertools import groupby

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from chat_agent.server.answers import DONE, WAITING, Answer, event
from chat_agent.server.engine import Job
from chat_agent.server.errors import ApiError, bad, busy
from chat_agent.server.form import ruled
from chat_agent.server.schemas import parsed, read_chat, read_completion
from chat_agent.server.writing import Writer
from chat_agent.session import too_long
from model.sampling import stream_of

HEARTBEAT = 15.0        # seconds of silence in a stream before a comment is sent
NO_STORE = {"cache-control": "no-store"}


class Bodies:
    """Reads bodies; all that are being read share one bound on memory."""

    def __init__(self, limits):
        self.limits, self.held = limits, 0

    async def read(self, request):
        """-> bytes. ApiError 413 or 429; ClientDisconnect."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and len(length) < 20 and int(length) > self.limits.body:
            raise self._too_large()
        body, before = bytearray(), 0
        try:
            async for chunk in request.stream():
                body += chunk
                self.held += len(body) - before
                before = len(body)
                if len(body) > self.limits.body:
                    raise self._too_large()
                if self.held > self.limits.bodies:
                    raise busy("现在请求太多，请过一两秒再试。", "too_many_bodies")
            return bytes(body)
        finally:
            self.held -= before

    def _too_large(self):
        return ApiError(413, f"请求太大：最多 {self.limits.body >> 20} MiB。", "request_too_large")


def prepare(raw, chat, models, limits):
    """Bytes of a body -> Ask, Served, a Prompt each. Runs beside the event loop: parsing and encoding take time."""
    return prepared(parsed(raw), chat, models, limits)


def prepared(body, chat, models, limits):
    ask = (read_chat if chat else read_completion)(body, limits)
    models.look()
    served = models.get(ask.model)
    ask.settle(served.sampling, limits, served.acts if ask.chat and not served.completes else (), served.structure)
    make = (lambda p: served.chat_prompt(p, ask.new_tokens, ask.thinking)) if ask.chat else served.text_prompt
    prompts = [make(p) for p in ask.prompts]
    if min(served.room(prompt.ids, ask.new_tokens) for prompt in prompts) < 1:
        raise bad("这段话占满了模型的位置，没有地方写回答。", "messages", "context_length_exceeded")
    ask.hows = [ruled(ask, served, prompt) for prompt in prompts]
    return ask, served, prompts


def jobs_for(ask, served, prompts, limits, bell):
    """n jobs for each prompt; with a seed, choice i has the random numbers of its own place."""
    now, jobs = time.monotonic(), []
    for prompt, how in zip(prompts, ask.hows):
        for _ in range(ask.n):
            room = served.room(prompt.ids, ask.new_tokens)
            writer = Writer(served.vocab, room, how, ask.stops, ask.thinking, ask.top)
            jobs.append(Job(served, prompt.ids, how, stream_of(ask.seed, len(jobs)), writer, bell, ask.stream,
                            now + limits.request_time, now + limits.queue_time))
    return jobs


def about(served, prompts):
    """What is said of the prompts beside the reply -> the field `tinyseek`; of several prompts, the longest and the
    most forgetful."""
    used, dropped, tools = (max(sizes) for sizes in zip(*((len(p.ids), p.dropped, p.tools) for p in prompts)))
    return {"dropped_turns": dropped, "context": served.context, "prompt_tokens": used,
            "notices": remarks(used, served.context, dropped, tools)}


def remarks(used, context, dropped, tools):
    said = [f"最早的 {dropped} 轮已超出模型的记忆（{context} 个词元），这次没有读到。"] if dropped else []
    return said + [f"{why}。" for why in [too_long(used, context, tools)] if why]


def headers_of(ask, facts):
    """The same for programs that look at headers only."""
    more = {"x-tinyseek-context": f"{facts['prompt_tokens']}/{facts['context']}"}
    more |= {"x-tinyseek-dropped-turns": str(facts["dropped_turns"])} if facts["dropped_turns"] else {}
    return NO_STORE | more | ask.headers()


def deliver(news):
    """Runs on the event loop, once per step of the engine: hands its news over and rings."""
    for job, pieces, finish, error in news:
        job.pieces += pieces
        job.finish, job.error = finish, error
        job.count = len(job.writer.ids)
        job.bell.set()


class Desk:
    """Answers /v1/chat/completions and /v1/completions."""

    def __init__(self, models, engine, limits, pool):
        self.models, self.engine, self.limits, self.pool, self.bodies = models, engine, limits, pool, Bodies(limits)

    async def answer(self, request, chat):
        raw = await self.bodies.read(request)
        loop = asyncio.get_running_loop()
        ask, served, prompts = await loop.run_in_executor(self.pool, prepare, raw, chat, self.models, self.limits)
        bell = asyncio.Event()
        jobs = jobs_for(ask, served, prompts, self.limits, bell)
        self.engine.submit(jobs)
        facts = about(served, prompts)
        answer, read = Answer(ask, served, facts), sum(len(prompt.ids) for prompt in prompts)
        if ask.stream:
            return Stream(ask, jobs, bell, read, answer, headers_of(ask, facts))
        return await whole(request, jobs, bell, read, answer, headers_of(ask, facts))


async def until_gone(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def whole(request, jobs, bell, read, answer, headers):
    gone = asyncio.ensure_future(until_gone(request.receive))
    try:
        while not all(job.over for job in jobs):
            bell.clear()
            ring = asyncio.ensure_future(bell.wait())
            await asyncio.wait((ring, gone), return_when=asyncio.FIRST_COMPLETED)
            ring.cancel()
            if gone.done():
                raise ClientDisconnect
    finally:
        gone.cancel()
        leave(jobs)
    failed = next((job.error for job in jobs if job.error), None)
    if failed:
        raise failed
    return JSONResponse(answer.whole([(job.writer, job.finish) for job in jobs], read), headers=headers)


def leave(jobs):
    """Nobody waits for these any more. Those that are over do not mind."""
    for job in jobs:
        job.gone = True


class Stream(Response):
    """Server-sent events. A reader that lags gets what has piled up as one piece; the engine never waits for it."""

    media_type = "text/event-stream"

    def __init__(self, ask, jobs, bell, read, answer, headers):
        super().__init__(headers=headers | {"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.ask, self.jobs, self.bell, self.read, self.answer = ask, jobs, bell, read, answer

    async def __call__(self, scope, receive, send):
        gone = asyncio.ensure_future(until_gone(receive))
        write = asyncio.ensure_future(self._write(send))
        try:
            await asyncio.wait((gone, write), return_when=asyncio.FIRST_COMPLETED)
            if write.done():
                write.result()
        finally:
            gone.cancel()
            write.cancel()
            leave(self.jobs)

    async def _write(self, send):
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for part in self._parts():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _parts(self):
        answer, left = self.answer, dict(enumerate(self.jobs))
        yield b"".join(event(answer.opening(i)) for i in left) if self.ask.chat else b""
        while left:
            yield await self._ring() or b"".join(self._news(answer, left))
        if self.ask.usage:
            yield event(answer.totals(self.read, sum(job.count for job in self.jobs)))
        yield DONE

    async def _ring(self):
        """Wait for news. -> a comment to send when there were none for a while"""
        try:
            await asyncio.wait_for(self.bell.wait(), HEARTBEAT)
        except asyncio.TimeoutError:
            return WAITING
        self.bell.clear()
        return b""

    def _news(self, answer, left):
        """The events for what has come in; choices that are over leave `left`."""
        for i, job in list(left.items()):
            if job.pieces:
                pieces, job.pieces = job.pieces, []
                for kind, group in groupby(pieces, lambda piece: piece.kind):
                    group = list(group)
                    scored = [one for piece in group for one in piece.scored]
                    yield from map(event, answer.piece(i, kind, "".join(group), scored, job.writer.spoken.calls))
            if job.error:
                del left[i]
                yield event(job.error.content())
            elif job.finish:
                del left[i]
                yield from map(event, answer.closing(i, job.finish, job.writer))
