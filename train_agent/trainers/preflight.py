"""Before a run: does everything fit, is the first loss right, is there memory, how long will it take. Nothing is
changed by it.

A few real optimizer steps are taken on a copy of the model, which is then forgotten; weights, gradients and random
states stay.
"""

import math

import numpy as np
import torch

from tools.config.keys import STAGE_TITLES
from tools.errors import UserError
from tools.template import openings
from tools.vocab import Vocab
from train_agent.trainers import parallel, schedules
from train_agent.trainers.running import resume
from train_agent.trainers.data import count_ngrams
from train_agent.trainers.dataset import Position, loader
from train_agent.trainers.hardware.ram import memory_there
from train_agent.trainers.trying.step_time import measure
from train_agent.trainers.data.split import announced

SAVE_RATE = 200e6                       # bytes per second of a checkpoint written, flushed, hashed and read back
SEEN = 8                                # documents whose beginning is looked at
LEAKY = 3                               # times as much held-out as training data is new to tables that leak
SPARE = 0.8                             # share of the memory there that a run may plan with
ADAM_STATES = {"adam": 2, "adamw": 2, "muon": 1.5, "sgd": 0}
PARTS = (("embed", "词向量"), ("place", "位置"), ("fc", "输出头"), ("attention", "注意力"), ("router", "路由"),
         ("mlp.shared", "共享专家"),
         ("mlp.up$", "路由专家"), ("mlp.down$", "路由专家"), ("mlp", "前馈"), ("norm", "归一化"))


def preflight(stage, seconds=5.0, done=0, say=print, share=1.0):
    """Check and measure `stage` for about `seconds`, and for at most that share of its steps. done: steps a resumed run
    has behind it.
    say: where the lines go, or None.

    -> dict with checks, parameters, first_loss, memory, seconds_per_step, steps, seconds_left, suggestion. UserError 4
    when vocabulary, data and model do not fit.
    """
    before = resume.random_states()
    try:
        group = next(iter(loader(stage.train, Position(), {**stage.options, "num_workers": 0}, torch.device("cpu"),
                                 parallel.rank(), parallel.world())))[0]
        result = {"stage": stage.name, "checks": fit(stage, group), "parameters": parameters(stage)}
        measured = measure(stage, seconds, share)
    finally:
        resume.restore_random_states(before)
    if stage.name == "dpo":
        result["first_loss"] = first_preference(measured["metrics"], done)
    elif stage.name == "rl":
        result["first_loss"] = first_policy(measured["metrics"])
    else:
        gate = stage.about["kind"] == "gate"
        choices = len(stage.about["adapter"]["experts"]) if gate else stage.about["config"]["vocab_size"]
        fresh, tables = done == 0 and not from_weights(stage), count_ngrams.recall(stage, group)
        result["first_loss"] = first_loss(measured["metrics"], choices, fresh, tables)
    result["memory"] = memory(stage, measured)
    result |= time_left(stage, measured, result["parameters"], done)
    result["suggestion"] = suggestion(stage, result)
    for line in lines(result) if say and parallel.is_main() else ():
        say(line)
    return result


def brief(result):
    """What the log keeps of a preflight: journal.event("preflight", **brief(result))."""
    return {"first_loss": result["first_loss"]["text"], "seconds_per_step": result["seconds_per_step"],
            "steps": result["steps"],
            "seconds_left": result["seconds_left"], "memory_needed": result["memory"]["needed"],
            "memory_there": result["memory"]["there"],
            "parameters": result["parameters"]["total"], "active": result["parameters"]["active"]}


def from_weights(stage):
    """Does the stage start from trained weights, or from counted pairs?"""
    return bool(stage.begin or stage.options.get("init_from") or stage.options.get("pretraining_model_path"))


# ---------------------------------------------------------------- what fits

