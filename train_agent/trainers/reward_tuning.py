"""Reinforcement learning from rewards that can be checked: the model answers each question several times, and what got
more reward than its group becomes likelier. The losses are in rewards/policy_losses.py, the replies in rewards/play.py.
"""

import copy
import hashlib
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from model.kernels.cross_entropy import chunk_size
from tools.acting.forms import Form, names_of, offered_of
from tools.acting.schema import SchemaError
from tools.acting.toolbox import toolbox
from tools.checkup.clean import check_target
from tools.errors import UserError
from tools.pictures.others import draw_rewards
from train_agent.trainers import parallel
from train_agent.trainers.build_stage import cached, prepare_machine, speaking_start
from train_agent.trainers.data.own_questions import LONGEST, spread
from train_agent.trainers.data.replay import Beside
from train_agent.trainers.losses import next_tokens_loss, share_of_step
from train_agent.trainers.rewards.best import write_replies
from train_agent.trainers.rewards.judge import Judge
from train_agent.trainers.rewards.episodes import Speaker
from train_agent.trainers.rewards.named import answers_of, exact
from train_agent.trainers.rewards.play import Player
from train_agent.trainers.rewards.policy_losses import entropies, k3, token_losses, token_weights
from train_agent.trainers.rewards.questions import QuestionBatch, QuestionData, Questions
from train_agent.trainers.run_stage import start
from train_agent.trainers.stage import Stage

SPARE = 16              # tokens a held-out reply may be longer than the longest right answer
REFUSED = ("find_lr", "find_batch", "overfit_one_batch", "check_gradients")


# ---- the loss ----

def read(model, batch, spread_out=False):
    """-> log p of each label (N,), 0 elsewhere, in the distribution that it was drawn from, over what was allowed
    there; the entropies (N,) of these distributions, or None; the model's output."""
    head = getattr(model, "module", model).fc1
    counted = type(head) is not torch.nn.Linear            # such a head reads more than hidden states
    out = model(batch.ids, positions=batch.positions, layout=batch.layout, valid=batch.valid, return_logits=counted)
    labels, places, found = batch.labels.flatten(), batch.places, []
    states = (out.logits_1 if counted else out.hidden).flatten(0, -2)
    for part in places.split(chunk_size(places.device)):
        logits = states[part] if counted else head(states[part])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits.masked_fill(~batch.masks[batch.mask[part]], float("-inf"))
        own = logits.log_softmax(-1).gather(1, labels[part, None])[:, 0]
        found.append(torch.stack([own, entropies(logits)] if spread_out else [own]))
    each = torch.cat(found, 1)
    whole = each.new_zeros(len(each), len(labels)).index_copy(1, places, each)
    return whole[0], whole[1] if spread_out else None, out


def log_p(model, batch):
    return read(model, batch)[0]


def reward_loss(options, model, batch, totals):
    """One micro-batch's share of a step: the policy's loss, KL and entropy where they are on, and the experts' balance
    as in every stage. Of questions that nobody has answered yet (held out): how many are answered wrongly."""
    if isinstance(batch, QuestionBatch):
        return examined(options["examine"], model, batch)
    now, entropy, out = read(model, batch, bool(options["entropy_bonus"]))
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
        each = each - options["entropy_bonus"] * entropy
    weights = token_weights(options["rl_loss"], batch.size.clamp_min(1), options["max_new_tokens"],
                            totals["targets_1"], totals["targets_2"])
    out.loss_sums = ((each * weights * learned).sum(),)
    loss, shared = share_of_step(out, batch, totals)
    if batch.general is not None:
        extra = options["replay_weight"] * replayed(model, batch.general)
        loss, sums["replay"] = loss + extra * (batch.tokens / totals["tokens"]), extra.detach() * batch.tokens
    return loss, shared | sums | batch.told


def replayed(model, general):
    """The loss of SFT on general rows: with it what no question asks for is not unlearned (InstructGPT's "PPO-ptx",
    arXiv:2203.02155)."""
    return next_tokens_loss(model, general, {k: getattr(general, k) for k in ("targets_1", "targets_2", "tokens")})[0]


def examined(exam, model, batch):
    """Greedy replies to held-out questions -> (0, {"ce_1": wrong ones, "accuracy": right ones})."""
    questions = [exam.questions[i] for i in batch.items] if batch.targets_1 else []
    model = getattr(model, "module", model)
    replies = exam.speaker.episodes(model, [(q.talk, q.ids) for q in questions], exam.room)
    right = sum(exact(q.talk, reply.said, q.row, {}) for q, reply in zip(questions, replies))
    wrong = float(len(questions) - right)
    return torch.zeros(()), {"ce_1": torch.tensor(wrong), "accuracy": torch.tensor(float(right))}


