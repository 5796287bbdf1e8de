"""Rows in the shapes of the field's data, in words of our own: what goes in, and what has to come out."""


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
D, T = "dialogue", "text"

# name: (row of number i, kind, what it says of number i, names that must be counted as dropped)
READ = {
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
    "text": (lambda i: {"text": q(i) + a(i)}, T, lambda i: [q(i) + a(i)], ()),
    "text with units": (lambda i: {"text": f"{q(i)}<|im_end|>{a(i)}"}, T, lambda i: [q(i), a(i)], ()),
    "MiniMind pretrain_hq": (
        lambda i: {"text": f"<|im_start|>{q(i)}<|im_end|> <|im_start|>{a(i)}<|im_end|>"},
        T,
        lambda i: [q(i), a(i)],
        ("首尾的特殊标记",),
    ),
    "MiniMind in <s>": (lambda i: {"text": f"<s>{q(i)}{a(i)}</s>"}, T, lambda i: [q(i) + a(i)], ("首尾的特殊标记",)),
    "endoftext": (lambda i: {"text": f"{q(i)}{a(i)}<|endoftext|>"}, T, lambda i: [q(i) + a(i)], ("首尾的特殊标记",)),
    "text with a title and a url": (
        lambda i: {"id": i, "url": f"http://河/{i}", "title": f"渡口{i}", "text": q(i)},
        T,
        lambda i: [q(i)],
        ("title", "url"),
    ),
    "WuDao": (
        lambda i: {"id": i, "uniqueKey": f"u{i}", "dataType": "百科", "title": f"渡口{i}", "content": q(i)},
        T,
        lambda i: [f"渡口{i}\n{q(i)}"],
        ("uniqueKey", "dataType"),
    ),
    "content": (lambda i: {"content": q(i), "score": 0.5}, T, lambda i: [q(i)], ("score",)),
    "wikipedia-cn": (lambda i: {"completion": q(i), "source": "wikipedia.zh"}, T, lambda i: [q(i)], ("source",)),
    "poems": (
        lambda i: {"author": "某人", "title": f"渡{i}", "paragraphs": [q(i), a(i)], "id": f"p{i}"},
        T,
        lambda i: [f"渡{i}\n{q(i)}\n{a(i)}"],
        ("author",),
    ),
    "MNBVC": (
        lambda i: {"文件名": f"{i}.txt", "段落": [{"行号": 0, "内容": q(i)}, {"行号": 1, "内容": a(i)}]},
        T,
        lambda i: [f"{q(i)}\n{a(i)}"],
        ("文件名",),
    ),
}


def pair(i):
    return [user(q(i))], a(i), b(i)


def pair_two(i):
    return [*one(i), user(q(i, 2))], a(i, 2), b(i)


