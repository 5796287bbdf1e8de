"""--teacher: beside the data's own targets, head 1 learns the probabilities of a model of the same vocabulary."""

import sys
from pathlib import Path

from model.build import build
from tools.checkpoint import load_chain, weights_hash
from tools.errors import UserError
from tools.saving.start_files import start_name
from tools.vocab import Vocab
from train_agent.trainers import parallel
from train_agent.trainers.data.teacher_table import Lessons, open_table
from train_agent.trainers.hardware import machine
from train_agent.trainers.start_model import found_start


def take_vocab(options):
    """A student that starts from nothing, without a vocabulary yet, takes its teacher's."""
    path = Path(options["vocab_trg_path"])
    if options.get("teacher") and not path.exists():
        chain = teacher_chain(options, "pre")
        parallel.main_first(lambda: path.exists() or Vocab.from_state(chain[0]["vocab"]).save(path))


def learn_from_teacher(stage):
    """The same Stage; where its options name a teacher, every training batch also says what that would have said."""
    options = stage.options
    if not options.get("teacher"):
        return stage
    chain = teacher_chain(options, stage.name)
    check(stage, chain)
    try:
        teacher = build(chain).requires_grad_(False)
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"老师 {options['teacher']} 的权重和它写的结构对不上（{error}）。请换一个检查点。", 4) from None
    key = [weights_hash(payload["weights"]) for payload in chain]
    stage.about["starts"][start_name(options["teacher"])] = key[-1]
    stage.identity["老师"] = "+".join(one[:16] for one in key)
    device = machine.choose_device(options["device"])
    precision = "no" if device.type == "cpu" else machine.choose_precision("auto", device)
    lessons = Lessons(stage.train.cache, stage.train.ever(), options["max_len"], stage.train.truncate)
    stage.train.teacher = parallel.main_first(lambda: open_table(
        teacher, key, lessons, stage.model.config.vocab_size, options, device, precision, parallel.is_first_here(),
        lambda text: print(text, file=sys.stderr)))
    stage.notes["teacher"] = {"path": str(options["teacher"]), "hash": key[-1][:16], "head": 1}
    return stage


def teacher_chain(options, name):
    path = found_start(options, name, options["teacher"], "老师", "请检查 --teacher。")
    chain = load_chain(path)
    if chain[-1]["kind"] == "gate":
        raise UserError(f"{path} 是选择门，不能当老师。请指定一个模型或适配器。", 4)
    return chain


def check(stage, chain):
    """UserError 4 where these two cannot be teacher and student."""
    path, student, teacher = stage.options["teacher"], stage.model.config, chain[0]["config"]
    if chain[0]["vocab_hash"] != stage.about["vocab_hash"]:
        anew = "" if stage.about["starts"] else "（从零训练的学生用 --vocab_trg_path 换一个新文件，就用老师的词表）"
        raise UserError(f"老师 {path} 的词表和学生的不同，逐个词元的概率对不上。请用同一份词表的老师{anew}；或让老师写出回答再学："
                        f"python chat_agent/answer.py --model {path} --data 提问.jsonl --output answers.jsonl", 4)
    if student.counted or teacher.get("counted"):
        raise UserError("带计数的模型（counted）不能当老师，也不能当学生：它的概率里有数出来的部分。请用 --counted 0 的模型。", 4)
    if teacher.get("position") == "learned" and teacher["max_position"] < stage.options["max_len"]:
        raise UserError(f"老师只有 {teacher['max_position']} 个位置，比 max_len={stage.options['max_len']} 短。"
                        f"请用 --max_len {teacher['max_position']}。", 4)
