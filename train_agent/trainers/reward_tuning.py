"""Reinforcement learning from rewards that can be checked: the model answers each question several times, and what got
more reward than its group becomes likelier. The losses are in rewards/policy_losses.py, the replies in rewards/play.py.
"""

import copy
import sys
from functools import partial

import torch

from model.generate import generate_replies
from tools.demo_data import grade
from tools.errors import UserError
from tools.pictures.others import draw_rewards
from train_agent.trainers import parallel
from train_agent.trainers.build_stage import prepare_machine, speaking_start
from train_agent.trainers.data.own_questions import LONGEST, spread
from train_agent.trainers.losses import share_of_step
from train_agent.trainers.rewards.best import write_replies
from train_agent.trainers.rewards.judge import Judge
from train_agent.trainers.rewards.play import AT_ONCE, Player, Speech
from train_agent.trainers.rewards.policy_losses import entropies, k3, token_losses, token_weights
from train_agent.trainers.rewards.questions import QuestionBatch, QuestionData, Questions
from train_agent.trainers.run_stage import start
from train_agent.trainers.stage import Stage

SPARE = 16              # tokens a held-out reply may be longer than the longest right answer
REFUSED = ("find_lr", "find_batch", "overfit_one_batch", "check_gradients")


# ---- the loss ----

def read(model, batch):
    """-> log p of each label (N,), 0 elsewhere, and the model's output."""
    out = model(batch.ids, labels_1=batch.labels, positions=batch.positions, layout=batch.layout, valid=batch.valid,
                each=True)
    return -out.losses_1.flatten(), out


def log_p(model, batch):
    return read(model, batch)[0]


def reward_loss(options, model, batch, totals):
    """One micro-batch's share of a step: the policy's loss, KL and entropy where they are on, and the experts' balance
    as in every stage. Of questions that nobody has answered yet (held out): how many are answered wrongly."""
    if isinstance(batch, QuestionBatch):
        return examined(options["examine"], model, batch)
    now, out = read(model, batch)
    learned = (batch.labels.flatten() >= 0) & (batch.targets_1 > 0)
    old = now.detach() if batch.old is None else batch.old
    each, stopped = token_losses(options["rl_loss"], now, old, batch.advantage, options["clip_low"],
                                 options["clip_high"])
    sums = {"learned": learned.sum(), "clip_share": (stopped & learned).sum(),
            "ratio": ((now.detach() - old).exp() * learned).sum(),
            "gap": ((old - batch.sampled).abs() * learned).sum()}
    if batch.reference is not None:
        apart = k3(now, batch.reference)
        each = each + options["kl"] * apart
        sums["kl"] = (apart.detach() * learned).sum()
    if options["entropy_bonus"]:
        each = each - options["entropy_bonus"] * spread_out(model, out.hidden, learned)
    weights = token_weights(options["rl_loss"], batch.size.clamp_min(1), options["max_new_tokens"],
                            totals["targets_1"], totals["targets_2"])
    out.loss_sums = ((each * weights * learned).sum(),)
    loss, shared = share_of_step(out, batch, totals)
    return loss, shared | sums | batch.told


def spread_out(model, hidden, learned):
    """(N,) entropy of head 1 where something is learned, 0 elsewhere."""
    places = learned.nonzero()[:, 0]
    logits = getattr(model, "module", model).fc1(hidden.flatten(0, -2)[places])
    return torch.zeros(len(learned), dtype=logits.dtype, device=logits.device).index_copy(0, places, entropies(logits))


def examined(exam, model, batch):
    """Greedy replies to held-out questions -> (0, {"ce_1": wrong ones, "accuracy": right ones})."""
    questions = [exam.questions[i] for i in batch.items] if batch.targets_1 else []
    model = getattr(model, "module", model)
    replies = generate_replies(model, [q.ids for q in questions], exam.room, AT_ONCE, marks=exam.speech.marks)
    right = sum(any(grade(str(one), exam.speech.said(reply.ids)) for one in accepted(q.row["answer"]))
                for q, reply in zip(questions, replies))
    wrong = float(len(questions) - right)
    return torch.zeros(()), {"ce_1": torch.tensor(wrong), "accuracy": torch.tensor(float(right))}


def accepted(answer):
    return answer if isinstance(answer, list) else [answer]


class Exam:
    """What held-out questions are asked with."""

    def __init__(self, questions, vocab, acts, limit):
        self.questions, self.speech = questions, Speech(vocab, acts)
        longest = max((len(vocab.encode(str(one))) for q in questions for one in accepted(q.row["answer"])), default=0)
        self.room = limit if acts else min(limit, longest + SPARE)


# ---- the stage ----

def check(options):
    """UserError 2 for options that make no sense together."""
    if asked := [name for name in REFUSED if options[name]]:
        raise UserError(f"强化学习的每一批都是现取的，没有 --{asked[0]}。要先看看用 --dry_run。")
    if parallel.world() > 1 and options["distributed"] == "fsdp":
        raise UserError("强化学习要用完整的权重取样，不能用 --distributed fsdp：请用 ddp。")
    if options["rl_loss"] == "reinforce" and options["rl_updates"] > 1:
        raise UserError("rl_loss=reinforce 没有比率，同一批回答只能学一次：请用 --rl_updates 1，或换 grpo。")
    if options["max_new_tokens"] >= options["max_len"]:
        raise UserError(f"max_new_tokens={options['max_new_tokens']} 占满了 max_len={options['max_len']}，没有地方放提问。")


def build_stage(options):
    device = prepare_machine(options)
    check(options)
    judge = Judge(options)
    options, vocab, model, described, digest = speaking_start(
        "rl", options, device, "提问", '{"prompt": …, "answer": …}')
    if model.config.counted and options["entropy_bonus"]:
        raise UserError("带计数的模型没有 entropy_bonus：请设为 0。")
    questions = Questions.of(options, vocab)
    train = QuestionData(questions.training, options)
    held = {"held": QuestionData(questions.held, options, shuffle=False)} if questions.held else {}
    asked = [q.talk[-1]["content"] for q in questions.held or questions.training if len(q.talk) == 1]
    described["talk"]["prompts"] = spread([text for text in asked[:1000] if len(text) <= LONGEST])
    same = {"数据": questions.digest, "词表": vocab.hash[:16], "起点模型": digest[:16], **judge.identity()}
    exam = Exam(questions.held, vocab, described["talk"]["acts"], options["max_new_tokens"])
    loss = partial(reward_loss, {**options, "examine": exam})
    stage = Stage("rl", options, model, train, held, described, same, loss, updates=options["rl_updates"],
                  notes=questions.notes)
    reference = copy.deepcopy(model).requires_grad_(False) if options["kl"] else None
    stage.player = partial(Player, stage, judge, vocab, log_p, reference)
    return stage


def reward_train(config, **parameters):
    """Train on the options of the stage `rl`, `parameters` on top. Returns the last metrics; see Loop for exit
    codes."""
    options = {**config, **parameters}
    if options["write_best"] or options["write_pairs"]:
        return write_replies(build_stage(options))
    return start(build_stage, options, told)


def told(stage, metrics):
    """Say how well the held-out questions are answered -> metrics."""
    picture, words = draw_rewards(stage.options["log_dir"]), ""
    if "eval_accuracy" in metrics:
        words = f"留出的 {stage.notes['rows']['held']} 题答对 {metrics['eval_accuracy']:.1%}；"
    print(f"{words}奖励、成功率和回答长度的曲线：{picture}", file=sys.stderr)
    return metrics
