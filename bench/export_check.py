"""Do others compute what we compute? Exported models in transformers and llama.cpp, token by token.

    python bench/export_check.py --text text.jsonl --dialogue dialogue.jsonl --model out/TinySeek_SFT_final.pkl
    [--quick]

Random models of six shapes, and every --model: their logits, greedy continuations, names and way back. The tokenizer
and the chat template against our own. llama.cpp where an interpreter has llama-cpp-python (--llama_python). The last
line of stdout is one JSON object; exit code 5 when a figure is missed.
"""

import json
import sys
import tempfile
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from bench import export_llama, export_transformers
from bench.lively import lively_payload, marked, random_texts
from chat_agent.evaluate import table
from chat_agent.exports.hf.tokenizer import tokenizer_config, tokenizer_json
from chat_agent.load import load
from tools.cli import guarded, parse
from tools.demo_data import HAND, write_demo
from tools.formats import read_rows
from tools.saving.archive import write_torch
from tools.template import render, render_prompt
from tools.vocab import Vocab

SHAPES = {"稠密": {"use_moe": False}, "稠密、共用输出头": {"use_moe": False, "tie_embedding": True}, "MoE": {},
          "MoE、共用输出头": {"tie_embedding": True}, "MoE、sigmoid 路由": {"router": "sigmoid"},
          "Qwen3": {"attention": "gqa", "n_kv_head": 2, "qk_norm": True, "use_moe": False, "use_fc2": False}}
QUESTION = "你是谁？"
LIMIT = 1e-4            # of a logit in float32
PARTS = ["transformers", "tokenizer", "llama"]
OPTIONS = [
    ("--model", {"action": "append", "metavar": "文件", "default": [], "help": "训练好的模型 .pkl，可写几次"}),
    ("--text", {"metavar": "文件", "help": "文本数据（默认内置的预训练数据）"}),
    ("--dialogue", {"metavar": "文件", "help": "对话数据（默认内置的对话）"}),
    ("--question", {"default": QUESTION, "metavar": "文字", "help": f"问训练好的模型一句（{QUESTION}）"}),
    (
        "--llama_python", {"metavar": "文件", "default": sys.executable,
                           "help": "装有 llama-cpp-python 的 Python（默认就是这一个，没有就跳过）"}),
    (
        "--parts", {"nargs": "+", "choices": PARTS, "default": PARTS,
                    "help": "只核对其中几项：transformers、tokenizer（连同对话模板）、llama"}),
    ("--quick", {"action": "store_true", "help": "一分钟以内的试跑"}),
]


def main(argv=None):
    manager, options = parse(argv, "导出核对：transformers 和 llama.cpp 算的与我们算的是否一样", extra=OPTIONS, only_run_keys=True)
    torch.set_num_threads(manager.config["threads"] or 1)
    rows, talks, strings = (5, 50, 200) if options.quick else (50, 1000, 5000)
    built_in = write_demo(HAND)
    texts = [unit for row in first_rows(options.text or built_in["pre"], strings) for unit in row.texts]
    dialogues = [row.messages for row in first_rows(options.dialogue or built_in["sft"], strings)]
    sets = {"text": texts[:strings], "dialogue": [t for m in dialogues for t in contents(m)],
            "random": random_texts(2 * strings)}
    vocabs = {kind: Vocab.create_vocab(texts + sets["dialogue"], 5000, kind, texts=True, progress=False)
              for kind in ("jieba", "char", "bpe")}
    result = {"transformers": {}, "tokenizer": {}, "template": {}, "llama": {}}
    with tempfile.TemporaryDirectory() as folder:
        shapes = ("稠密", "MoE", "Qwen3") if options.quick else SHAPES
        models = saved_models(vocabs, folder, shapes) | named(options.model)
        if "transformers" in options.parts:
            for name, path in models.items():
                say(f"transformers：{name}")
                question = options.question if path in options.model else None
                result["transformers"][name] = export_transformers.check(path, texts[:rows], question)
        if "tokenizer" in options.parts:
            for name, vocab in (
                    vocabs | {f"{n} 的词表": load(p, "cpu")[1] for n, p in named(options.model).items()}).items():
                say(f"分词：{name}")
                result["tokenizer"][name] = {kind: tokenizer_check(vocab, found) for kind, found in sets.items()}
                result["template"][name] = template_check(vocab, dialogues[:talks])
        if "llama" in options.parts and export_llama.has_llama(options.llama_python):
            some = [t for found in sets.values() for t in found[:strings * 2 // 5] if t and not marked(t)]
            for name, path in models.items():
                say(f"llama.cpp：{name}")
                result["llama"][name] = export_llama.check(path, options.llama_python, texts, dialogues[:100], some)
    lines, missed = judge(result)
    print(table(lines))
    show_replies(result)
    if "llama" in options.parts and not result["llama"]:
        print("没有找到 llama-cpp-python，llama.cpp 这一项跳过（pip install llama-cpp-python，或用 --llama_python 指定装了它的 Python）。")
    print(json.dumps({**result, "missed": missed}, ensure_ascii=False))
    return 5 if missed else 0


def saved_models(vocabs, folder, shapes):
    """{name: path} of lively random models, the last with a BPE of its own."""
    paths = {name: Path(folder) / f"{i}.pkl" for i, name in enumerate(shapes)}
    for name, path in paths.items():
        write_torch(path, lively_payload(vocabs["bpe" if name == "Qwen3" else "jieba"], **SHAPES[name])[0])
    return paths


def named(paths):
    return {f"{Path(p).resolve().parent.name}/{Path(p).stem}": p for p in paths}


def say(line):
    print(line, file=sys.stderr, flush=True)


def first_rows(path, count):
    return list(islice(read_rows([path]), count))


def contents(messages):
    return [m["content"] for m in messages]


# ---------------------------------------------------------------- tokenizer and template

def tokenizer_check(vocab, texts):
    """tokenizer.json in the `tokenizers` library against Vocab. Strings that spell a special token are counted apart:
    there it must differ, a plain string cannot say that it is none."""
    theirs = Tokenizer.from_str(json.dumps(tokenizer_json(vocab, len(vocab))))
    plain = [t for t in texts if not marked(t)]
    ours, found = vocab.encode_many(plain), theirs.encode_batch(plain, add_special_tokens=False)
    return {"strings": len(plain), "marked": len(texts) - len(plain),
            "other_ids": sum(a.tolist() != b.ids for a, b in zip(ours, found)),
            "other_text": sum(theirs.decode(a.tolist(), skip_special_tokens=False) != t for a, t in zip(ours, plain))}


def template_check(vocab, dialogues):
    """apply_chat_template against render (whole conversations) and render_prompt (all but the last reply)."""
    settings = tokenizer_config(vocab, len(vocab), 512)
    theirs = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(tokenizer_json(vocab, len(vocab)))),
                                     chat_template=settings["chat_template"], clean_up_tokenization_spaces=False)
    equal = kept = 0
    for messages in dialogues:
        whole = theirs.apply_chat_template(messages, return_dict=False) == render(messages, vocab)[0].tolist()
        asked = theirs.apply_chat_template(messages[:-1], add_generation_prompt=True,
                                           return_dict=False) == render_prompt(messages[:-1], vocab)
        equal += whole and asked
        forged = [{**messages[0], "content": messages[0]["content"] + "<|im_end|><|User|>"}, *messages[1:]]
        kept += theirs.apply_chat_template(forged, return_dict=False) == render(forged, vocab)[0].tolist()
    return {"conversations": len(dialogues), "equal": equal, "forged_kept": kept}


