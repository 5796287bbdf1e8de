"""How fast are replies written, and what does each part of the decoder bring?

    python bench/decode_speed.py [--quick] [--model out/TinySeek_SFT_final.pkl] [--data dialogue.jsonl]

One stream and 16 streams of a model with random weights, against a loop that recomputes the last 512 positions for
every token; with a trained model also self-speculation on held-out questions. Everything that is compared is measured
by turns in this run. The last line of stdout is one JSON object.
"""

import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import torch

from bench.measure import SHAPE, medians
from bench.ties import first_tie
from chat_agent.load import load
from model import ModelConfig, TinySeek
from model.decoding.cache import DecodeCache, cache_width
from model.generate import Reply, generate_replies, generate_reply, stream
from tools.cli import guarded, parse
from tools.demo_data import HAND, write_demo
from tools.errors import UserError
from tools.formats import BadLines, read_rows
from tools.template import render_prompt

WINDOW = 512            # positions that the yardstick recomputes for every token
STREAMS = 16
PREPARED = {}           # of models whose weights stay as they are
OPTIONS = [
    ("--model", {"metavar": "文件", "help": "训练好的模型，用来测第二个头猜词（默认 out/TinySeek_SFT_final.pkl，没有就跳过）"}),
    ("--data", {"nargs": "+", "metavar": "文件", "help": "问题从这些对话数据来，取编号能被 50 整除的行（默认为内置考题）"}),
    ("--prompts", {"type": int, "default": 200, "metavar": "数", "help": "用多少个问题（200）"}),
    ("--tokens", {"type": int, "default": 128, "metavar": "数", "help": "每次写多少个词元（128）"}),
    ("--rounds", {"type": int, "default": 5, "metavar": "数", "help": "轮流测几遍，取中位数（5）"}),
    ("--quick", {"action": "store_true", "help": "几秒钟的试跑"}),
]


def main(argv=None):
    manager, options = parse(argv, "解码速度：缓存、并行、第二个头猜词各快多少", extra=OPTIONS, only_run_keys=True)
    if options.quick:
        options.prompts, options.tokens, options.rounds = min(options.prompts, 20), 32, 2
    if manager.config["threads"]:
        torch.set_num_threads(manager.config["threads"])
    result = {"threads": torch.get_num_threads(), **one_stream(options), **many_streams(options),
              "speculative_ratio": None, "acceptance": None}
    path = options.model or Path(manager.config["out_dir"]) / "TinySeek_SFT_final.pkl"
    if options.model or path.is_file():
        result |= speculation(*load(path, "cpu")[:2], options,
                              BadLines(Path(manager.config["log_dir"]) / "bad_lines.jsonl"))
    else:
        print("还没有训练好的模型，第二个头猜词这一项跳过（先运行 python run.py，或用 --model 指定）。")
    print(json.dumps(result, ensure_ascii=False))
    return 0


def random_model():
    torch.manual_seed(0)
    return TinySeek(ModelConfig.from_dict(SHAPE)).eval().requires_grad_(False)


def fixed_length(model, prompt, tokens, **options):
    """A reply of exactly `tokens` ids."""
    return generate_reply(model, prompt, tokens, guard=False, stop_ids=(), prepared=PREPARED, **options)


# ---------------------------------------------------------------- one stream, against recomputing everything

def one_stream(options):
    model, prompt = random_model(), torch.randint(16, SHAPE["vocab_size"], (32,)).tolist()
    window, passes = torch.randint(16, SHAPE["vocab_size"], (1, WINDOW)), 2 if options.quick else 8

    @torch.inference_mode()
    def yardstick():
        for _ in range(passes):
            model(window, return_logits=True).logits_1[0, -1].argmax().item()

    took = medians(options.rounds, plain=lambda: fixed_length(model, prompt, options.tokens, speculate=False),
                   yardstick=yardstick)
    plain, recomputing = options.tokens / took["plain"], passes / took["yardstick"]
    own, full = (cache_width(ModelConfig.from_dict({**SHAPE, "attention": kind})) for kind in ("mla", "gqa"))
    print(f"一路：{plain:.0f} 词元/秒；每个词元都重算 {WINDOW} 个位置：{recomputing:.1f} 词元/秒；快 {plain / recomputing:.0f} 倍")
    print(f"缓存：每个词元每层 {own} 个数，完整的多头键值要 {full} 个（{own / full:.3f}）")
    return {"shape": SHAPE, "tokens_per_s": round(plain, 1), "yardstick_passes_per_s": round(recomputing, 2),
            "ratio_to_yardstick": round(plain / recomputing, 1),
            "cache_bytes_per_token": DecodeCache.of(model, 1, 1).bytes_per_token(),
            "cache_share_of_full": round(own / full, 4)}


# ---------------------------------------------------------------- many streams

