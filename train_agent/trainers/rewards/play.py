"""The part of a step that comes before learning: which questions, G replies to each, their rewards, and what of them is
learned from.

Everything follows from the weights, the seed and the place in the data: the random numbers of a reply are those of
(seed, epoch, chunk, batch, number). So a run that is killed while it samples samples the same again.
"""

import random
import time
from dataclasses import dataclass

import numpy as np
import torch

from model.kernels.cross_entropy import IGNORE
from model.segments import Segments
from train_agent.trainers import parallel, schedules
from train_agent.trainers.dataset import Movable, Position
from train_agent.trainers.rewards.episodes import Episode
from train_agent.trainers.rewards.policy_losses import advantages

STUCK = 20              # steps in a row without anything to learn from: the run ends
SHOWN, TOLD = 3, 5      # groups that are put into the log at a time; rows without a score that are named
COUNTS = ("replies", "groups", "written", "reward", "success", "length", "cut", "solved", "hopeless", "skipped",
          "unscored", "policy_entropy")


@dataclass
class ReplyBatch(Movable):
    """Questions with their replies, documents lying one after the other; N ids. A reply is one target of targets_1, the
    ids that the model drew are targets_2; what tools gave is none.

    ids, positions, labels (1, N) int64, valid (1, N) bool. places (P,): where the labels lie, as nobody may ask a
    device for it. Of each label, 0 elsewhere, (N,): advantage, size of its reply, sampled, the sampler's log p, mask,
    which of masks (K, V) bool says what it was drawn from; old, reference: log p when it was sampled and of the start
    model, or None. told: sums for the log. general: a Batch of general rows that is learned beside them, or None.
    """
    ids: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor
    labels: torch.Tensor
    places: torch.Tensor
    layout: Segments
    advantage: torch.Tensor
    size: torch.Tensor
    sampled: torch.Tensor
    mask: torch.Tensor
    masks: torch.Tensor
    told: dict
    tokens: int
    targets_1: int
    targets_2: int
    position: Position = None
    old: torch.Tensor = None
    reference: torch.Tensor = None
    general: Movable = None


@dataclass
class Group:
    """One question's replies (Episodes), their verdicts, and advantages or None."""
    question: object
    item: int
    replies: list
    verdicts: list
    advantages: list = None

    @property
    def texts(self):
        return [reply.said for reply in self.replies]

    @property
    def successes(self):
        return sum(v.success for v in self.verdicts)