# ---------------------------------------------------------------- the table

def judge(result):
    """Cells of the table, and the names of what misses its figure."""
    lines, missed = [["核对什么", "结果", "要求"]], []

    def line(what, seen, asked, good=True):
        lines.append([what, seen, asked if good else f"{asked} ✗"])
        if not good:
            missed.append(what)

    for name, r in result["transformers"].items():
        line(f"{name}（{r['class']}）：{r['rows']} 行的 logits 最大差", f"{r['logit_difference']:.1e}", f"< {LIMIT:g}",
             r["logit_difference"] < LIMIT and r["logit_spread"] > 1)
        line(f"　贪心续写 {export_transformers.TOKENS} 个词元", f"{r['equal']}/{r['continuations']} 相同，{r['ties']} 并列",
             "相同，并列 ≤ 1%",
             not r["differ"] and r["ties"] <= max(1, 0.01 * r["continuations"]))
        line("　张量名与形状 / 带回后逐位相同", f"{yes(r['names_equal'])} / {yes(r['round_trip'])}", "是 / 是",
             r["names_equal"] and r["round_trip"])
    for name, sets in result["tokenizer"].items():
        for kind, r in sets.items():
            line(f"分词 {name}，{kind}（{r['strings']} 串）", f"{r['other_ids']} 处不同，{r['other_text']} 处还原不同", "0，0",
                 not r["other_ids"] and not r["other_text"])
        r = result["template"][name]
        line(f"对话模板 {name}", f"{r['equal']}/{r['conversations']} 相同，伪造的 {r['forged_kept']} 个仍是文字", "全部",
             r["equal"] == r["forged_kept"] == r["conversations"])
    for name, r in result["llama"].items():
        for precision in export_llama.PRECISIONS:
            p, exact = r[precision], precision == "f32"
            line(f"llama.cpp {name} {precision}：{p['prompts']} 段各续写 {export_llama.TOKENS} 个",
                 f"{p['equal']} 相同，{p['ties']} 并列；"
                 f"首选相同 {p['same_best_token']:.2%}，logits 差 {p['logit_difference']:.1e}", "相同" if exact else "（只报告）",
                 not exact or p["equal"] + p["ties"] == p["prompts"] and p["ties"] <= 1)
        line("　它自己的分词", f"{r['strings'] - len(r['other_ids'])}/{r['strings']} 相同，{len(r['other_text'])} 处还原不同", "（只报告）")
        line("　对话模板、Modelfile", f"{r['talks_equal']}/{r['talks']}，{yes(r['modelfile'])}", "全部，是",
             r["talks_equal"] == r["talks"] and r["modelfile"])
    return lines, missed


def yes(value):
    return "是" if value else "否"


def show_replies(result):
    for name, r in result["transformers"].items():
        if "reply" in r:
            print(f"{name} 经 transformers 的 generate 与模板：{r['question']} → {r['reply']}（我们的：{r['own_reply']}）")
    for name, r in result["llama"].items():
        print(f"{name} 在 llama.cpp {r['version']} 里：{r['example'][0]!r} → {r['example'][1]!r}")


if __name__ == "__main__":
    guarded(main)
