"""Continuous batching: one thread owns the models and writes all replies under way, a token of each per step.

A step of a lane (one model): new prompts are read, a chunk of each; then every reply gets its next token in one pass.
So a reply begins while others go on, and ends without waiting for them. Nobody's reader can hold the thread up: text
goes to the event loop through one call per step, and waits there.
"""

import sys
import threading
import time
import traceback
from collections import deque

import torch

from chat_agent.server.errors import busy, internal, stopping
from model.decoding.cache import DecodeCache

LEAST_CHUNK = 256      # tokens of a prompt read in one step


class Job:
    """One reply. The engine's thread fills `writer`; what of it has been handed over lies in `pieces`, and finally
    `finish` or `error`.

    how: Sampling; numbers: random.Random; live: the text is wanted piece by piece; bell: an asyncio.Event to ring at
    news.
    """

    def __init__(self, served, ids, how, numbers, writer, bell, live=True, deadline=float("inf"),
                 wait_until=float("inf")):
        self.served, self.ids, self.how, self.numbers, self.writer = served, ids, how, numbers, writer
        self.bell, self.live, self.deadline, self.wait_until = bell, live, deadline, wait_until
        self.read = 0                                  # prompt ids that the model has seen
        self.gone = False                              # set by the front when the client has left
        self.pieces, self.finish, self.error, self.count = [], None, None, 0

    @property
    def over(self):
        return self.finish is not None or self.error is not None


class Lane:
    """The replies of one model. Slot i of the cache belongs to jobs[i]; there is never a hole."""

    def __init__(self, model, slots, chunk=LEAST_CHUNK):
        self.model, self.slots, self.chunk = model, slots, chunk
        self.jobs, self.waiting, self.cache, self.news = [], deque(), None, []

    @property
    def busy(self):
        return bool(self.jobs or self.waiting)

    def step(self, now):
        """One round -> list of (job, Pieces of text, finish, error), the news of this step."""
        self.news = []
        self._leave(now)
        self._enter()
        if self.jobs:
            self._advance()
        return self.news

    def _advance(self):
        """A chunk of each prompt that is being read, a token for every reply."""
        reading = [i for i, job in enumerate(self.jobs) if job.read < len(job.ids)]
        writing = [i for i, job in enumerate(self.jobs) if job.read >= len(job.ids)]
        places, states = self._read(reading)
        if writing:
            last = torch.tensor([[self.jobs[i].writer.ids[-1]] for i in writing], device=self._device)
            states.append(self.model.decode(last, self.cache, writing)[:, 0])
            places += writing
        if places:
            logits, jobs = self.cache.logits(torch.cat(states), places), [self.jobs[i] for i in places]
            own = [logits[row].float().log_softmax(-1) if job.writer.top is not None else None
                   for row, job in enumerate(jobs)]                               # before pick changes the logits
            done = [i for i, new, known in zip(places, pick(logits, jobs), own)
                    if self.jobs[i].writer.add(new, known)]
            self.news += [_news(self.jobs[i]) for i in places if self.jobs[i].live or i in done]
            self._remove(done)

    @property
    def _device(self):
        return self.model.embed.weight.device

    def _read(self, rows):
        """Read the next chunk of these jobs' prompts -> (those that are through, [their states (n, d)])."""
        if not rows:
            return [], []
        parts = [self.jobs[i].ids[self.jobs[i].read:self.jobs[i].read + self.chunk] for i in rows]
        counts, longest = [len(p) for p in parts], max(map(len, parts))
        ids = torch.tensor([p + [0] * (longest - len(p)) for p in parts], device=self._device)
        hidden = self.model.decode(ids, self.cache, rows, counts)
        through = []
        for row, i in enumerate(rows):
            self.jobs[i].read += counts[row]
            if self.jobs[i].read >= len(self.jobs[i].ids):
                through.append(row)
        return [rows[r] for r in through], [hidden[r, counts[r] - 1][None] for r in through]

    def _leave(self, now):
        """Let go of jobs whose client left or whose time is over."""
        late = [i for i, job in enumerate(self.jobs) if job.gone or now >= job.deadline]
        for i in late:
            self.jobs[i].writer.end("length")
            self.news.append(_news(self.jobs[i]))
        self._remove(late)
        tired = [job for job in self.waiting if job.gone or now >= job.wait_until]
        if tired:
            self.waiting = deque(job for job in self.waiting if job not in tired)
            self.news += [(job, (), None, busy("排队太久，请稍后再试。", "queue_timeout")) for job in tired]

    def _enter(self):
        while self.waiting and len(self.jobs) < self.slots:
            if self.cache is None:
                self.cache = DecodeCache.of(self.model, self.slots, LEAST_CHUNK)
            self.cache.clear(len(self.jobs))
            self.jobs.append(self.waiting.popleft())

    def _remove(self, places):
        """The last job moves into each place that gets free, so that the slots in use stay neighbours."""
        for i in sorted(places, reverse=True):
            last = len(self.jobs) - 1
            if i != last:
                self.cache.move(last, i)
                self.jobs[i] = self.jobs[last]
            self.jobs.pop()

    def fail(self):
        """Something broke: nothing of this lane can be trusted. -> news, an error for each job that was under way"""
        told = {id(job) for job, _, finish, error in self.news if finish or error}
        lost = [job for job in self.jobs if id(job) not in told]
        if not self.jobs:  # not even a place could be made: those who wait would break it again
            lost, self.waiting = list(self.waiting), deque()
        self.jobs, self.cache = [], None
        return self.news + [(job, (), None, internal()) for job in lost]


