"""Questions that a tool answers: does the model call the right one, rightly, and say what it gave? And does it leave
the tools alone where none is needed?"""
import json
from functools import cache

from tools.acting.forms import Form, offered_of
from tools.acting.toolbox import toolbox
from tools.acting.spoken import heard
from model.generate import check_prompt, generate_replies
from tools.demo.tool_tasks import SIGNS
from tools.formats import read_rows
from tools.template import marks_of, parsed_call, render_prompt

ROUNDS = 3
ROOM = 120                      # ids of one reply
SHARES = ("tool", "arguments", "answer")


def tool_scores(model, vocab, paths, acts=(), every=1, answers=None, speak=None):
    """paths: what tools/demo/tool_tasks.write_tools gives.

    -> {"overall": share of right final answers of the tasks that need a tool, "by_task": {task: {"tool", "arguments",
    "answer": shares}}, "needless": share of the other questions in which it called, "ordinary": share of those answered
    rightly, "n", "off": share of the calculations answered rightly where no tool is offered, "phrasings": as the first
    three, of the questions in held-out forms}.

    speak(conversations) -> their next messages; the model's, where it is not given. answers: a list that gets every
    question with what was said to it.
    """
    speak = speak or (lambda talks: replies_to(model, vocab, talks, acts))
    box = toolbox(["all", str(paths["prices"])])
    found = _examined(paths["tools_eval"], every, box, speak, answers)
    if "tools_phrasings" in paths:
        reworded = _examined(paths["tools_phrasings"], every, box, speak, answers)
        found["phrasings"] = {name: reworded[name] for name in ("overall", "by_task", "needless", "n")}
    return {**found, "off": _without(paths["tools_eval"], every, speak)}


def _questions(path, every):
    """[(task, messages), …]"""
    tasks = [json.loads(line)["task"] for line in open(path, encoding="utf-8")]
    return list(zip(tasks, [row.messages for row in read_rows(str(path))]))[::every]


def _without(path, every, speak):
    asked = [messages for task, messages in _questions(path, every) if task in SIGNS]
    said = speak([messages[1:2] for messages in asked])
    return sum(one["content"].strip() == messages[-1]["content"] for one, messages in zip(said, asked)) / max(
        1, len(asked))


def _examined(path, every, box, speak, answers):
    asked = _questions(path, every)
    talks = [messages[:2] for _, messages in asked]                 # the tools and the question
    going = list(range(len(talks)))
    for _ in range(ROUNDS):
        for i, said in zip(going, speak([talks[i] for i in going])):
            talks[i] = [*talks[i], said]
            talks[i] += [{"role": "tool", "content": box.answer(call)[2]} for call in said.get("calls", ())]
        going = [i for i in going if talks[i][-1]["role"] == "tool"]
        if not going:
            break
    marks = {}
    for (task, messages), talk in zip(asked, talks):
        marks.setdefault(task, []).append(_marks(messages, talk))
        if answers is not None:
            answers.append({"task": task, "question": talk[1]["content"], "expected": messages[-1]["content"],
                            "reply": talk[-1]["content"], "right": marks[task][-1]["answer"], "messages": talk})
    return _summed(marks)


def _summed(marks):
    plain = marks.pop("ordinary", [])
    by_task = {task: {name: sum(one[name] for one in given) / len(given) for name in SHARES}
               for task, given in marks.items()}
    flat = [one for given in marks.values() for one in given]
    return {"overall": sum(one["answer"] for one in flat) / max(1, len(flat)), "by_task": by_task,
            "needless": sum(not one["tool"] for one in plain) / max(1, len(plain)),
            "ordinary": sum(one["answer"] for one in plain) / max(1, len(plain)), "n": len(flat) + len(plain)}


def _marks(expected, talk):
    """What of a conversation is right; calls count in any order."""
    def calls(messages):
        return [parsed_call(call) for m in messages for call in m.get("calls", ())]
    wanted, made = calls(expected), calls(talk)

    def alike(name):
        return sorted(map(name, wanted)) == sorted(map(name, made))
    said = talk[-1]["content"].strip() if talk[-1]["role"] == "assistant" else None
    return {"tool": alike(lambda one: one["name"]), "arguments": alike(lambda one: json.dumps(one, sort_keys=True)),
            "answer": said == expected[-1]["content"].strip()}


def replies_to(model, vocab, talks, acts, batch_size=64):
    """The greedy next message of each conversation."""
    prompts, offers = [render_prompt(talk, vocab) for talk in talks], [offered_of(talk) for talk in talks]
    rooms = [check_prompt(model.config, prompt, ROOM) for prompt in prompts]

    @cache
    def rule(tools, room):
        return Form(tools if "calls" in acts else "").rule(vocab, model.config.vocab_size, room, acts)
    made = generate_replies(model, prompts, rooms, batch_size, marks=marks_of(acts, vocab),
                            rule=list(map(rule, offers, rooms)))
    return [heard(reply.ids, vocab).message() for reply in made]
