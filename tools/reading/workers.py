"""Worker processes that know nothing of the script which asked for them."""

import contextlib
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor


class Workers(ProcessPoolExecutor):
    """Processes on `count` cores, each beginning with start(*settings).

    A spawned process runs the caller's script again up to `if __name__ == "__main__":`; a first script rarely has that line and would
    train once more in every worker. What is asked of these workers lies in modules, so the script is kept from them.
    """

    def __init__(self, count, start, settings):
        super().__init__(count, multiprocessing.get_context("spawn"), start, settings)

    def submit(self, *job, **named):
        with _script_hidden():                 # here the processes are started, one by one, as jobs come
            return super().submit(*job, **named)


@contextlib.contextmanager
def _script_hidden():
    script = sys.modules["__main__"].__dict__
    kept = {name: script[name] for name in ("__file__", "__spec__") if name in script}
    script.pop("__file__", None)
    script["__spec__"] = None
    try:
        yield
    finally:
        script.update(kept)