def _news(job):
    return job, job.writer.take(), job.writer.finish, None


def pick(logits, jobs):
    """logits (B, V) -> the next id of each job; jobs that sample alike share one call."""
    groups, new = {}, [0] * len(jobs)
    for row, job in enumerate(jobs):
        groups.setdefault(job.how, []).append(row)
    for how, rows in groups.items():
        numbers = None if how.greedy else [jobs[r].numbers.random() for r in rows]
        part = logits if len(rows) == len(jobs) else logits[rows]
        for row, token in zip(rows, how.pick(part, [jobs[r].writer.ids for r in rows], numbers)):
            new[row] = token
    return new


class Engine:
    """The thread and its lanes. `post(news)` is called from the thread after each step that has any."""

    def __init__(self, limits, post, threads=None):
        self.limits, self.post, self.threads = limits, post, threads
        self.lanes = {}                                # id of a model -> Lane
        self.inbox, self.under_way = deque(), 0
        self.draining = self.cut = self.closed = False
        self.change = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self):
        self.thread.start()

    def submit(self, jobs):
        """Take all these jobs or none. ApiError 429 when the queue is full, 503 when the server is stopping."""
        with self.change:
            if self.draining:
                raise stopping()
            if self.under_way + len(jobs) > self.limits.batch + self.limits.queue:
                raise busy("现在请求太多，请过一两秒再试。", "queue_full")
            self.under_way += len(jobs)
            self.inbox.extend(jobs)
            self.change.notify()

    def drain(self):
        """Take nothing new; what is under way goes on."""
        with self.change:
            self.draining = True

    def cut_off(self):
        """End every reply where it is."""
        self.cut = True

    def close(self, timeout=5.0):
        with self.change:
            self.draining = self.closed = True
            self.change.notify()
        if self.thread.is_alive():
            self.thread.join(timeout)

    @property
    def alive(self):
        return self.thread.is_alive()

    def _run(self):
        if self.threads:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            while self._wait():
                news = self._sort()
                for lane in [lane for lane in self.lanes.values() if lane.busy]:
                    news += self._guarded(lane.step, lane.fail, float("inf") if self.cut else time.monotonic())
                if news:
                    self._tell(news)

    def _wait(self):
        """Sleep while there is nothing to do. False when the engine is closed."""
        with self.change:
            while not self.closed and not self.inbox and not any(lane.busy for lane in self.lanes.values()):
                self.change.wait()
            return not self.closed

    def _sort(self):
        """Arrivals to their lanes. -> news of those that have none"""
        news = []
        with self.change:
            jobs, self.inbox = self.inbox, deque()
        for job in jobs:
            news += self._guarded(self._assign, lambda job=job: [(job, (), None, internal())], job)
        return news

    def _assign(self, job):
        model = job.served.model_for(job.ids)
        if id(model) not in self.lanes:
            self.lanes[id(model)] = Lane(model, self.limits.batch, max(LEAST_CHUNK, -(-job.served.longest // 2)))
        self.lanes[id(model)].waiting.append(job)
        return []

    def _guarded(self, act, otherwise, argument):
        try:
            return act(argument)
        except Exception:                              # a bug or no memory: these replies are lost, the server is not
            traceback.print_exc(file=sys.stderr)
            return otherwise()

    def _tell(self, news):
        over = sum(finish is not None or error is not None for _, _, finish, error in news)
        with self.change:
            self.under_way -= over
        self.post(news)