def fit(stage, group):
    """Vocabulary, model and template against the first micro-batches. -> list of Chinese lines. UserError 4."""
    rows, found = stage.about["config"]["vocab_size"], []
    highest = max(int(batch.ids.max()) for batch in group)
    if highest >= rows:
        raise UserError(f"数据里有编号 {highest}，而模型只有 {rows} 个：词表和模型不配。请用训练这个模型时的词表，或删掉 cache_dir 重建缓存。", 4)
    if stage.about.get("vocab"):
        vocab = Vocab.from_state(stage.about["vocab"])
        if len(vocab) > rows or stage.about.get("vocab_hash") not in (None, vocab.hash):
            raise UserError(f"词表有 {len(vocab)} 项，模型的词向量有 {rows} 行，对不上。请换回原来的词表。", 4)
        found.append(f"词表 {len(vocab)} 项，和模型一致（{vocab.hash[:8]}）")
        if hasattr(stage.train, "cache") and all(hasattr(batch, "positions") for batch in group):
            found.append(template_line(vocab, stage.train, group))
    targets, tokens = (sum(getattr(b, k) for b in group) for k in ("targets_1", "tokens"))
    unit = {"dpo": "对回答", "gate": "个样本", "rl": "个提问"}.get(stage.name)               # there a target is no token
    learned = f"共 {targets} {unit}" if unit else f"其中 {100 * targets / max(1, tokens):.0f} % 计入损失"
    found.append("，".join(filter(None, [announced(stage), f"第一步 {tokens} 个词元", learned])))
    return found


def template_line(vocab, data, group):
    """Every document must open with the end marker, as the template renders it. (Rows need not: a long document fills
    several.)"""
    starts, _ = data.cache.bounds(data.documents[:SEEN])
    opens, _ = data.cache.split(np.asarray(data.cache.tokens[starts]))
    if not np.isin(opens, list(openings(vocab))).all():
        raise UserError("训练数据不是按现在的对话模板切分的。请删掉 cache_dir 里的缓存后重试。", 4)
    if vocab.dialogue:
        return "模板一致"
    roles = sum(int(torch.isin(batch.ids, torch.tensor([vocab.id("User"), vocab.id("Assistant")])).sum())
                for batch in group)
    return "模板一致，" + (f"第一步里有 {roles} 个角色标记" if roles else "纯文本，没有角色标记")


def parameters(stage):
    """{"total", "active" (a token's share of the routed experts), "trainable", "parts": {Chinese name: count}}"""
    parts, routed, total, trainable = {}, 0, 0, 0
    for name, parameter in stage.model.named_parameters():
        part = next((title for key, title in PARTS if key in f"{name}$"), "适配器")
        parts[part] = parts.get(part, 0) + parameter.numel()
        routed += parameter.numel() if part == "路由专家" else 0
        total += parameter.numel()
        trainable += parameter.numel() if parameter.requires_grad else 0
    shape = stage.about["config"]
    idle = routed * (1 - shape["keep"] / shape["other_experts"]) if routed else 0
    return {"total": total, "active": round(total - idle), "trainable": trainable, "parts": parts}


# ---------------------------------------------------------------- what the numbers mean

def first_loss(metrics, choices, fresh, tables=None):
    """The first cross-entropies beside ln V, the loss of a guess among V words. level: ok | warn

    tables: of a model that counts, what its tables know of the first batch and of the held-out data, see `recall`.
    """
    guess, ce = math.log(choices), metrics.get("ce_1")
    found = {"ce_1": ce, "ce_2": metrics.get("ce_2"), "loss": metrics.get("loss"), "ln_vocab": guess, "level": "ok"}
    if ce is None:
        return {**found, "text": f"第一个损失 {metrics.get('loss', math.nan):.3f}"}
    if not math.isfinite(ce):
        found["level"], why = "warn", "不是有限数：请检查起点模型，或改用 --mixed_precision no"
    elif ce > guess + 0.5:
        found["level"], why = "warn", "比随机猜测还差：起点模型和这批数据或词表可能不配" if not fresh else "比随机猜测还差：init_std 可能太大"
    elif tables and tables["held"] is not None and 1 - tables["held"] > LEAKY * (1 - tables["train"]) + 0.02:
        found["level"], why = "warn", (f"计数表认得这批训练数据的 {tables['train']:.0%}，留出数据只有 {tables['held']:.0%}："
                                       "同样的文字多半换了分段数过一遍，或数据里重复很多，模型会盲信计数表。请去重，"
                                       "或从没数过这些文字的模型开始")
    elif fresh and tables and ce < guess - 1:
        why = "正常：网络还没学过，比随机猜测好的部分来自计数表（每个目标先从表里去掉了自己）"
    elif fresh and ce < guess - 1:
        found["level"], why = "warn", "没学过却比随机猜测好得多：答案可能泄漏给了模型，请检查数据和 max_len"
    elif fresh:
        why = f"正常：还什么都没学，等于在 {choices} 项里随机猜测"
    else:
        why = "比随机猜测好，起点模型（或词对计数）已经学过" if ce < guess - 0.3 else "和随机猜测差不多，起点模型对这批数据没有帮助"
    heads = f"{ce:.3f}" + (f" / {found['ce_2']:.3f}（第二个头）" if found["ce_2"] is not None else "")
    return {**found, "text": f"第一个损失 {heads}，随机猜测是 ln {choices} = {guess:.3f}。{why}"}


