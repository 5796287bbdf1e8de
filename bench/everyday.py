"""Sixty everyday prompts and every reply to them: thirty alone, thirty in ten talks of three turns.

    python bench/everyday.py --model out/TinySeek_SFT_final.pkl [--dialogue dialogue.jsonl] [--temperature 0.7 …]
    python bench/everyday.py --judged bench/results/everyday_chat.jsonl            # the means of what was judged

Prints all replies, none chosen, and one JSON line: shares of empty, looping and copied replies, distinct-2. Judging is
by hand, by the rubric of docs/real-chat.md: "fluent" and "fits" of a reply are [first, second judgement].
"""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

from chat_agent.load import load
from tools.acting.spoken import heard
from model.generate import generate_reply
from tools.cli import guarded
from tools.formats import BadLines, as_dialogue, read_rows
from tools.template import render_prompt

PROMPTS = ROOT / "bench/everyday_prompts.jsonl"
MOST, COPIED, TIMES = 80, 8, 3   # tokens of a reply; characters from which a known reply is a copy; a run that loops


def talks(path):
    return [json.loads(line)["turns"] for line in open(path, encoding="utf-8")]


def converse(model, vocab, conversations, **how):
    """-> [{"talk", "prompt", "reply", "finish"}] in order, each talk with all that was said before in view."""
    said, prepared = [], {}
    for number, turns in enumerate(conversations):
        messages = []
        for prompt in turns:
            messages.append({"role": "user", "content": prompt})
            ids = render_prompt(messages, vocab)
            reply = generate_reply(model, ids, MOST, seed=len(said), prepared=prepared, **how)
            text = heard(reply.ids, vocab).said
            messages.append({"role": "assistant", "content": text})
            said.append({"talk": number, "prompt": prompt, "reply": text, "finish": reply.finish})
    return said


def loops(one):
    """Whether four characters in a row stand there three times."""
    runs = Counter(one["reply"][i:i + 4] for i in range(len(one["reply"]) - 3))
    return one["finish"] == "loop" or max(runs.values(), default=0) >= TIMES


def distinct_2(texts):
    """Different pairs of characters by all pairs."""
    pairs = [text[i:i + 2] for text in texts for i in range(len(text) - 1)]
    return len(set(pairs)) / max(1, len(pairs))


def replies_of(path):
    """What assistants say in a file of any shape that training reads; calls are no replies."""
    return {m["content"] for row in read_rows([path], bad=BadLines()) for m in as_dialogue(row).messages
            if m["role"] == "assistant" and m["content"]}


def counts(said, known=()):
    texts = [one["reply"] for one in said]
    share = lambda marks: round(sum(marks) / len(said), 4)                                  # noqa: E731
    return {"replies": len(said), "empty": share([not re.search(r"\w", text) for text in texts]),
            "looping": share(map(loops, said)),
            "copied": share([len(text) >= COPIED and text in known for text in texts]) if known else None,
            "cut": share([one["finish"] == "length" for one in said]),
            "distinct_2": round(distinct_2(texts), 4), "mean_length": round(sum(map(len, texts)) / len(said), 1)}


def judged(path):
    """-> means of both judgements together, and how often they agree to the point."""
    rows = [json.loads(line) for line in open(path, encoding="utf-8")]
    found = {}
    for name in ("fluent", "fits"):
        pairs = [row[name] for row in rows]
        found[name] = round(sum(map(sum, pairs)) / (2 * len(pairs)), 3)
        found[f"{name}_agreement"] = round(sum(a == b for a, b in pairs) / len(pairs), 3)
    return {"judged": len(rows), **found}


def parse(argv):
    parser = argparse.ArgumentParser(description="六十句日常话和全部回答")
    parser.add_argument("--model", help="检查点")
    parser.add_argument("--prompts", default=PROMPTS, help="JSONL，每行 {\"turns\": [...]}")
    parser.add_argument("--dialogue", help="训练用的对话：数照抄的回答")
    parser.add_argument("--output", help="把每个回答写成 JSONL，留给人打分")
    parser.add_argument("--judged", help="只算这个打过分的文件的平均")
    for name, value in (("temperature", 0.0), ("top_p", 1.0), ("min_p", 0.0), ("repetition_penalty", 1.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    return parser.parse_args(argv)


def main(argv=None):
    options = parse(argv)
    if options.judged:
        print(json.dumps(judged(options.judged)))
        return
    model, vocab, _ = load(options.model, "cpu")
    how = {name: getattr(options, name) for name in ("temperature", "top_p", "min_p", "repetition_penalty")}
    said = converse(model, vocab, talks(options.prompts), **how)
    for one in said:
        print(f"  你：{one['prompt']}\n小寻：{one['reply']}")
    if options.output:
        lines = [json.dumps({**one, "fluent": None, "fits": None}, ensure_ascii=False) for one in said]
        Path(options.output).write_text("\n".join(lines) + "\n", encoding="utf-8")
    known = replies_of(options.dialogue) if options.dialogue else ()
    print(json.dumps({"model": str(options.model), "sampling": how, **counts(said, known)}, ensure_ascii=False))


if __name__ == "__main__":
    guarded(main)