# name: (row of number i, (prompt's turns, chosen, rejected) of number i)
PAIRS = {
    "two responses": (lambda i: {"prompt": q(i), "response": [a(i), b(i)]}, pair),
    "prompt, chosen, rejected": (lambda i: {"prompt": q(i), "chosen": a(i), "rejected": b(i)}, pair),
    "LLaMA-Factory's conversations": (
        lambda i: {
            "conversations": said(user(q(i)), **SHAREGPT),
            "chosen": said(bot(a(i)), **SHAREGPT)[0],
            "rejected": said(bot(b(i)), **SHAREGPT)[0],
        },
        pair,
    ),
    "LLaMA-Factory's instruction": (
        lambda i: {"instruction": q(i), "input": "", "chosen": a(i), "rejected": b(i)},
        pair,
    ),
    "instruction with input": (
        lambda i: {"instruction": q(i), "input": f"附{i}", "chosen": a(i), "rejected": b(i), "system": s(i)},
        lambda i: ([("system", s(i)), user(f"{q(i)}\n附{i}")], a(i), b(i)),
    ),
    "two outputs": (lambda i: {"instruction": q(i), "input": "", "output": [a(i), b(i)]}, pair),
    "lists of one string": (lambda i: {"prompt": q(i), "chosen": [a(i)], "rejected": [b(i)]}, pair),
    "UltraFeedback binarized": (
        lambda i: {
            "prompt": q(i),
            "chosen": said(user(q(i)), bot(a(i))),
            "rejected": said(user(q(i)), bot(b(i))),
            "messages": said(user(q(i)), bot(a(i))),
            "score_chosen": 8.5,
        },
        pair,
    ),
    "MiniMind dpo": (lambda i: {"chosen": said(user(q(i)), bot(a(i))), "rejected": said(user(q(i)), bot(b(i)))}, pair),
    "swift messages": (
        lambda i: {"messages": said(*one(i), user(q(i, 2)), bot(a(i, 2))), "rejected_response": b(i)},
        pair_two,
    ),
    "swift query": (
        lambda i: {"query": q(i, 2), "response": a(i, 2), "rejected_response": b(i), "history": [[q(i), a(i)]]},
        pair_two,
    ),
    "swift rejected messages": (
        lambda i: {"messages": said(user(q(i)), bot(a(i))), "rejected_messages": said(user(q(i)), bot(b(i)))},
        pair,
    ),
    "question, chosen, rejected": (
        lambda i: {"system": s(i), "question": q(i), "chosen": a(i), "rejected": b(i)},
        lambda i: ([("system", s(i)), user(q(i))], a(i), b(i)),
    ),
    "HH transcripts": (
        lambda i: {
            "chosen": f"\n\nHuman: {q(i)}\n\nAssistant: {a(i)}\n\nHuman: {q(i, 2)}\n\nAssistant: {a(i, 2)}",
            "rejected": f"\n\nHuman: {q(i)}\n\nAssistant: {a(i)}\n\nHuman: {q(i, 2)}\n\nAssistant: {b(i)}",
        },
        pair_two,
    ),
    "CValues": (lambda i: {"prompt": q(i), "pos_resp": a(i), "neg_resp": b(i), "pos_type": "好"}, pair),
    "SafeRLHF": (
        lambda i: {
            "prompt": q(i),
            "response_0": b(i),
            "response_1": a(i),
            "better_response_id": 1,
            "is_response_0_safe": True,
        },
        pair,
    ),
    "StackExchange pairs": (lambda i: {"qid": i, "question": q(i), "response_j": a(i), "response_k": b(i)}, pair),
    "history before the question": (
        lambda i: {"instruction": q(i, 2), "history": [[q(i), a(i)]], "chosen": a(i, 2), "rejected": b(i)},
        pair_two,
    ),
}

# name: (row, what its reason must name)
REFUSED = {
    "one turn a row": (lambda i: {"role": "user", "content": q(i)}, "一轮对话"),
    "a picture": (
        lambda i: {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": q(i)}, {"type": "image_url", "image_url": {"url": "x"}}],
                },
                *said(bot(a(i))),
            ]
        },
        "image_url",
    ),
    "pictures beside": (lambda i: {"messages": said(*one(i)), "images": ["河.png"]}, "图片"),
    "nothing to learn": (
        lambda i: {"messages": [*said(user(q(i))), {"role": "assistant", "content": a(i), "weight": 0}]},
        "weight",
    ),
    "a weight of the row": (lambda i: {"prompt": q(i), "response": a(i), "weight": 0}, "weight"),
    "a weight in words": (lambda i: {"messages": [*said(user(q(i))), {**said(bot(a(i)))[0], "weight": "0"}]}, "weight"),
    "KTO by label": (lambda i: {"prompt": q(i), "completion": a(i), "label": i % 2 == 0}, "KTO"),
    "KTO by tag": (lambda i: {"messages": said(*one(i)), "kto_tag": True}, "KTO"),
    "multiple choice": (
        lambda i: {"question": q(i), "A": "宽", "B": "窄", "C": "没水", "D": "不知", "answer": "A"},
        "选择题",
    ),
    "choices": (lambda i: {"question": q(i), "choices": ["宽", "窄"], "answer": 0}, "选择题"),
    "OpenAssistant": (
        lambda i: {"message_id": f"m{i}", "parent_id": None, "text": q(i), "role": "prompter", "message_tree_id": "t"},
        "OpenAssistant",
    ),
    "nested SQuAD": (lambda i: {"title": "河", "paragraphs": [{"context": q(i), "qas": []}]}, "SQuAD"),
    "many scored replies": (
        lambda i: {"user_input": q(i), "responses_and_scores": [{"response": a(i), "score": 1}]},
        "一问多答",
    ),
    "unknown fields": (lambda i: {"客官": q(i), "船家": a(i)}, "--columns"),
    "an unknown role": (lambda i: {"messages": said(("旁白", q(i)), bot(a(i)))}, "旁白"),
}
