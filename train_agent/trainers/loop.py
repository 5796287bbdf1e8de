"""THE training loop: the only place with backward() and step().

A Stage says what is trained on what; here is how: fetch, forward, backward, unscale, clip, check, rate, step, log,
evaluate, save.
"""

import contextlib
import math
import time

import torch
from tqdm import tqdm

from model.moe import balance_routers
from tools.checkpoint import best_name, final_name
from tools.errors import UserError
from tools.process.signals import STOPPED
from tools.logs.trackers import NoTracker, numbers_of, open_tracker
from tools.train_log import TrainLog, perplexity
from train_agent.trainers import parallel, schedules
from train_agent.trainers.hardware import compiling, machine, sharding
from train_agent.trainers.running import regrouping, resume as recovery
from train_agent.trainers.dataset import Position, loader
from train_agent.trainers.running.evaluation import evaluate
from train_agent.trainers.running.options import LoopOptions
from train_agent.trainers.losses import step_metrics
from train_agent.trainers.optimizers import build_optimizers, set_rates, settings
from train_agent.trainers.running.saving import Saver
from train_agent.trainers.running.signals_and_guards import (FiniteGuard, ForgettingWatch, Patience, SpikeWatch,
                                                              StopSignals, finite)

GENERAL = "general"      # the held-out set that tells what an adaptation makes the model forget


