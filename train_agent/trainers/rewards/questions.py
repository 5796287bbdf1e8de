"""Rows of a reward training: a question, and what its reply is judged by. Read into memory, they are few.

A row is {"prompt" | "conversations" | any other shape of dialogue, "answer": optional, and whatever a reward looks at}.
Without "answer" the last reply of the conversation is the answer.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tools import formats
from tools.acting.forms import offered_of
from tools.errors import UserError
from tools.reading.held_out import held_every
from tools.reading.hub import local_files
from tools.reading.questions import parse_question
from tools.template import render_prompt
from train_agent.trainers import parallel
from train_agent.trainers.data.token_cache import file_digest
from train_agent.trainers.dataset import NOTHING, ItemData, Movable, Position
from train_agent.trainers.rewards.tool_result import calls_of

SHORT = "提问加上 max_new_tokens 超过了 max_len"


@dataclass
class Question:
    """talk: messages up to the question; row: the data row, its answer filled in; number: the data row, from 0."""
    talk: list
    row: dict
    number: int
    ids: list = field(default_factory=list)

    @property
    def answered(self):
        return self.row.get("answer") is not None


@dataclass
class QuestionBatch(Movable):
    """What the loader hands out: which questions are asked next. ids (N,): their prompts, one after the other."""
    ids: torch.Tensor
    items: list
    tokens: int
    targets_1: int
    targets_2: int = 0
    position: Position = None


def read_question(raw, fields, number, box=None):
    """One line's bytes -> Question, or why it is none (Chinese str). With a box of tools the question ends where the
    user last spoke: what was called then is what the row wants, `calls`, and the box is on offer where no tools are."""
    found = parse_question(raw, fields)
    if isinstance(found, str):
        return found
    messages, row = found[0].messages, found[1]
    end = max((i + 1 for i, m in enumerate(messages) if m["role"] == "user"), default=0)
    if box is None or not end:
        return Question(messages[:-1], row, number)
    offered = [] if offered_of(messages) else [{"role": "tools", "content": box.offered}]
    return Question(offered + messages[:end], {"calls": calls_of(messages[end:]), **row}, number)


def read_questions(options, paths, vocab, box=None):
    """-> questions that fit into max_len, how many rows were left out for that, how many were bad, digests of the
    files. UserError 8 where nothing is left."""
    files = formats.expand_paths(local_files(paths, options))
    bad = formats.BadLines(Path(options["log_dir"]) / "bad_lines.jsonl" if parallel.is_main() else None,
                           options["max_bad_share"])
    found, number, fields = [], 0, formats.fields_of(options)
    for path in files:
        for line, raw in formats.iter_lines(path):
            one = read_question(raw, fields, number, box) if not isinstance(raw, formats.Unreadable) else raw.reason
            number += 1
            bad.add(path, line, one, raw) if isinstance(one, str) else found.append(one)
    bad.check(number)
    room = options["max_len"] - options["max_new_tokens"]
    for one in found:
        one.ids = render_prompt(one.talk, vocab)
    fitting = [one for one in found if len(one.ids) <= room]
    if not fitting:
        raise UserError(f"{files[0]} 里没有一条可用的提问" + (f"：{SHORT}。" if found else "。"), 8)
    if len(fitting) < len(found) and parallel.is_main():
        print(f"{len(found) - len(fitting)} 行跳过：{SHORT}。可加大 --max_len，或减小 --max_new_tokens。", file=sys.stderr)
    digests = [file_digest(path, options["cache_dir"]) for path in files]
    return fitting, len(found) - len(fitting), bad.count, digests


@dataclass
class Questions:
    """What a run asks, and what it is examined with: never the same rows."""
    training: list
    held: list
    notes: dict
    digest: str

    @classmethod
    def of(cls, options, vocab, box=None):
        """UserError 8 as in `read_questions`. Held out are rows that have an answer: there is nothing else to hold a
        reply against."""
        found, long, bad, digests = read_questions(options, options["json_data_path"], vocab, box)
        if options["eval_data_path"]:
            training = found
            held = [q for q in read_questions(options, options["eval_data_path"], vocab, box)[0] if q.answered]
        else:
            every = held_every(options["eval_share"], len(found))
            held = [q for q in found if every and q.number % every == 0 and q.answered]
            kept = {q.number for q in held}
            training = [q for q in found if q.number not in kept] or found
            held = held if len(training) < len(found) else []
        notes = {"rows": {"train": len(training), "held": len(held), "skipped": long, "bad": bad}}
        return cls(training, held, notes, "+".join(d[:16] for d in digests))


class QuestionData(ItemData):
    """Questions, batch_size of them in a batch, in an order of each epoch's own."""

    def __init__(self, questions, options, shuffle=True):
        super().__init__(None, np.arange(len(questions)), options, truncate=True, shuffle=shuffle)
        self.questions = questions

    def batch(self, position):
        items = [int(i) for i in self.items(position)]
        ids = torch.tensor([i for q in items for i in self.questions[q].ids])
        made = QuestionBatch(ids, items, tokens=len(ids), targets_1=len(items), position=position)
        return made.blank() if position.batch == NOTHING else made

    def source_rows(self, position):
        return sorted(self.questions[int(i)].number for i in self.items(position))
