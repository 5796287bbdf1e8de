"""Conversations in the shapes of the field's data, in words of our own: what goes in, and what has to come out."""


def q(i, k=1):
    return f"第{i}位客人问{k}：河有多宽？"


def a(i, k=1):
    return f"船夫答{i}号{k}：大约{i + k}步。"


def b(i):
    return f"船夫瞎说{i}：谁知道。"


def s(i):
    return f"你是渡口的船夫{i}。"


def user(text):
    return "user", text


def bot(text):
    return "assistant", text


class Twice(dict):
    """A row whose JSON text has `earlier` keys once more, before the others."""

    def __init__(self, earlier, **fields):
        super().__init__(fields)
        self.earlier = earlier


def said(*turns, role="role", content="content", names=None):
    return [{role: (names or {}).get(r, r), content: text} for r, text in turns]


SHAREGPT = {"role": "from", "content": "value", "names": {"user": "human", "assistant": "gpt"}}


def one(i):
    return [user(q(i)), bot(a(i))]


def two(i):
    return [*one(i), user(q(i, 2)), bot(a(i, 2))]


def sys_two(i):
    return [("system", s(i)), *two(i)]


MOSS = {
    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
    "Commands": "<|Commands|>: None<eoc>\n",
    "Tool Responses": "<|Results|>: None<eor>\n",
}
D = "dialogue"

