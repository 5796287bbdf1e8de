"""Three ways to put a number on a model: bits per character, exact answers, multiple choice by likelihood.

All three look at head 1 alone and leave the model as they found it. Likelihoods are computed packed: documents lie one
after the other in a flat batch, so that a thousand short dialogues cost as much as one long text.
"""
import math
import sys

import numpy as np
import torch
from tqdm import tqdm

from chat_agent.evaluation import rows as eval_data
from chat_agent.evaluation.tool_use import tool_scores
from model.kernels.cross_entropy import IGNORE, target_losses
from model.kernels.ngram_head import orders_held
from model.generate import evaluating, generate_replies
from model.segments import Segments
from tools import template
from tools.acting.spoken import heard
from tools.demo_data import chance, graded, refused
from tools.errors import UserError
from tools.formats import Row
from tools.process.device import DTYPES

WINDOW = 512            # tokens a model sees at once where nobody says otherwise
BATCH_TOKENS = 8192     # tokens of one forward pass
BLOCK_ROWS = 4096       # rows that are encoded before they are scored
SHOWN_PER_TASK = 3      # failed questions that are quoted
# tokens a reply may be longer than the longest right answer: beyond, it is wrong whatever follows
SPARE = 16
ASIDE = 256             # more for what a model thinks and calls before it answers


# ---------------------------------------------------------------- likelihood of documents