class Exam:
    """What held-out questions are asked with."""

    def __init__(self, questions, speaker, limit):
        self.questions, self.speaker = questions, speaker
        longest = max((len(speaker.vocab.encode(one)) for q in questions for one in answers_of(q.row)), default=0)
        self.room = limit if speaker.acts else min(limit, longest + SPARE)


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
    targets = [key for key in ("write_best", "write_pairs") if options[key]]
    for key in targets:
        check_target(options[key], f"--{key}")
    if len(targets) > 1 and Path(options["write_best"]).resolve() == Path(options["write_pairs"]).resolve():
        raise UserError("--write_best 和 --write_pairs 是同一个文件：请写成两个。")


def scorable(questions, judge):
    """The Questions without those for which a named reward finds nothing in the row to judge by, which is said.
    UserError 2 where that are all."""
    good, lacking, why = judge.usable(questions.training)
    if not good:
        raise UserError(f"奖励没有一行能打分（{why}）。请在数据里补上，或换一个 --reward。")
    if lacking and parallel.is_main():
        print(f"{lacking} 题没法打分，不拿来学（{why}）。", file=sys.stderr)
    return replace(questions, training=good, notes={**questions.notes, "rows": {
        **questions.notes["rows"], "train": len(good), "skipped": questions.notes["rows"]["skipped"] + lacking}})


def tools_of(options, acts):
    """-> the Toolbox of --tools or None, and what a resume has to find unchanged of it. UserError 2."""
    words = options["tools"]
    if words is None:
        return None, {}
    if "calls" not in acts:
        raise UserError("起点模型没有学过用工具，--tools 用不上。请先用带工具调用的数据做 SFT，见 docs/tools.md。")
    if options["write_pairs"]:
        raise UserError("--write_pairs 写不下工具的调用：请去掉 --tools，或用 --write_best。")
    words = words if isinstance(words, list) else [words]
    box, kept = toolbox(words), hashlib.sha256()
    kept.update(box.offered.encode())
    for path in filter(Path.is_file, map(Path, words)):
        kept.update(path.read_bytes())
    return box, {"工具": kept.hexdigest()[:16]}


def check_offers(questions, box):
    """UserError 2 where rows offer tools that are not there, or that nobody can call."""
    offers = {offered_of(q.talk) for q in (*questions.training, *questions.held)}
    try:
        [Form(text).unheld for text in offers]
    except SchemaError as error:
        raise UserError(f"数据里工具的定义用不了：{error}。") from None
    if missing := sorted(set().union(*map(names_of, offers)) - set(box.tools)):
        raise UserError(f"数据里给了模型这些工具：{'、'.join(missing)}，--tools 里没有。请加上，如 --tools all 价目表.jsonl。")


def general_rows(options, vocab):
    """-> data.replay.Beside, or None where none are wanted. UserError 2 where they are not named."""
    if not options["replay_weight"]:
        return None
    if not options["replay_data_path"]:
        raise UserError("replay_weight 大于 0，却没有通用数据：请用 --replay_data_path 指定，或去掉 --replay_weight。")
    return Beside(cached(options, vocab, options["replay_data_path"]), options)


def build_stage(options):
    device = prepare_machine(options)
    check(options)
    judge = Judge(options)
    options, vocab, model, described, digest = speaking_start(
        "rl", options, device, "提问", '{"prompt": …, "answer": …}')
    box, used = tools_of(options, described["talk"]["acts"])
    questions = scorable(Questions.of(options, vocab, box), judge)
    if box:
        check_offers(questions, box)
    train = QuestionData(questions.training, options)
    held = {"held": QuestionData(questions.held, options, shuffle=False)} if questions.held else {}
    asked = [q.talk[-1]["content"] for q in questions.held or questions.training if len(q.talk) == 1]
    general = general_rows(options, vocab)
    described["talk"]["prompts"] = spread([text for text in asked[:1000] if len(text) <= LONGEST])
    same = {"数据": questions.digest, "词表": vocab.hash[:16], "起点模型": digest[:16], **judge.identity(), **used,
            **(general.identity if general else {})}
    speaker = Speaker(vocab, described["talk"]["acts"], model.config.vocab_size, options["max_len"], box)
    exam = Exam(questions.held, speaker, options["max_new_tokens"])
    loss = partial(reward_loss, {**options, "examine": exam})
    stage = Stage("rl", options, model, train, held, described, same, loss, updates=options["rl_updates"],
                  notes=questions.notes)
    reference = copy.deepcopy(model).requires_grad_(False) if options["kl"] else None
    stage.player = partial(Player, stage, judge, speaker, log_p, reference, general)
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
