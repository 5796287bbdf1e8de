"""A few sentences from a run's own data, held-out ones where there are any: what a model of this world can be asked. A
model that learns all tasks of the built-in world is asked a plain, held-out question of several of them.

They travel in the checkpoint: the page suggests them, and during training the first ones show how the model learns to
answer. Beside them a small exam with its answers: the page lets a model sit it.
"""

import json
from pathlib import Path

import numpy as np

from model.sampling import RESERVED
from tools.template import END
from tools.vocab import Vocab

LOOKED_AT, KEPT = 96, 6         # documents that are read, sentences that are kept
EACH, EXAM = 2, 12              # questions of each task of the built-in world, of other data
LONGEST, OPENING = 24, 8        # characters of a question, of the beginning of a text
ANY = ("你好", "你是谁？")      # where a stage's data are not documents of ours


def own_questions(stage):
    """Up to KEPT different questions, or openings of texts to go on from; always the same ones for the same data."""
    if "prompts" not in stage.about.setdefault("talk", {}):
        stage.about["talk"]["prompts"] = _chosen(stage)
    return stage.about["talk"]["prompts"]


def _chosen(stage):
    return _plain(stage) or _of_data(stage)


def _plain(stage):
    """A short question of every so many tasks, in turn from both ends of their list: neighbours are alike."""
    asked = {}
    if str(stage.options.get("json_data_path")).endswith("demo_sft.jsonl"):
        for row in own_exam(stage):
            text = row["messages"][0]["content"]
            if row["task"] and len(row["messages"]) == 1 and len(text) <= LONGEST:
                asked.setdefault(row["task"], text)
    texts = list(asked.values())
    found = [texts[i] for i in np.linspace(0, len(texts) - 1, KEPT).astype(int)] if len(texts) >= KEPT else []
    return [text for pair in zip(found, found[::-1]) for text in pair][:len(found)]


def _of_data(stage):
    data = next(iter(stage.held.values()), stage.train)
    cache, documents, state = getattr(data, "cache", None), getattr(data, "documents", ()), stage.about.get("vocab")
    if cache is None or not len(documents) or not state:
        return list(ANY)
    vocab = Vocab.from_state(state)
    if vocab.dialogue:                                      # whose turns are found by other marks
        return list(ANY)
    read = opening if stage.options["training_mode"] == "pretraining" else first_question
    places = np.unique(np.linspace(0, len(documents) - 1, LOOKED_AT).astype(int))
    texts = [read(np.asarray(cache.document(documents[i])[0]), vocab) for i in places]
    return spread([text for text in texts if text]) or list(ANY)


def own_exam(stage):
    """Held-out questions with one right answer -> [{"task" ("" = no task's), "messages", "answer"}]."""
    talk = stage.about.setdefault("talk", {})
    if "exam" not in talk:
        paths = stage.options.get("json_data_path")
        path = Path(paths).with_name("demo_eval.jsonl") if isinstance(paths, str) else Path()
        built_in = isinstance(paths, str) and Path(paths).name.startswith("demo_") and path.is_file()
        completes = stage.options["training_mode"] == "pretraining"
        talk["exam"] = [] if completes else _of_tasks(path) if built_in else _of_own(stage)
    return talk["exam"]


def _of_tasks(path):
    """EACH questions of every task, spread over the file."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.setdefault(row["task"], []).append(row["conversations"])
    places = {task: np.linspace(0, len(found) - 1, EACH).astype(int) for task, found in rows.items()}
    return [{"task": task, "messages": found[i][:-1], "answer": found[i][-1]["content"]}
            for task, found in rows.items() for i in places[task]]


def _of_own(stage):
    """Questions and replies of the held-out conversations, where there are any."""
    data, state = next(iter(stage.held.values()), None), stage.about.get("vocab")
    if getattr(data, "cache", None) is None or not state or not len(data.documents):
        return []
    vocab, found = Vocab.from_state(state), []
    if vocab.dialogue:                                      # as in _chosen
        return []
    for i in np.unique(np.linspace(0, len(data.documents) - 1, LOOKED_AT).astype(int)):
        ids = np.asarray(data.cache.document(data.documents[i])[0])
        question, turns = first_question(ids, vocab), np.flatnonzero(ids == vocab.id("Assistant"))
        ends = np.flatnonzero(ids == vocab.id(END))
        if question and len(turns) == 1 and len(ends) and ends[-1] > turns[0] and not (
                ids[turns[0] + 1:ends[-1]] < RESERVED).any():
            answer = vocab.decode(ids[turns[0] + 2:ends[-1]].tolist())
            found.append({"task": "", "messages": [{"role": "user", "content": question}], "answer": answer})
    return found[:EXAM]


def first_question(ids, vocab):
    """ids (T,) of a conversation -> what the user says first, None where that is not short and plain, or asked
    of somebody with tools."""
    roles = [vocab.id(name) for name in ("User", "Assistant", "System")]
    turns = np.flatnonzero(np.isin(ids, roles))
    if len(turns) < 2 or ids[turns[0]] != roles[0] or vocab.id("Tools") in ids[:turns[0]]:
        return None
    text = vocab.decode(ids[turns[0] + 2:turns[1]].tolist()).strip()        # behind the role and its colon
    return text if 0 < len(text) <= LONGEST and text.isprintable() else None


def opening(ids, vocab):
    """ids (T,) of a text -> its first characters, up to the first stop."""
    begin = ids[:4 * OPENING + 1]  # enough, also where a character is four bytes
    text = vocab.decode(begin[begin >= RESERVED].tolist()).strip()[:OPENING]
    ends = [i for i, c in enumerate(text) if i > 2 and not c.isalnum()]
    text = text[:ends[0]] if ends else text
    return text if len(text) > 1 and text.isprintable() else None


def spread(texts):
    """KEPT of them that begin and end differently, as far as there are such; then the others."""
    chosen, seen = [], set()
    for wary in (True, False):
        for text in dict.fromkeys(texts):
            kind = text[:2], text[-3:]
            if len(chosen) < KEPT and text not in chosen and not (wary and seen & set(kind)):
                chosen.append(text)
                seen.update(kind)
    return chosen