class Player:
    """One per Loop. What it remembers from step to step goes into .state: `state`, `restore`."""

    def __init__(self, stage, judge, speaker, log_p, reference=None, general=None):
        """log_p(model, batch) -> (N,); reference: the start model, where KL is on; general: data.replay.Beside."""
        self.stage, self.options, self.judge, self.log_p = stage, stage.options, judge, log_p
        self.speaker, self.reference, self.general = speaker, reference, general
        self.open, self.stuck = {}, 0                            # open: question -> its last group was of use
        self.count, self.seconds, self.problems = 0, 0.0, []

    def state(self):
        return {"open": [[int(k), bool(v)] for k, v in sorted(self.open.items())], "stuck": self.stuck}

    def restore(self, state):
        self.open, self.stuck = {k: v for k, v in state["open"]}, state["stuck"]

    # ---- a step ----

    def ready(self, loop, batches):
        """QuestionBatches of one step on this process -> ReplyBatches; told to the loop where nothing is left to
        learn."""
        begin = time.perf_counter()
        played = [self.play(loop.model, batch) for batch in batches]
        self.seconds += time.perf_counter() - begin
        groups = [group for one in played for group in one]
        self.count += sum(len(group.replies) for group in groups)
        self.remember(batches, played)
        made = [self.joined(batch, one).to(loop.device) for batch, one in zip(batches, played)]
        self.judged(loop, made)
        self.show(loop, groups)
        self.compare(loop, made)
        return made

    def play(self, model, batch):
        """-> Groups of a micro-batch; none where this process has no part in the step."""
        if batch.position is None:
            return []
        items = self.chosen(batch)
        asked = [self.stage.train.questions[i] for i in items]
        size = self.options["group_size"]
        seed = "/".join(map(str, (self.options["seed"], *batch.position)))
        each = [q for q in asked for _ in range(size)]
        replies = self.speaker.episodes(model, [(q.talk, q.ids) for q in each], self.options["max_new_tokens"],
                                        [f"{seed}/{i}" for i in range(len(each))], guard=False, scored=True,
                                        temperature=1.0)
        verdicts = self.judge.score([(reply.before, reply.said, q.row) for q, reply in zip(each, replies)])
        groups = []
        for n, (item, question) in enumerate(zip(items, asked)):
            own = slice(n * size, (n + 1) * size)
            group = Group(question, item, replies[own], verdicts[own])
            group.advantages = advantages(self.options["rl_loss"], [v.reward for v in group.verdicts])
            groups.append(group)
        return groups

    def chosen(self, batch):
        """The batch's questions, a share of them, and those of no use last time, exchanged for others from which there
        was something to learn when they were last asked."""
        share = self.options["curriculum"]
        pool = [item for item, use in sorted(self.open.items()) if use and item not in batch.items]
        if not pool or not share:
            return batch.items
        rng = random.Random("/".join(map(str, ("curriculum", self.options["seed"], *batch.position))))
        others = rng.sample(pool, min(len(pool), len(batch.items)))
        return [others.pop() if others and (rng.random() < share or self.open.get(item) is False) else item
                for item in batch.items]

    def remember(self, batches, played):
        """Which questions were of use. One that was exchanged because it had been of none is asked again the next time:
        else fewer and fewer would be left, asked again and again, and what is no longer asked would be forgotten."""
        news = []
        for batch, groups in zip(batches, played):
            asked = {group.item for group in groups}
            news += [(item, None) for item in batch.items if groups and item not in asked]
            news += [(group.item, group.advantages is not None) for group in groups]
        for item, use in [one for some in parallel.gathered(news) for one in some]:
            if use is not None:
                self.open[item] = use
            elif self.open.get(item) is False:
                del self.open[item]

    # ---- what is learned from ----

    def joined(self, batch, groups):
        """Groups of a micro-batch -> ReplyBatch: the documents of those that teach something. Without any, the first
        question alone, with nothing to learn."""
        parts = [(reply, a) for g in groups if g.advantages is not None
                 for reply, a in zip(g.replies, g.advantages) if a is not None and reply.places]
        question, masks = self.stage.train.questions[batch.items[0]], Masks(self.speaker.free)
        rows = [self.row(*part, masks) for part in parts] or [self.row(Episode([], question.ids), 0.0, masks)]
        flat = [torch.cat([row[name] for row in rows]) for name in range(7)]
        ids, positions, labels, advantage, size, sampled, mask = flat
        learned = sum(len(reply.places) for reply, _ in parts)
        return ReplyBatch(ids[None], positions[None], torch.full((1, len(ids)), bool(parts)), labels[None],
                          (labels >= 0).nonzero()[:, 0], Segments.from_lengths([len(row[0]) for row in rows]),
                          advantage, size, sampled, mask,
                          torch.stack(masks.different), told(groups, self.speaker.box), tokens=len(ids) * bool(parts),
                          targets_1=len(parts), targets_2=learned, position=batch.position,
                          general=self.general.batch(batch.position) if self.general and parts else None)

    def row(self, episode, advantage, masks):
        """One document up to the last id that was drawn -> ids, positions, labels, advantage, size, sampled log p,
        mask, each (T,). Labels are the drawn ids, each where it is predicted from."""
        places = torch.tensor(episode.places, dtype=torch.long)
        whole = torch.tensor(episode.ids[:episode.places[-1] + 1] if episode.places else episode.ids)
        size = len(whole) - bool(episode.places)
        labels, spread, mask = torch.full((size,), IGNORE), torch.zeros(3, size), torch.zeros(size, dtype=torch.long)
        labels[places - 1] = whole[places]
        spread[0, places - 1], spread[1, places - 1] = advantage, float(len(places))
        spread[2, places - 1] = torch.tensor(episode.log_p)
        mask[places - 1] = torch.tensor([masks.number(one) for one in episode.allowed], dtype=torch.long)
        return whole[:size], torch.arange(size), labels, *spread, mask

    def compare(self, loop, made):
        """Log p of the start model where KL is on, and of the weights as they are where they will change while the
        replies are used."""
        for batch in made:
            with torch.no_grad():
                if self.reference is not None:
                    batch.reference = self.log_p(self.reference.to(loop.device).eval(), batch)
                if self.options["rl_updates"] > 1:
                    was = loop.model.training
                    batch.old = self.log_p(loop.model.eval(), batch)
                    loop.model.train(was)

    # ---- what is said about it ----

    def judged(self, loop, made):
        """Count the steps without anything to learn from; end a run that has had too many of them."""
        useful = float(parallel.summed({"useful": float(sum(b.targets_1 for b in made))}, loop.device)["useful"])
        self.stuck = 0 if useful else self.stuck + 1
        if self.stuck < STUCK:
            return
        loop.finished = True
        sums = parallel.summed({k: sum(b.told[k] for b in made) for k in COUNTS}, loop.device)
        why = f"{why_stuck(sums, self.problems)}权重没有因此改变。"
        loop.journal.event("early_stop", step=loop.step + 1, text=why)
        if parallel.is_main():
            print(f"提前停止：连续 {STUCK} 步没有可学的。{why}", flush=True)

    def show(self, loop, groups):
        """Name rows without a score, and put a few groups into the log now and then."""
        for text in self.unscored(groups):
            loop.journal.event("warning", step=loop.step + 1, text=text)
            print(text, flush=True)
        every = schedules.every("eval_steps", self.options["eval_steps"] or "auto", loop.total_steps) or 1
        if loop.step % every == 0:
            for group in groups[:SHOWN]:
                rewards = [None if v.reward is None else round(v.reward, 4) for v in group.verdicts]
                lines = [f"[{'无' if r is None else format(r, 'g')}] {reply.shown()}"
                         for r, reply in zip(rewards, group.replies)]
                loop.journal.event("sample", step=loop.step + 1, prompt=group.question.talk[-1]["content"],
                                   reply="\n".join(lines), rewards=rewards)

    def unscored(self, groups):
        """Lines (Chinese) about replies without a score: each kind of problem once, TOLD at most."""
        lines = []
        for group in groups:
            problem = next((v.problem for v in group.verdicts if v.problem), None)
            if problem and len(self.problems) < TOLD and problem not in self.problems:
                self.problems.append(problem)
                lines.append(f"第 {group.question.number + 1} 行的回答没有得分，不算样本：{problem}")
        return lines

    def told(self):
        """Replies per second since it was last asked, of this process."""
        rate = self.count / self.seconds if self.seconds else 0.0
        self.count, self.seconds = 0, 0.0
        return {"replies_s": rate}


