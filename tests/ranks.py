"""Several processes of one toy training, each the way torchrun would start it: what tests/test_parallel.py launches,
and how.

`launch(folder, jobs)` -> one list of results per rank. A job is {"options": resolved options, and what to do, see
`run_job`}.
"""
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(folder, jobs, ranks=2, **environment):
    """Start `ranks` processes on these jobs -> list of Popen."""
    torch.save(jobs, folder / "jobs.pt")
    port, started = free_port(), []
    for rank in range(ranks):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1",
                     "MASTER_PORT": port, **environment}
        with open(folder / f"said_{rank}.txt", "w") as out:
            started.append(subprocess.Popen(
                [sys.executable, __file__, str(folder)], cwd=ROOT, stdout=out, stderr=out,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                     **{k: str(v) for k, v in variables.items()}}))
    return started


def finish(folder, started, timeout=600):
    """Wait for them -> one list of results per rank; fails with what they said when one did not end with 0."""
    try:
        codes = [process.wait(timeout) for process in started]
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
    assert not any(codes), f"{codes}\n{said(folder, len(started))[-6000:]}"
    return [torch.load(folder / f"results_{rank}.pt", weights_only=False) for rank in range(len(started))]


def said(folder, ranks):
    return "\n".join((folder / f"said_{rank}.txt").read_text(errors="replace") for rank in range(ranks))


def launch(folder, jobs, ranks=2):
    return finish(folder, start(folder, jobs, ranks))


# ---- what a process does ----

def sent_bytes():
    """Bytes that this process has sent over its TCP connections so far, as the kernel counts them."""
    total = 0
    for number in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{number}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(number))) as s:
                if s.family in (socket.AF_INET, socket.AF_INET6) and s.type == socket.SOCK_STREAM:
                    info = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
                    total += struct.unpack_from("Q", info, 200)[0]                 # tcpi_bytes_sent
        except OSError:
            continue
    return total


def memory_of_process(name):
    """VmRSS (now) or VmHWM (highest) of this process in bytes."""
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) * 1024 for line in f if line.startswith(name))


def run_job(job):
    """One run -> {"history", "weights", "shards": bytes of weights and optimizer here, "gradients": of the first steps,
    ...}.

    job: options; stage; float64; stop_after; nan_at: (rank, step) whose loss is not finite; gradients: how many steps
    to keep;
    slow: seconds to wait in each step; errors: no training, but what `shared_errors` does.
    """
    import time

    import toy
    from train_agent.trainers import parallel
    from train_agent.trainers.hardware import sharding

    if job.get("errors"):
        return {"errors": shared_errors(parallel)}
    if job.get("uneven"):
        return {"found": uneven_memory(job, toy, parallel)}
    Path("/proc/self/clear_refs").write_text("5")          # the highest memory counts from here
    base = memory_of_process("VmRSS")
    stage = toy.build_stage(job["options"], job.get("stage", "pre"))
    if job.get("float64", True):
        stage.model.double()
    loop = toy.ToyLoop(stage, stop_after=job.get("stop_after"))
    result = {"gradients": [], "sent": [], "reductions": 0, "calls": []}
    nan_at, loss, optimize, may_step = job.get("nan_at"), stage.loss, loop.optimize, loop.may_step

    def spoiled(*args):
        value, sums = loss(*args)
        return (value * float("nan"), sums) if nan_at == (parallel.rank(), loop.step + 1) else (value, sums)

    def watched_step(group):
        if len(result["gradients"]) < job.get("gradients", 0):
            kept = {n: sharding.whole(p.grad).clone() for n, p, _ in loop.named}
            result["gradients"].append(kept if parallel.is_main() else {})
        return may_step(group)

    def counted(*args):
        time.sleep(job.get("slow", 0))
        before = sent_bytes(), result["reductions"]
        optimize(*args)
        result["sent"].append(sent_bytes() - before[0])
        result["calls"].append(result["reductions"] - before[1])
        result["peak"] = memory_of_process("VmHWM") - base             # before anything is saved
    stage.loss, loop.may_step, loop.optimize = spoiled, watched_step, counted
    result["dtypes"], result["moved"] = watch_dtypes(stage.model), watch_moves(stage.model)
    try:
        with counting_reductions(loop, result):
            loop.run()
        result["exit"] = 0
    except SystemExit as error:
        result["exit"] = error.code
    local = [p.to_local() if hasattr(p, "to_local") else p for p in stage.model.parameters()]
    states = [t.to_local() if hasattr(t, "to_local") else t for o in loop.optimizers for s in o.state.values()
              for t in s.values() if isinstance(t, torch.Tensor)]
    result["shards"] = sum(t.nbytes for t in local + states)
    result["history"] = loop.history
    result["buffers"] = {n: b.clone() for n, b in stage.model.named_buffers()}
    result["weights"] = {n: sharding.whole(p).detach().clone() for n, p in stage.model.named_parameters()}
    return result