def first_preference(metrics, done):
    """Of a DPO stage: the model is still its own reference, so the first loss is ln 2 whatever it knows."""
    loss, level, even = metrics["ce_1"], "ok", math.log(2)
    if done:
        why = "起点是 ln 2，越低越分得清"
    elif abs(loss - even) < 0.1:
        why = "正常：模型和参考还一样，两个回答各一半"
    else:
        level, why = "warn", "应正好是 ln 2：起点模型和参考模型可能不是同一个，可删掉 cache_dir 里的 dpo_*.npy 重来"
    return {"ce_1": loss, "ce_2": None, "loss": metrics.get("loss"), "ln_vocab": even, "level": level,
            "text": f"第一个损失 {loss:.3f}，ln 2 = {even:.3f}。{why}"}


def first_policy(metrics):
    """Of a reward stage: the loss says nothing, what the model earns does."""
    earned, skipped, lost = (metrics.get(name, 0.0) for name in ("success", "skipped", "unscored"))
    text = f"取样的回答答对 {earned:.0%}，全对的题 {metrics.get('solved', 0.0):.0%}，全错的题 {metrics.get('hopeless', 0.0):.0%}。"
    if lost:
        level, why = "warn", f"奖励函数没有给 {lost:.0%} 的回答打分，原因见上"
    elif skipped == 1:
        level, why = "warn", "每题的几个回答得分都一样，学不到什么：请换提问或奖励"
    else:
        level, why = "ok", "正常：有高有低才有得学"
    return {"ce_1": metrics["ce_1"], "ce_2": None, "loss": metrics.get("loss"), "ln_vocab": None, "level": level,
            "text": text + why}


def memory(stage, measured):
    """Bytes a run needs and bytes that are there, on the device that trains. -> dict; needed = fixed + batch"""
    size = sum(p.numel() * p.element_size() for p in stage.model.parameters())
    learning = sum(p.numel() for p in stage.model.parameters() if p.requires_grad)
    fixed = size + 4 * learning * (1 + ADAM_STATES[stage.options["optimizer"]])
    batch = max(measured["saved"], (measured["peak"] or 0) - fixed)
    return {"fixed": round(fixed), "batch": batch, "needed": round(fixed + batch),
            "there": memory_there(measured["device"])}