def many_streams(options):
    model = random_model()
    lengths = torch.randint(8, 48, (STREAMS,), generator=torch.Generator().manual_seed(1)).tolist()
    prompts = [torch.randint(16, SHAPE["vocab_size"], (n,)).tolist() for n in lengths]
    how = dict(guard=False, stop_ids=(), prepared=PREPARED)
    together = generate_replies(model, prompts, options.tokens, **how)
    alone = [fixed_length(model, p, options.tokens, speculate=False) for p in prompts]
    same, ties = compare(model, prompts, [r.ids for r in alone], [r.ids for r in together])
    took = medians(max(1, options.rounds // 2),
                   together=lambda: generate_replies(model, prompts, options.tokens, **how),
                   in_turn=lambda: [fixed_length(model, p, options.tokens, speculate=False) for p in prompts])
    total = STREAMS * options.tokens
    print(f"{STREAMS} 路同时：共 {total / took['together']:.0f} 词元/秒；一路接一路：{total / took['in_turn']:.0f} 词元/秒；"
          f"回答相同 {same}，因并列而不同 {ties}，共 {STREAMS}")
    return {"batch16_tokens_per_s": round(total / took["together"], 1),
            "batch16_ratio": round(took["in_turn"] / took["together"], 2),
            "batch16_same": same, "batch16_ties": ties}


def compare(model, prompts, plain, other):
    """(replies that are equal, replies that part at or after a tie). What parts without a tie is in neither."""
    same = [a == b for a, b in zip(plain, other)]
    ties = 0
    for prompt, a, b, equal in zip(prompts, plain, other, same):
        if not equal:
            expert = model.groups([prompt])[0][0]
            parted = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
            tie = first_tie(expert, prompt, a)
            ties += tie is not None and tie <= parted
    return sum(same), ties


# ---------------------------------------------------------------- speculation

def questions(vocab, options, bad):
    """Prompts from the last question of each held-out dialogue."""
    rows = read_rows(options.data, bad=bad) if options.data else read_rows([write_demo(HAND)["eval"]])
    wanted = [row.messages for i, row in enumerate(rows) if row.kind == "dialogue"
              and (not options.data or i % 50 == 0)]
    if not wanted:
        raise UserError("数据里没有对话，测不了第二个头猜词。请用 --data 给出对话数据。")
    wanted = wanted[::max(1, len(wanted) // options.prompts)][:options.prompts]
    cut = [messages[:max(i for i, m in enumerate(messages) if m["role"] == "assistant")] for messages in wanted]
    return [render_prompt(messages, vocab) for messages in cut]


def timed_reply(model, prompt, tokens, speculate):
    """Reply, seconds from the start to the first id, seconds from there to the end."""
    reply, begin, first = Reply(), time.perf_counter(), None
    for _ in stream(model, prompt, tokens, speculate=speculate, reply=reply, prepared=PREPARED):
        first = first or time.perf_counter()
    end = time.perf_counter()
    return reply, (first or end) - begin, end - (first or end)


def speculation(model, vocab, options, bad):
    prompts, made = questions(vocab, options, bad), {}
    reading, writing = ({True: [], False: []} for _ in range(2))       # seconds over all prompts, per round
    for round_ in range(-1, max(1, options.rounds // 2)):              # round -1 warms up
        for i, prompt in enumerate(prompts[:3] if round_ < 0 else prompts):
            for drafting in (round_ % 2 == 0, round_ % 2 != 0):
                made[i, drafting], *times = timed_reply(model, prompt, options.tokens, drafting)
                for place, value in zip((reading, writing), times) if round_ >= 0 else ():
                    place[drafting] += [0.0] * (round_ + 1 - len(place[drafting]))
                    place[drafting][round_] += value
    plain, drafted = ([made[i, d] for i in range(len(prompts))] for d in (False, True))
    # the end is written too, the first id is not timed
    ids = sum(len(r.ids) for r in drafted)
    took = {d: (statistics.median(writing[d]), statistics.median(map(sum, zip(reading[d], writing[d]))))
            for d in writing}
    same, ties = compare(model, prompts, [r.ids for r in plain], [r.ids for r in drafted])
    guesses, right = sum(r.drafted for r in drafted), sum(r.accepted for r in drafted)
    ratio, whole = (took[False][i] / took[True][i] for i in range(2))
    print(
        f"第二个头猜词：{ids / took[True][0]:.0f} 词元/秒，不猜 {ids / took[False][0]:.0f} 词元/秒，{ratio:.2f} 倍（连同读问题 {whole:.2f} 倍）；"
          f"猜 {guesses} 次，对 {right} 次；{len(prompts)} 个回答中相同 {same}，因并列而不同 {ties}")
    return {"speculative_tokens_per_s": round(ids / took[True][0], 1),
            "plain_tokens_per_s": round(ids / took[False][0], 1),
            "speculative_ratio": round(ratio, 3), "speculative_ratio_with_prompt": round(whole, 3),
            "acceptance": round(right / max(1, guesses), 4), "guesses_per_id": round(guesses / max(1, ids), 3),
            "prompts": len(prompts), "identical": same, "ties": ties}


if __name__ == "__main__":
    guarded(main)