class Loop:
    """One run of one stage. `run()` trains to the end, or to a signal, and returns the last metrics."""

    def __init__(self, stage):
        self.stage, self.options, self.model = stage, stage.options, stage.model
        self.keys = LoopOptions.of(stage.options)
        self.device = machine.choose_device(self.keys.device)
        self.step, self.decays, self.tokens, self.seconds = 0, 0, 0, 0.0
        self.more_steps, self.shift = 0, 0.0
        self.position, self.finished, self.complete = Position(), False, False
        self.metrics, self.held = {}, {}
        self.guard, self.spikes = FiniteGuard(), SpikeWatch()
        self.patience = Patience(self.keys.early_stopping_threshold)
        self.forgetting = ForgettingWatch(self.keys.forget_limit)
        self.tracker, self.bar, self.journal = NoTracker(), None, None
        self.player = stage.player() if stage.player else None

    def run(self):
        with self.at_work():
            self.prepare()
            if not self.complete:
                self.train()
                self.finish()
            self.closing()
            self.saver.end()
        return {**self.metrics, **self.held}

    def closing(self):
        """What else belongs to the run: as long as it is not done, the same command comes back to it instead of
        training anew."""

    @contextlib.contextmanager
    def at_work(self):
        """The output folder is ours, signals are heard, and the loss of another process is told in plain words."""
        parallel.start(self.device)
        with parallel.watched(), StopSignals() as self.signals, Saver(self.stage) as self.saver:
            try:
                yield
            except UserError as error:
                if self.journal is not None:
                    self.journal.event("failed", text=str(error))
                raise
            finally:
                self.tracker.close()
                if self.bar is not None:                   # before a message is printed
                    self.bar.close()

    # ---- the spine ----

    def train(self):
        self.model.train()
        bar = self.bar = tqdm(total=self.total_steps, initial=self.step, desc=self.stage.label, delay=0.5,
                              dynamic_ncols=True, disable=not parallel.is_main())
        clock = self.since = time.perf_counter()
        self.since_tokens = self.tokens
        batches = loader(self.stage.train, self.position, self.options, self.device, parallel.rank(), parallel.world())
        with contextlib.closing(batches):
            for group, after, in_chunk in batches:
                if self.over():
                    break
                place, self.position = self.stage.train.settled(self.position), after
                self.optimize(group, place.epoch * self.stage.train.chunks + place.chunk + 1)
                now = time.perf_counter()
                self.seconds, clock = self.seconds + now - clock, now
                bar.update()
                bar.set_postfix(loss=f"{self.metrics['loss']:.3f}", refresh=False)
                if self.due("logging_steps") or self.keys.logging_steps and self.over():
                    self.log(place, in_chunk)
                if self.due("eval_steps"):
                    self.evaluate()
                name = self.checkpoint_due(place)
                stop = parallel.any_of(self.signals.asked, self.device)
                if name or stop:
                    self.save(name or self.step_name(place))
                if stop:
                    self.signals.saved(self.step)
                    raise SystemExit(STOPPED)
        bar.close()

    def optimize(self, group, chunk):
        """One step over all micro-batches of `group`."""
        group = self.player.ready(self, group) if self.player else group
        for _ in range(self.stage.updates):
            self.update(group, chunk)
        self.decays += not schedules.is_held(self.keys, chunk) and self.step >= self.keys.warmup_steps
        self.step += 1

    def update(self, group, chunk):
        """One optimizer step. Where nothing is there to learn from the weights stay as they are."""
        counts = {k: sum(getattr(b, k) for b in group) for k in ("targets_1", "targets_2", "tokens")}
        totals = {k: float(v) for k, v in parallel.summed(counts, self.device).items()}
        sums = self.gradients(group, totals)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        self.sums = parallel.fetched({**parallel.summed(sums, self.device), "grad_norm": self.clip()})
        self.metrics = {**step_metrics(self.sums, totals), "grad_norm": self.sums["grad_norm"]}
        factor = self.rate_factor(chunk)
        set_rates(self.optimizers, factor)
        if totals["targets_1"] and self.may_step(group):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
            if "load" in self.sums:
                balance_routers(self.model, self.sums["load"])
        self.scaler.update()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.metrics["lr"] = self.keys.init_lr * factor
        self.tokens += int(totals["tokens"])

    def gradients(self, group, totals):
        """Forward and backward pass of every micro-batch -> what they say for the log, summed."""
        sums = {}
        for number, batch in enumerate(group):
            with parallel.without_sync(self.wrapped, last=number == len(group) - 1):
                with machine.autocast(self.device, self.precision):
                    loss, parts = self.stage.loss(self.wrapped, batch.to(self.device), totals)
                self.scaler.scale(loss * parallel.loss_factor(self.wrapped)).backward()
            for key, value in parts.items():
                sums[key] = sums[key] + value if key in sums else value
        return sums

    def rate_factor(self, chunk):
        """The rule counts steps from `shift`, which is 0 unless the run was regrouped."""
        step, total = self.step - self.shift, self.total_steps - self.shift
        return schedules.rate_factor(self.keys, step, total, chunk, self.decays)

    def clip(self):
        """The global gradient norm before clipping, a tensor; max_norm 0 only measures."""
        limit = self.keys.max_norm or math.inf
        return sharding.whole(torch.nn.utils.clip_grad_norm_([p for _, p, _ in self.named], limit))

    def may_step(self, group):
        """False when loss or gradient is not finite: the rows are named, the weights stay, three in a row end the
        run."""
        loss, norm = self.metrics["loss"], self.metrics["grad_norm"]
        finite = math.isfinite(loss) and math.isfinite(norm)
        if not finite:
            self.journal.event("skipped", step=self.step + 1, loss=loss, grad_norm=norm, rows=self.rows_of(group))
        elif self.spikes.is_spike(loss):
            self.journal.event("spike", step=self.step + 1, loss=loss, rows=self.rows_of(group))
        scaling = self.scaler.is_enabled() and math.isfinite(loss)      # no scale would mend the loss itself
        return self.guard.check(finite, self.scaler.get_scale() if scaling else None)

    def rows_of(self, group):
        mine = [row for batch in group if batch.position for row in self.stage.train.source_rows(batch.position)]
        return sorted({row for rows in parallel.gathered(mine) for row in rows})

    # ---- cadences ----

    def over(self):
        """Stopped early, at max_steps, or out of data; `total_steps` may be an estimate and decides nothing here."""
        limit = self.keys.max_steps
        return self.finished or limit is not None and self.step >= limit or self.stage.train.is_end(self.position)

    def due(self, cadence):
        every = schedules.every(cadence, getattr(self.keys, cadence), self.total_steps)
        return bool(every) and self.step % every == 0

    def checkpoint_due(self, place):
        """The name of the checkpoint that is due after the step from `place`, or None."""
        chunk_done = (self.position.epoch, self.position.chunk) != (place.epoch, place.chunk)
        if chunk_done and self.keys.save_frq and (place.chunk + 1) % self.keys.save_frq == 0:
            return self.stage.file_name(place, self.batches_done(place))
        return self.step_name(place) if self.due("save_steps") and not self.over() else None

    def step_name(self, place):
        return self.stage.file_name(place, self.batches_done(place), self.step)

    def batches_done(self, place):
        """Batches of the chunk of `place` that are behind us."""
        same = (self.position.epoch, self.position.chunk) == (place.epoch, place.chunk)
        return self.position.batch if same else self.stage.train.batches_in(place.epoch, place.chunk)

    def log(self, place, in_chunk):
        """One line in log.txt; the numbers are those of the last step, speed and time those since the last line."""
        now, train = time.perf_counter(), self.stage.train
        rate = (self.tokens - self.since_tokens) / max(1e-9, now - self.since)
        self.since, self.since_tokens = now, self.tokens
        fields = {"step": self.step, "epoch": place.epoch + 1, "epochs": self.epochs(place),
                  "batch": self.batch_number(place, in_chunk),
                  "batches": in_chunk, "index": place.chunk + 1, "indexes": train.chunks, **self.metrics,
                  "tok_s": rate, "device": str(self.device), "batch_t": self.seconds / self.step,
                  "remaining": (self.total_steps - self.step) * self.seconds / self.step, "tokens": self.tokens}
        if self.player:
            fields |= self.player.told()
        if "load" in self.sums:
            fields["expert_load"] = (self.sums["load"] / self.sums["load"].sum(-1, keepdim=True)).tolist()
        self.journal.line(fields)
        self.tracker.log(self.step, numbers_of(fields, [g["lr"] for o in self.optimizers for g in o.param_groups]))

    def epochs(self, place):
        """How many epochs this run will have begun when it ends: max_steps may end it in an early one."""
        share = self.total_steps / max(1, self.planned + self.more_steps)
        return max(place.epoch + 1, math.ceil(self.stage.train.epochs * share - 1e-9))

    def batch_number(self, place, in_chunk):
        return min(in_chunk, place.batch + self.keys.accumulation_steps * parallel.world())

    def evaluate(self):
        """All held-out sets; the first that is not the general one decides about the best model and about stopping
        early."""
        if not self.stage.held:
            return
        start = time.perf_counter()
        scores = {name: self.score(name, data) for name, data in self.stage.held.items()}
        deciding = next((s for name, s in scores.items() if name != GENERAL), {})
        self.held = dict(deciding)
        if GENERAL in scores:
            self.held |= self.forgetting.seen(scores[GENERAL]["eval_loss"])
            if self.forgetting.warning:
                self.journal.event("warning", text=self.forgetting.warning)
        if deciding:
            self.judge(deciding["eval_loss"])
        self.since += time.perf_counter() - start                      # held-out time is not training speed

    def judge(self, loss):
        """Keep the best model, and end a run that gets no better."""
        lowest, better = self.patience.is_lowest(loss), self.patience.improved(loss)
        if lowest and self.keys.save_best_model:
            self.saver.save(best_name(self.stage.label), self.step, finite({**self.metrics, **self.held}), best=True)
        waited = not better and self.patience.waited >= self.keys.early_stopping_patience
        if waited and self.keys.early_stopping:
            self.finished = True
            self.journal.event("early_stop", step=self.step, best=self.patience.best)

    def score(self, name, data):
        result = evaluate(self.wrapped, data, self.device, self.precision, self.stage.loss)
        fields = {f"eval_{k}": v for k, v in result.items()}
        self.journal.event("eval", step=self.step, eval_name=name, eval_ppx_1=perplexity(result["ce_1"]), **fields)
        self.tracker.log(self.step, {f"{name}/{k}": v for k, v in result.items()}
                         | {f"{name}/ppx_1": perplexity(result["ce_1"])})
        return fields

    # ---- beginning and end ----

    def setup(self):
        """Model on its device, compiled where that is asked for, and the length of the run; nothing on the disk is
        touched."""
        sharded = parallel.shards(self.model, self.options)
        machine.keep_large_blocks(not sharded)
        if not sharded:                                                # else piece by piece, when it is wrapped
            self.model.to(self.device)
        self.planned = self.stage.train.steps(self.keys.accumulation_steps, parallel.world())
        self.total_steps = self.steps_in_all()
        compiling.compile_parts(self.model, self.options, self.device, self.total_steps)

    def steps_in_all(self):
        steps = self.planned + self.more_steps
        return min(self.keys.max_steps or steps, steps)

    def choose(self, precision=None):
        """Settle what `auto` means (a resumed run passes what was settled at its first start); the optimizers for what
        is wrapped."""
        wanted = self.keys.mixed_precision
        settled = precision if wanted == "auto" else None
        self.precision = settled or parallel.from_main(lambda: machine.choose_precision(wanted, self.device))
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.wrapped = parallel.wrap(self.model, self.device, self.options, self.precision)
        self.named = self.stage.trainable()
        self.optimizers = build_optimizers(self.named, self.options)

    def prepare(self):
        """Take up an unfinished run of this configuration, or start afresh."""
        parallel.agree(self.stage.identity, "各进程读到的数据、词表或起点模型不一样，不能一起训练。请让每台机器用同样的文件。")
        self.setup()
        saved = self.saver.find()
        if saved:
            self.take_place(saved)
        elif self.stage.begin:
            self.stage.notes |= self.stage.begin(self.device)
        self.choose(saved["precision"] if saved else None)
        header = {"device": str(self.device), "precision": self.precision, "steps": self.total_steps,
                  "params": sum(p.numel() for p in self.model.parameters()),
                  "trainable": sum(p.numel() for _, p, _ in self.named),
                  "ranks": parallel.world(), **self.stage.notes, "config": self.options}
        files = (self.keys.log_file, self.keys.log_dir) if parallel.is_main() else (None, None)
        self.journal = TrainLog(*files, self.stage.name, header=header, resume=saved["run_id"] if saved else False)
        if parallel.is_main():
            self.tracker = open_tracker(self.keys.tracker, self.keys.log_dir, self.journal.run_id,
                                        self.options,
                                        saved["step"] if saved else 0)
        if saved:
            self.restore(saved)
        else:
            recovery.seed_everything(self.keys.seed + parallel.rank())
            # what the model could before it learned anything new
            if GENERAL in self.stage.held:
                scores = {name: self.score(name, data) for name, data in self.stage.held.items()}
                self.forgetting.first = scores[GENERAL]["eval_loss"]

    def take_place(self, state):
        """Step and place in the data of a checkpoint, and the steps of the whole run from there."""
        self.step, self.position, self.more_steps = state["step"], Position(*state["position"]), state.get(
            "more_steps", 0)
        self.shift = state.get("shift", self.more_steps)
        had, has = state.get("step_size"), regrouping.step_size(self.options)
        if had and had != has:
            self.position = regrouping.regrouped(self.position, had[0], has[0])
            self.more_steps = regrouping.more_steps(self.stage.train, self.position, self.step, self.planned)
        self.total_steps = self.steps_in_all()
        if had and had != has and "total_steps" in state:
            self.shift = regrouping.shift(self.step, self.shift, state["total_steps"], self.total_steps,
                                          self.keys.warmup_steps)

    def state(self):
        """All that a resume needs beside the weights; plain tensors, numbers and lists."""
        return {"step": self.step, "position": list(self.position), "decays": self.decays, "tokens": self.tokens,
                "step_size": regrouping.step_size(self.options), "more_steps": self.more_steps,
                "shift": self.shift, "total_steps": self.total_steps,
                "seconds": self.seconds, "finished": self.finished, "precision": self.precision,
                "run_id": self.journal.run_id,
                "optimizers": sharding.for_file([o.state_dict() for o in self.optimizers], parallel.is_main()),
                "scaler": self.scaler.state_dict(),
                "random": parallel.gathered(recovery.random_states()),
                "surroundings": recovery.surroundings(self.device),
                "spikes": list(self.spikes.history), "guard": self.guard.in_a_row,
                "patience": self.patience.state(), "forgetting": self.forgetting.first, "held": finite(self.held),
                "metrics": finite(self.metrics), "player": self.player.state() if self.player else None}

    def restore(self, state):
        for name in ("decays", "tokens", "seconds", "finished", "held", "metrics"):
            setattr(self, name, state[name])
        self.complete = state.get("complete", False)
        for number, optimizer in enumerate(self.optimizers):
            wanted = [settings(group) for group in optimizer.param_groups]
            try:
                parallel.load_optimizer(optimizer, state["optimizers"] and state["optimizers"][number], self.device)
            except ValueError as error:
                raise UserError(f"优化器的分组和检查点不同（{error}）。请改回 embedding_lr 等学习率的分法，或用 --resume none 重新开始。", 4) from None
            # rates and decay are the configuration's, which may have changed
            for group, today in zip(optimizer.param_groups, wanted):
                group.update(today)
        if state["scaler"]:                                            # empty where the run was not in fp16
            self.scaler.load_state_dict(state["scaler"])
        self.spikes = SpikeWatch(state["spikes"])
        self.guard.in_a_row = state["guard"]
        if not self.saver.changed(state, "eval_data_path"):            # losses on other data cannot be compared
            self.patience.restore(*state["patience"])
        self.forgetting.first = state.get("forgetting")
        if self.player:
            self.player.restore(state["player"])
        self.journal.resume_from(self.step)
        recovery.seed_everything(self.keys.seed + parallel.rank())
        for mine in state["random"][parallel.rank():][:1]:
            recovery.restore_random_states(mine)
        why = recovery.unlike(state["surroundings"], self.device)
        if why:
            self.journal.event("warning", text=why)

    def save(self, stem, final=False):
        self.saver.save(stem, self.step, finite({**self.metrics, **self.held}), self.state(), final=final)
        self.journal.event("save", step=self.step, name=stem)

    def finish(self):
        """Last evaluation, final checkpoint."""
        if not self.due("eval_steps"):
            self.evaluate()
        self.save(final_name(self.stage.label), final=True)