# name: (row of number i, kind, what it says of number i, names that must be counted as dropped)
TALKS = {
    "messages": (lambda i: {"messages": said(*sys_two(i))}, D, sys_two, ()),
    "ShareGPT with a system field": (
        lambda i: {"conversations": said(*two(i), **SHAREGPT), "system": s(i)},
        D,
        sys_two,
        (),
    ),
    "ShareGPT with id and source": (
        lambda i: {"id": f"x{i}", "conversations": said(*two(i), **SHAREGPT), "source": "渡口"},
        D,
        two,
        ("id", "source"),
    ),
    "developer": (
        lambda i: {"messages": said(("developer", s(i)), *one(i))},
        D,
        lambda i: [("system", s(i)), *one(i)],
        (),
    ),
    "ai and prompter": (
        lambda i: {"messages": said(*one(i), names={"user": "prompter", "assistant": "AI"})},
        D,
        one,
        (),
    ),
    "chatgpt": (lambda i: {"messages": said(*one(i), names={"assistant": "chatgpt"})}, D, one, ()),
    "null among the keys": (
        lambda i: {
            "messages": [
                {"role": None, "from": "human", "content": None, "value": q(i)},
                {"role": "assistant", "content": a(i)},
            ]
        },
        D,
        one,
        (),
    ),
    "text parts": (
        lambda i: {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": q(i)}]},
                {"role": "assistant", "content": [{"type": "text", "text": a(i)}]},
            ]
        },
        D,
        one,
        (),
    ),
    "messages as JSON text": (
        lambda i: {"messages": __import__("json").dumps(said(*two(i)), ensure_ascii=False)},
        D,
        two,
        (),
    ),
    "a list a line": (lambda i: said(*two(i)), D, two, ()),
    "LCCC": (lambda i: [q(i), a(i), q(i, 2), a(i, 2)], D, two, ()),
    "UltraChat": (lambda i: {"id": str(i), "data": [q(i), a(i), q(i, 2), a(i, 2)]}, D, two, ("id",)),
    "XTuner": (
        lambda i: {
            "conversation": [{"system": s(i), "input": q(i), "output": a(i)}, {"input": q(i, 2), "output": a(i, 2)}]
        },
        D,
        sys_two,
        (),
    ),
    "human and assistant pairs": (
        lambda i: {
            "conversation_id": i,
            "category": "渡口",
            "conversation": [{"human": q(i), "assistant": a(i)}, {"human": q(i, 2), "assistant": a(i, 2)}],
        },
        D,
        two,
        ("category",),
    ),
    "an empty list beside a pair": (lambda i: {"conversations": [], "instruction": q(i), "output": a(i)}, D, one, ()),
    "messages without a reply beside a pair": (
        lambda i: {"messages": said(user(f"说点什么{i}")), "prompt": q(i), "response": a(i)},
        D,
        one,
        ("messages",),
    ),
    "prompt and response": (lambda i: {"prompt": q(i), "response": a(i)}, D, one, ()),
    "prompt, response, history": (
        lambda i: {"prompt": q(i, 2), "response": a(i, 2), "history": [[q(i), a(i)]], "system": s(i)},
        D,
        sys_two,
        (),
    ),
    "TRL prompt and completion lists": (
        lambda i: {"prompt": said(user(q(i))), "completion": said(bot(a(i)))},
        D,
        one,
        (),
    ),
    "prompt and completion": (lambda i: {"prompt": q(i), "completion": a(i)}, D, one, ()),
    "Alpaca": (
        lambda i: {"instruction": q(i), "input": f"见附文{i}", "output": a(i)},
        D,
        lambda i: [user(q(i) + f"\n见附文{i}"), bot(a(i))],
        (),
    ),
    "Alpaca with the rendered text": (
        lambda i: {"instruction": q(i), "input": "", "output": a(i), "text": f"Below is {q(i)} ### Response: {a(i)}"},
        D,
        one,
        ("text",),
    ),
    "Alpaca with history and system": (
        lambda i: {"instruction": q(i, 2), "input": "", "output": a(i, 2), "history": [[q(i), a(i)]], "system": s(i)},
        D,
        sys_two,
        (),
    ),
    "history of messages": (lambda i: {"query": q(i, 2), "response": a(i, 2), "history": said(*one(i))}, D, two, ()),
    "COIG-CQIA": (
        lambda i: {
            "instruction": q(i),
            "input": "",
            "output": a(i),
            "task_type": {"major": ["问答"], "minor": ["百科"]},
            "domain": ["通用"],
            "metadata": "none",
            "answer_from": "human",
            "human_verified": True,
            "copyright": "无",
        },
        D,
        one,
        ("task_type", "domain"),
    ),
    "Dolly": (
        lambda i: {"instruction": q(i), "context": f"背景{i}", "response": a(i), "category": "qa"},
        D,
        lambda i: [user(q(i) + f"\n背景{i}"), bot(a(i))],
        ("category",),
    ),
    "query and response": (lambda i: {"query": q(i), "response": a(i), "history": []}, D, one, ()),
    "question and answer": (lambda i: {"question": q(i), "answer": a(i)}, D, one, ()),
    "a source-tracked question": (
        lambda i: {"qid": f"q{i}", "question": q(i), "answer": a(i), "explanation": f"因为{i}"},
        D,
        one,
        ("explanation",),
    ),
    "Firefly": (lambda i: {"kind": "NLI", "input": q(i), "target": a(i)}, D, one, ("kind",)),
    "DeepCtrl": (
        lambda i: {"id": i, "q": q(i, 2), "a": a(i, 2), "history": [[q(i), a(i)]], "input_len": 9},
        D,
        two,
        (),
    ),
    "zhihu in capitals": (
        lambda i: {"INSTRUCTION": q(i), "RESPONSE": a(i), "SOURCE": "问答", "METADATA": '{"赞": 3}'},
        D,
        one,
        ("METADATA",),
    ),
    "medical table": (
        lambda i: {"department": "渡口科", "title": f"过河{i}", "ask": q(i), "answer": a(i)},
        D,
        lambda i: [user(f"过河{i}\n{q(i)}"), bot(a(i))],
        ("department",),
    ),
    "baike QA": (
        lambda i: {"qid": i, "category": "生活", "title": q(i), "desc": f"细说{i}", "answer": a(i)},
        D,
        lambda i: [user(q(i) + f"\n细说{i}"), bot(a(i))],
        ("category",),
    ),
    "webtext": (
        lambda i: {
            "qid": i,
            "title": q(i),
            "desc": "",
            "topic": "河",
            "star": 3,
            "content": a(i),
            "answer_id": i,
            "answerer_tags": "船夫",
        },
        D,
        one,
        ("answerer_tags",),
    ),
    "CMRC flattened": (
        lambda i: {
            "id": f"c{i}",
            "context": f"河宽{i}步。",
            "question": q(i),
            "answers": {"text": [a(i), b(i)], "answer_start": [0, 1]},
        },
        D,
        lambda i: [user(f"河宽{i}步。\n{q(i)}"), bot(a(i))],
        ("answers",),
    ),
    "BELLE transcript": (
        lambda i: {
            "instruction": f"Human:{q(i)}\nAssistant:{a(i)}\nHuman:{q(i, 2)}\nAssistant:",
            "input": "",
            "output": a(i, 2),
        },
        D,
        two,
        (),
    ),
    "Guanaco": (
        lambda i: {"instruction": f"User: {q(i)}\nAssistant: {a(i)}", "input": f"User: {q(i, 2)}", "output": a(i, 2)},
        D,
        two,
        (),
    ),
    "### Human in a text": (lambda i: {"text": f"### Human: {q(i)}### Assistant: {a(i)}"}, D, one, ()),
    "ChatML in a text": (
        lambda i: {
            "text": f"<|im_start|>system\n{s(i)}<|im_end|>\n<|im_start|>user\n{q(i)}<|im_end|>\n"
            f"<|im_start|>assistant\n{a(i)}<|im_end|>\n"
        },
        D,
        lambda i: [("system", s(i)), *one(i)],
        (),
    ),
    "[INST]": (
        lambda i: {
            "text": f"<s>[INST] <<SYS>>\n{s(i)}\n<</SYS>>\n\n{q(i)} [/INST] {a(i)} </s>"
            f"<s>[INST] {q(i, 2)} [/INST] {a(i, 2)} </s>"
        },
        D,
        sys_two,
        (),
    ),
    "Baize": (
        lambda i: {
            "topic": "河",
            "input": f"{s(i)}\n[|Human|] {q(i)}\n[|AI|] {a(i)}\n[|Human|] {q(i, 2)}\n[|AI|] {a(i, 2)}\n[|Human|] ",
        },
        D,
        sys_two,
        ("topic",),
    ),
    "MOSS": (
        lambda i: {
            "conversation_id": i,
            "meta_instruction": s(i),
            "num_turns": 2,
            "chat": {
                f"turn_{k}": {**MOSS, "Human": f"<|Human|>: {q(i, k)}<eoh>\n", "MOSS": f"<|MOSS|>: {a(i, k)}<eom>\n"}
                for k in (1, 2)
            },
        },
        D,
        sys_two,
        (),
    ),
    "a key written twice": (
        lambda i: Twice(instruction=q(i), output=a(i), earlier={"output": b(i)}),
        D,
        one,
        ("写了两次的 output",),
    ),
    "weight 0": (
        lambda i: {
            "messages": [
                *said(user(q(i))),
                {"role": "assistant", "content": b(i), "weight": 0},
                *said(user(q(i, 2)), bot(a(i, 2))),
            ]
        },
        D,
        lambda i: [user(q(i)), bot(b(i)), user(q(i, 2)), bot(a(i, 2))],
        (),
    ),
    "loss false": (
        lambda i: {
            "messages": [
                *said(user(q(i))),
                {"role": "assistant", "content": b(i), "loss": False},
                *said(user(q(i, 2)), bot(a(i, 2))),
            ]
        },
        D,
        lambda i: [user(q(i)), bot(b(i)), user(q(i, 2)), bot(a(i, 2))],
        (),
    ),
    "names of speakers": (
        lambda i: {
            "messages": [{"role": "user", "name": f"阿花{i}", "content": q(i)}, {"role": "assistant", "content": a(i)}]
        },
        D,
        one,
        ("name",),
    ),
    "a last question without a reply": (
        lambda i: {"messages": said(*one(i), user(q(i, 2)))},
        D,
        lambda i: [*one(i), user(q(i, 2))],
        ("末尾没有回答的话",),
    ),
    "marks at the edges of a dialogue": (
        lambda i: {"messages": said(user(q(i)), bot(a(i) + "</s>"))},
        D,
        one,
        ("首尾的特殊标记",),
    ),
    "SFT of pairs to compare": (
        lambda i: {"prompt": q(i), "chosen": a(i), "rejected": b(i)},
        D,
        one,
        ("rejected（偏好对齐才学）",),
    ),
}