def watch_dtypes(model):
    """{name of a module: dtypes of its input, its output and its own weights} as the first forward pass in training has
    them."""
    found = {}

    def see(name, module, inputs, output):
        if module.training:
            outputs = output if isinstance(output, tuple) else (output,)
            tensors = [t for t in (*inputs, *outputs) if isinstance(t, torch.Tensor)]
            found.setdefault(name, [str(t.dtype) for t in (*tensors, *module.parameters(recurse=False))])
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, n=name: see(n, m, i, o))
    return found


def watch_moves(model):
    """[(name, share of the weights that is not sharded yet)] for every module that is moved to a device from now on."""
    from torch.distributed.tensor import DTensor
    moved = []

    def watched(name, module, to):
        def move(*args, **keywords):
            weights = list(module.parameters())
            moved.append((name, sum(not isinstance(p, DTensor) for p in weights) / len(weights)))
            return to(*args, **keywords)
        return move
    for name, module in model.named_modules():
        if name in ("", *(f"blocks.{i}" for i in range(len(model.blocks)))):
            module.to = watched(name, module, module.to)
    return moved


def uneven_memory(job, toy, parallel):
    """What find_batch makes of a rank with less memory than the others, and what the preflight says ahead of a run."""
    from train_agent.trainers.preflight import preflight
    from train_agent.trainers.trying import find_batch
    find_batch.MOST, find_batch.memory_there = 8, lambda device: 1e6 if parallel.rank() else 1e12
    stage = toy.build_stage(job["options"])
    found, ahead = find_batch.find_batch(stage, say=None), preflight(stage, seconds=0, say=None)
    return found["batch_size"], [tried["seconds"] for tried in found["tried"]], ahead["steps"], ahead["memory"]["batch"]


def shared_errors(parallel):
    """How each kind of failure on one rank ends here, and what a success gives."""
    from tools.errors import UserError

    def fails(message, code, when=True):
        if when:
            raise UserError(message, code)
    ends = []
    for attempt in (lambda: parallel.from_main(lambda: fails("词表坏了", 4)),
                    lambda: parallel.main_first(lambda: fails("先坏", 2, parallel.is_main())),
                    lambda: parallel.agree(parallel.rank(), "不同")):
        try:
            ends.append(attempt())
        except (UserError, SystemExit) as error:
            ends.append((type(error).__name__, str(error) if isinstance(error, UserError) else "", error.code))
    return ends + [parallel.gathered(parallel.rank()), parallel.from_main(lambda: 7)]


class counting_reductions:
    """Counts how often gradients travel: DDP's buckets and FSDP's reduce-scatters."""

    def __init__(self, loop, result):
        self.loop, self.result = loop, result

    def __enter__(self):
        import torch.distributed as dist
        from torch.nn.parallel import DistributedDataParallel
        from train_agent.trainers import parallel
        # torch's names
        self.name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"
        self.dist, self.scatter, self.parallel, self.wrap = dist, getattr(dist, self.name), parallel, parallel.wrap

        def scatter(*args, **keywords):
            self.result["reductions"] += 1
            return self.scatter(*args, **keywords)

        def wrap(*args):
            wrapped = self.wrap(*args)
            if isinstance(wrapped, DistributedDataParallel):
                wrapped.register_comm_hook(None, hook)
            return wrapped

        def hook(_, bucket):
            self.result["reductions"] += 1
            flat = bucket.buffer().div_(dist.get_world_size())
            return dist.all_reduce(flat, async_op=True).get_future().then(lambda done: done.value()[0])
        parallel.wrap = wrap
        setattr(dist, self.name, scatter)

    def __exit__(self, *_):
        self.parallel.wrap = self.wrap
        setattr(self.dist, self.name, self.scatter)


def main(folder):
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    torch.set_num_threads(1)
    from tools.cli import guarded
    results = []

    def work():
        results.extend(run_job(job) for job in torch.load(folder / "jobs.pt", weights_only=False))
        torch.save(results, folder / f"results_{os.environ['RANK']}.pt")
    guarded(work)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