def windows(inputs, window):
    """Cut `inputs` positions into overlapping (start, size, skip): the first `skip` of a window are context, scored
    before.

    Every position is scored once; from the second window on with at least half a window before it.
    windows(10, 4) -> (0, 4, 0), (2, 4, 2), (4, 4, 2), (6, 4, 2)
    """
    end = min(inputs, window)
    yield 0, end, 0
    while end < inputs:
        new_end = min(end + max(1, window // 2), inputs)
        start = max(0, new_end - window)
        yield start, new_end - start, end - start
        end = new_end


def document_losses(model, documents, window=WINDOW, batch_tokens=BATCH_TOKENS, precision="no"):
    """documents: list of (ids (T,), supervised (T,)) -> nats (D,) float64 over the supervised ids, how many there were
    (D,).

    The first id is context only. precision: no | bf16 | fp16, the matrix products' type; sums are float64 always.
    """
    nats, targets = np.zeros(len(documents)), np.zeros(len(documents), dtype=np.int64)
    pieces = []
    for number, (ids, supervised) in enumerate(documents):
        for start, size, skip in windows(len(ids) - 1, window):
            if supervised[start + 1 + skip:start + 1 + size].any():
                pieces.append((number, start, size, skip))
    pieces.sort(key=lambda p: -p[2])                     # like lengths together: attention pads least
    with evaluating(model), torch.no_grad():
        for expert, places in model.groups([ids for ids, _ in documents]) if documents else ():   # a gate may choose
            mine, counted = set(places), _counted(expert, documents)
            for group in _groups([p for p in pieces if p[0] in mine], batch_tokens):
                owners, losses = _score(expert, documents, group, precision, counted)
                np.add.at(nats, owners, losses)
                np.add.at(targets, owners, 1)
    if not np.isfinite(nats).all():
        raise UserError("模型给出的概率不是有限数，无法评估。权重可能已损坏，或换 --mixed_precision no 再试。", 5)
    return nats, targets


def _groups(pieces, batch_tokens):
    group, tokens = [], 0
    for piece in pieces:
        if group and tokens + piece[2] > batch_tokens:
            yield group
            group, tokens = [], 0
        group.append(piece)
        tokens += piece[2]
    if group:
        yield group


def _counted(model, documents):
    """Which documents a counted head has in its tables, (D,) bool: scored as if they were not. None: no tables."""
    if not model.config.counted:
        return None
    sizes = [len(ids) for ids, _ in documents]
    text = np.concatenate([ids for ids, _ in documents]), np.concatenate([np.arange(size) for size in sizes])
    device = model.fc1.weight.device
    return model.fc1.holds(*(torch.from_numpy(t.astype(np.int64)).to(device) for t in text)).cpu().numpy()


def _score(model, documents, group, precision, counted=None):
    """-> document number (M,), loss in nats (M,) float64 of every scored target in this group of windows."""
    ids, positions, labels, owners = [], [], [], []
    for number, start, size, skip in group:
        tokens, supervised = documents[number]
        goal = np.where(supervised[start + 1:start + 1 + size], tokens[start + 1:start + 1 + size], IGNORE)
        goal[:skip] = IGNORE
        ids.append(tokens[start:start + size])
        labels.append(goal)
        positions.append(np.arange(size))
        owners.append(np.full(size, number))
    device = next(model.parameters()).device
    ids, positions, labels = (torch.from_numpy(np.concatenate(t).astype(np.int64)).to(device)
                              for t in (ids, positions, labels))
    layout, left_out = Segments.from_lengths([size for _, _, size, _ in group]).to(device), None
    if counted is not None:
        starts = torch.tensor([start for _, start, size, _ in group for _ in range(size)], device=device)
        held = torch.tensor([counted[number] for number, _, size, _ in group for _ in range(size)], device=device)
        left_out = orders_held(starts, positions) * held
    with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "no"):
        hidden, before, _ = model.encode(ids[None], positions[None], layout)
        picked = (labels >= 0).nonzero().squeeze(1)
        losses = target_losses(hidden, model.fc1, labels, before, left_out)[picked]
    return np.concatenate(owners)[picked.cpu().numpy()], losses.cpu().double().numpy()


# ---------------------------------------------------------------- bits per character

def bits_per_char(model, vocab, data, window=WINDOW, every=1, text_field=None, bad=None, precision="no",
                  batch_tokens=BATCH_TOKENS, progress=False):
    """How many bits the model needs per character of `data` (paths, or rows): comparable across vocabularies.

    Texts: all of every unit. Dialogues: the replies, each given all that was said before; of a preference pair the
    chosen reply and those before it. The bits include every unit's or reply's <|im_end|>; the characters are those of
    the content.
    -> {"bits_per_char", "bits_per_byte", "characters", "bytes", "tokens", "rows"}; tokens: targets that were scored.
    """
    rows = [_one_reply(row) for row in eval_data.scored_rows(data, every, text_field, bad)]
    nats, tokens, characters, size, scored = [], 0, 0, 0, 0
    with tqdm(desc="评估", unit="字", unit_scale=True, total=sum(len(t) for r in rows for t in _content(r)), delay=2,
              leave=False,
              disable=not progress) as bar:
        for begin in range(0, len(rows), BLOCK_ROWS):
            block = rows[begin:begin + BLOCK_ROWS]
            rendered = template.render_many(block, vocab)
            texts = [t for row, documents in zip(block, rendered) if documents for t in _content(row)]
            losses, counts = document_losses(model, [d for documents in rendered for d in documents], window,
                                             batch_tokens, precision)
            nats.extend(losses)
            tokens += int(counts.sum())
            characters += sum(map(len, texts))
            size += sum(len(t.encode()) for t in texts)
            scored += sum(map(bool, rendered))
            bar.update(sum(map(len, texts)))
    _tell_of_tools(len(rows) - scored, scored)
    bits = math.fsum(nats) / math.log(2)
    return {"bits_per_char": bits / characters, "bits_per_byte": bits / size, "characters": characters, "bytes": size,
            "tokens": tokens, "rows": scored}


def _tell_of_tools(skipped, scored):
    """Rows with tools are nothing that a base without words for them can be shown."""
    if skipped:
        print(f"跳过 {skipped:,} 行带工具的对话：这个底座还不能用工具。", file=sys.stderr)
    if skipped and not scored:
        raise UserError("数据里只有带工具的对话，这个底座还不能用工具。请换一份数据。", 8)


def _one_reply(row):
    if row.kind != "preference":
        return row
    return Row("dialogue", messages=[*row.messages, {"role": "assistant", "content": row.chosen}])


def _content(row):
    """The strings of a row that are scored."""
    replies = [m for m in row.messages if m["role"] == "assistant"]
    return row.texts if row.kind == "text" else [text for m in replies for text in template.message_texts(m)]


# ---------------------------------------------------------------- exact answers

def exact_scores(model, vocab, data, every=1, bad=None, batch_size=128, progress=False, answers=None, text_field=None,
                 acts=()):
    """Greedy replies to questions with one right answer (the last message of each conversation), or with a rule of
    their own (`tools.demo.outside.right`).

    data: path or rows {"conversations", "task"}. -> {"overall", "by_task", "chance", "n", "refusals", "failures"};
    shares in 0..1, failures: a few {"task", "question", "expected", "reply"} per task. chance: of the tasks in the
    whole data. refusals: of the questions that it should know, the share that it says it cannot answer; they count as
    errors. answers: a list that gets every question with its reply. acts: what the model has learned beside speaking;
    only what it says is graded.
    """
    rows = eval_data.question_rows(data, every, bad, text_field)
    whole = rows if every == 1 else eval_data.question_rows(data, text_field=text_field)
    replies = _replies(model, vocab, rows, batch_size, progress, acts)
    right, failures, refusals = {}, [], sum(map(refused, rows, replies))
    for row, reply in zip(rows, replies):
        question, expected = (m["content"] for m in row["conversations"][-2:])
        marks = right.setdefault(row["task"], [])
        marks.append(graded(row, reply))
        one = {"task": row["task"], "question": question, "expected": expected, "reply": reply}
        if not marks[-1] and marks.count(False) <= SHOWN_PER_TASK:
            failures.append(one)
        if answers is not None:
            answers.append({**one, "right": marks[-1], "messages": row["conversations"][:-1]})
    by_chance = _chance(whole)
    return {"overall": sum(map(sum, right.values())) / len(rows),
            "by_task": {t: sum(m) / len(m) for t, m in right.items()},
            "chance": {task: by_chance[task] for task in right}, "n": len(rows),
            "refusals": refusals / max(1, sum(not row.get("outside") for row in rows)), "failures": failures}


def world_scores(model, vocab, paths, every=1, **options):
    """The three scores of the built-in world: held-out contents, phrasings, questions outside it.

    paths: what `write_demo` gives; without some of its files, without their scores. -> `exact_scores` of the contents,
    and in it "phrasings" {"overall", "by_task", "n", "refusals"}, "outside" (share of sensible replies), "n_outside",
    "tools" (`tool_scores`, of a model that has learned to call).
    """
    scores = {name: exact_scores(model, vocab, str(paths[name]), every, **options)
              for name in ("eval", "phrasings", "outside") if name in paths}
    found = scores.pop("eval")
    found["failures"] += [one for score in scores.values() for one in score["failures"]]
    if "phrasings" in scores:
        found["phrasings"] = {key: scores["phrasings"][key] for key in ("overall", "by_task", "n", "refusals")}
    if "outside" in scores:
        found |= {"outside": scores["outside"]["overall"], "n_outside": scores["outside"]["n"]}
    if "tools_eval" in paths and "calls" in options.get("acts", ()):
        found["tools"] = tool_scores(model, vocab, paths, options["acts"], every)
    return found


def _replies(model, vocab, rows, batch_size, progress, acts):
    """The greedy reply to each row; empty where a model with learned positions cannot even read the question."""
    prompts = [template.render_prompt(row["conversations"][:-1], vocab) for row in rows]
    longest = max(map(len, vocab.encode_many([row["conversations"][-1]["content"] for row in rows])))
    room = model.config.max_position if model.config.position == "learned" else math.inf
    fitting = [i for i, p in enumerate(prompts) if len(p) <= room]
    replies = [""] * len(rows)
    with tqdm(total=len(fitting), desc="答题", unit="题", delay=2, leave=False, disable=not progress) as bar:
        made = generate_replies(model, [prompts[i] for i in fitting], longest + SPARE + ASIDE * bool(acts), batch_size,
                                progress=bar.update, **template.structure_of(vocab, {*acts} - {"calls"}))
    for i, reply in zip(fitting, made):
        replies[i] = heard(reply.ids, vocab).said
    return replies


def _chance(rows):
    try:
        return chance(rows)
    except (IndexError, ZeroDivisionError):          # a user's own task with a built-in one's name and another form
        return {
            task[:-1]: share for task, share in chance([{**row, "task": row["task"] + " "} for row in rows]).items()}


# ---------------------------------------------------------------- multiple choice

def mcq_scores(model, vocab, data, every=1, bad=None, window=WINDOW, batch_tokens=BATCH_TOKENS, precision="no",
               dialogue=True,
               progress=False, answers=None):
    """The option whose text is likeliest per character, as a reply to the question alone, counts as the model's choice.

    dialogue: ask in the chat form; False: let the text run on from the question, as a model without SFT knows it.
    -> {"accuracy", "low", "high" (95 % Wilson interval), "chance", "n", "by_subject"}. answers: as in exact_scores.
    """
    rows = eval_data.choice_rows(data, every, bad)
    scores = []
    with tqdm(total=len(rows), desc="选择题", unit="题", delay=2, leave=False, disable=not progress) as bar:
        for begin in range(0, len(rows), BLOCK_ROWS):
            block = rows[begin:begin + BLOCK_ROWS]
            nats, _ = document_losses(model, list(_option_documents(block, vocab, dialogue)), window, batch_tokens,
                                      precision)
            per_option = iter(nats)
            scores += [[-next(per_option) / len(text) for text in row.options] for row in block]
            bar.update(len(block))
    if answers is not None:
        answers += [{"task": row.subject or "mcq", "question": row.question, "expected": row.options[row.answer],
                     "reply": row.options[int(np.argmax(one))], "right": bool(_point(row.answer, np.asarray(one)) == 1)}
                    for row, one in zip(rows, scores)]
    return grade_choices(rows, scores)


def paired(one, other):
    """Two lists of right or wrong on the same questions -> {"both", "first", "second", "neither", "p"}: how many only
    one model knew, and how likely so lopsided a count is where neither model is better (exact two-sided sign test)."""
    pairs = list(zip(one, other, strict=True))
    first, second = pairs.count((True, False)), pairs.count((False, True))
    n, k = first + second, min(first, second)
    p = min(1.0, 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2 ** n)
    both, neither = pairs.count((True, True)), pairs.count((False, False))
    return {"both": both, "first": first, "second": second, "neither": neither, "p": p}


def _option_documents(rows, vocab, dialogue):
    for row in rows:
        if dialogue:
            prompt = template.render_prompt([{"role": "user", "content": row.question}], vocab)
        else:
            prompt = template.render_text(row.question + "\n", vocab)[0][:-1].tolist()
        for option in vocab.encode_many(row.options):
            yield np.append(np.array(prompt, dtype=np.int32),
                            option), np.arange(len(prompt) + len(option)) >= len(prompt)


def grade_choices(rows, scores):
    """rows: list of Choice; scores: per row one number per option, larger is likelier. Equal best options share the
    point, so that a scorer that knows nothing gets its chance and no letter is favoured."""
    points = np.array([_point(row.answer, np.asarray(options)) for row, options in zip(rows, scores)])
    subjects = {}
    for row, point in zip(rows, points):
        subjects.setdefault(row.subject, []).append(point)
    low, high = wilson(points.sum(), len(points))
    return {"accuracy": float(points.mean()), "low": low, "high": high, "n": len(rows),
            "chance": float(np.mean([1 / len(row.options) for row in rows])),
            "by_subject": {name: float(np.mean(p)) for name, p in sorted(subjects.items())}}


def _point(answer, options):
    best = options >= options.max() - 1e-9 * max(1.0, abs(options.max()))
    return best[answer] / best.sum()


def wilson(successes, n, z=1.959964):
    """Wilson score interval (1927) of a share: (low, high), sensible near 0 and 1 where the plain normal one is not."""
    share, spread = successes / n, z * z / n
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))
