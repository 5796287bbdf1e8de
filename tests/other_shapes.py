"""Rows that are no conversations alone: texts, replies to compare, and what is refused. As in data_shapes.py."""
from data_shapes import SHAREGPT, a, b, bot, one, q, s, said, user

T = "text"

# name: (row of number i, kind, what it says of number i, names that must be counted as dropped)
TEXTS = {
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
