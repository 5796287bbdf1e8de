"""What a model that is being trained answers: a few questions of its own data, the same ones again and again, and a
small exam, task by task. It goes to the log; the page and the report show how it learns to speak."""

from collections import Counter

from model.generate import generate_replies
from tools.template import render_prompt, render_text, structure_of
from tools.vocab import Vocab
from train_agent.trainers.data.own_questions import own_exam, own_questions
from train_agent.trainers.trying.dry_loop import copied

PROMPTS, REPLY = 5, 40          # sentences that are asked, tokens of a reply


def answers(stage):
    """-> [(sentence of the run's own data, greedy reply)], {"tasks", "right", "asked": lists} or {} where nothing in
    its data names a task. A copy answers: what the decoder prepares for itself must not meet the next step."""
    vocab, twin = Vocab.from_state(stage.about["vocab"]), copied(stage).eval()
    completes, texts = stage.options["training_mode"] == "pretraining", own_questions(stage)[:PROMPTS]
    exam = [] if completes else [row for row in own_exam(stage) if row["task"]]
    if completes:
        prompts = [render_text(text, vocab)[0][:-1].tolist() for text in texts]
    else:
        asked = [[{"role": "user", "content": text}] for text in texts] + [row["messages"] for row in exam]
        prompts = [render_prompt(messages, vocab) for messages in asked]
    replies = [vocab.decode(one.ids) for one in generate_replies(twin, prompts, REPLY, **structure_of(vocab))]
    return list(zip(texts, replies)), marked(exam, replies[len(texts):])


def marked(exam, replies):
    """How many questions of each task were answered exactly."""
    if not exam:
        return {}
    asked = Counter(row["task"] for row in exam)
    right = Counter(row["task"] for row, reply in zip(exam, replies) if reply.strip() == row["answer"].strip())
    return {"tasks": list(asked), "right": [right[task] for task in asked], "asked": list(asked.values())}
