"""Work that waits for others, several pieces at once, results in order."""
import queue
import threading
from collections import deque
from concurrent.futures import Future

AHEAD = 4       # pieces under way or done per worker; one slow piece must not hold the others up


def in_order(work, items, workers):
    """work(item) of each item, in the items' order; its exception is raised where its item stands.

    The threads die with the process: a stop need not wait for anybody's answer.
    """
    todo, waiting, over = queue.SimpleQueue(), deque(), threading.Event()

    def serve():
        while (job := todo.get()) is not None and not over.is_set():
            future, item = job
            try:
                future.set_result(work(item))
            except BaseException as error:
                future.set_exception(error)

    for _ in range(workers):
        threading.Thread(target=serve, daemon=True).start()
    try:
        for item in items:
            waiting.append(Future())
            todo.put((waiting[-1], item))
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        over.set()
        for _ in range(workers):
            todo.put(None)
