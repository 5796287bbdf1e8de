"""A group of replies as a line of a data file. A group: see play.Group."""

import json

from tools.reading.acting import written


def best_row(group):
    """The first reply with the highest reward as a dialogue; None where no reply succeeded."""
    good = [(v.reward, -i) for i, v in enumerate(group.verdicts) if v.success and v.reward is not None]
    if not good:
        return None
    reply = group.replies[-max(good)[1]]
    if any(m["role"] == "tools" for m in reply.messages):
        return written(reply.messages)
    return {"conversations": [*group.question.talk, {"role": "assistant", "content": reply.said}]}


def pair_row(group):
    """The best and the worst reply; None where they have the same reward or the same words, or one is empty."""
    scored = [(v.reward, i) for i, v in enumerate(group.verdicts) if v.reward is not None and group.texts[i].strip()]
    if len(scored) < 2:
        return None
    (low, worst), (high, best) = min(scored), max(scored, key=lambda one: (one[0], -one[1]))
    chosen, rejected = group.texts[best], group.texts[worst]
    if low == high or chosen == rejected:
        return None
    return {"conversations": group.question.talk, "chosen": chosen, "rejected": rejected}


def text_of(rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