class Masks:
    """Different masks (V,) bool, numbered; None is the first of them."""

    def __init__(self, free):
        self.different, self.numbers = [free], {}

    def number(self, mask):
        if mask is None:
            return 0
        key = np.packbits(mask.numpy()).tobytes()
        if key not in self.numbers:
            self.numbers[key] = len(self.different)
            self.different.append(mask)
        return self.numbers[key]


def told(groups, box):
    """Sums over groups, for the log: COUNTS, and where there are tools, replies that call and calls that failed."""
    replies = [reply for group in groups for reply in group.replies]
    verdicts = [v for group in groups for v in group.verdicts]
    acted = {"called": sum(bool(r.used) for r in replies), "failed": sum(r.failures for r in replies)} if box else {}
    return {"replies": len(verdicts), "groups": len(groups), "written": sum(len(r.places) for r in replies),
            "reward": sum(v.reward or 0.0 for v in verdicts), "success": sum(v.success for v in verdicts),
            "length": sum(r.length for r in replies), "cut": sum(r.finish != "stop" for r in replies),
            "solved": sum(g.successes == len(g.verdicts) for g in groups),
            "hopeless": sum(not g.successes for g in groups), "skipped": sum(g.advantages is None for g in groups),
            "unscored": sum(v.reward is None for v in verdicts),
            "policy_entropy": -sum(sum(r.log_p) for r in replies), **acted}


def why_stuck(sums, problems):
    """Chinese, one or two sentences with the cure."""
    if sums["unscored"] >= sums["replies"]:
        return f"奖励函数没有给出分数（{'；'.join(problems) or '原因见上'}），请先修好它。"
    if sums["solved"] >= sums["groups"]:
        return "每个回答都已得满分：换更难的提问，或不用再训。"
    if sums["hopeless"] >= sums["groups"] and sums["reward"] <= 0:
        return "没有一个回答得分：先用 sft_train.py 教到偶尔能答对，或换容易的提问、宽松的奖励（contains、number）。"
    return "同一提问的各个回答得分都一样：奖励分不出好坏，请检查 reward。"
