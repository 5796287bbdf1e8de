"""The next steps' batches are made, and on their way to the device, while this step computes."""

import queue
import threading

import torch
from torch.utils.data import DataLoader

STEPS = 2          # whose batches wait at most


def pays(device):
    """Where the processor is free while the device computes. On a CPU both are the same."""
    return device.type == "cuda"


def on_device(steps, device):
    """steps: (list of batches, …) each -> the same, copied without waiting for the copy: pinned memory allows it."""
    if device.type == "cuda":
        torch.cuda.set_device(device)                      # of this thread; else pinning would wake up card 0
    for group, *where in steps:
        yield [batch.pin_memory().to(device) if device.type == "cuda" else batch for batch in group], *where


def ahead(steps):
    """What `steps` yields, in its order, made by a thread that is at most STEPS ahead. What it fails of is raised here.

    To be closed when no more of it is wanted, as contextlib.closing does: that ends the thread.
    """
    made, room, enough = queue.SimpleQueue(), threading.Semaphore(STEPS - 1), threading.Event()

    def work():
        try:
            for step in steps:
                made.put((step, None))
                room.acquire()
                if enough.is_set():
                    return
            made.put((None, StopIteration()))
        except BaseException as error:                     # told where it can be handled
            made.put((None, error))

    thread = threading.Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            step, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            room.release()
            yield step
    finally:
        enough.set()
        room.release()
        thread.join()


def by_workers(data, groups, options, device):
    """The same from processes, as many as the configuration names."""
    # what the sampler handed out and the workers have not delivered yet
    waiting = []

    def sampler():
        for positions, after, count in groups:
            waiting.append((after, count))
            yield positions

    batches = DataLoader(data, sampler=sampler(), batch_size=None, num_workers=options["num_workers"],
                         prefetch_factor=options["prefetch_factor"], pin_memory=device.type == "cuda",
                         multiprocessing_context="spawn" if device.type == "cuda" else None,
                         # its own, or starting the workers would draw from the model's dropout
                         generator=torch.Generator())
    for group in batches:
        yield group, *waiting.pop(0)