def time_left(stage, measured, parameters, done):
    """Seconds of the steps to come, with their evaluations and saves."""
    options, steps = stage.options, max(0, measured["total_steps"] - done)
    group = options["accumulation_steps"] * parallel.world()
    training = steps * measured["step"]
    every = schedules.every("eval_steps", options["eval_steps"], measured["total_steps"])
    rounds = (steps // every if every else 0) + 1
    saves = (steps // options["save_steps"] if options["save_steps"] else 0) + 1
    evaluating = rounds * measured["forward"] if stage.held else 0.0
    saving = saves * 4 * (parameters["total"] + 2 * parameters["trainable"]) / SAVE_RATE
    tokens = stage.train.width * stage.train.batch_size * group / max(1e-9, measured["step"])
    return {"seconds_per_step": measured["step"], "steps": steps, "total_steps": measured["total_steps"],
            "seconds_left": training + evaluating + saving,
            "seconds": {"training": training, "evaluating": evaluating, "saving": saving}, "tokens_per_second": tokens,
            "device": str(measured["device"]), "precision": measured["precision"]}


def suggestion(stage, result):
    """Micro-batch and accumulation that fit and keep the rows of a step, with the reason in Chinese."""
    batch, steps = stage.options["batch_size"], stage.options["accumulation_steps"]
    memory, notes = result["memory"], []
    per_row = max(1, memory["batch"] / batch)
    room = None if memory["there"] is None else SPARE * memory["there"] - memory["fixed"]
    best = batch
    if room is not None and memory["needed"] > SPARE * memory["there"]:
        best = max([b for b in divisors(batch * steps) if b * per_row <= room] or [1])
        notes.append("内存不够" if best * per_row <= room else "一行也放不下：请减小 max_len 或模型，或加上 --gradient_checkpointing")
    elif room is not None and result["device"].startswith("cuda"):
        best = max([b for b in divisors(batch * steps) if b * per_row <= room] or [batch])
        notes += ["显存有余，大一点的微批更快"] if best > batch else []
    total = result.get("total_steps", result["steps"])
    if total < 50 and total != stage.options["max_steps"]:             # else it is what was asked for
        smaller = f"，或减小 {'accumulation_steps' if steps > 1 else 'batch_size'}" if batch * steps > 1 else ""
        notes.append(f"总共只有 {total} 步，偏少：可加大 max_epochs{smaller}")
    return {"batch_size": best, "accumulation_steps": batch * steps // best, "text": "；".join(notes),
            "changed": best != batch}


def divisors(n):
    return [k for k in range(1, n + 1) if n % k == 0]


# ---------------------------------------------------------------- the printed form

def lines(result):
    """Generator of the Chinese lines."""
    p, m, s = result["parameters"], result["memory"], result["suggestion"]
    yield f"训练前检查（{STAGE_TITLES.get(result['stage'], result['stage'])}）"
    for check in result["checks"]:
        yield f"  ✓ {check}"
    yield (f"  ✓ 参数 {short(p['total'])}，每个词元激活 {short(p['active'])}，可训练 {short(p['trainable'])}："
           + "，".join(f"{name} {short(count)}"
                      for name, count in sorted(p["parts"].items(), key=lambda item: -item[1])))
    yield f"  {'✓' if result['first_loss']['level'] == 'ok' else '⚠'} {result['first_loss']['text']}"
    there = "" if m["there"] is None else f"，可用 {gigabytes(m['there'])}"
    enough = m["there"] is None or m["needed"] <= SPARE * m["there"]
    yield (f"  {'✓' if enough else '⚠'} 约需内存 {gigabytes(m['needed'])}"
           f"（权重、梯度、优化器 {gigabytes(m['fixed'])}，激活 {gigabytes(m['batch'])}）{there}")
    yield (f"  ✓ {result['device']}，精度 {result['precision']}，实测 {result['seconds_per_step']:.3g} 秒一步"
           f"（每秒约 {result['tokens_per_second']:,.0f} 词元），{result['steps']} 步约需 {clock(result['seconds_left'])}")
    if s["changed"]:
        yield f"  建议 --batch_size {s['batch_size']} --accumulation_steps {s['accumulation_steps']}（{s['text']}）"
    elif s["text"]:
        yield f"  ⚠ {s['text']}"
    else:
        yield f"  ✓ --batch_size {s['batch_size']} --accumulation_steps {s['accumulation_steps']} 现在这样就好"


def short(count):
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g} {letter}"
    return f"{count / 1e3:.3g} k"


def gigabytes(count):
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def clock(seconds):
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} 小时 {minutes} 分" if hours else f"{minutes} 分 {rest} 秒" if minutes else f"{rest} 秒"
