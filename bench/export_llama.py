"""An exported GGUF in llama.cpp, held against the model it came from (see export_check.py)."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from bench.export_transformers import tied
from chat_agent.exports.gguf.file import PRECISIONS, write_gguf
from chat_agent.exports.source import read_source
from chat_agent.load import load
from model.generate import generate
from model.sampling import RESERVED
from tools.errors import UserError
from tools.template import render_prompt

PROMPT, TOKENS, PROMPTS = 24, 32, 20
SIDE = Path(__file__).with_name("llama_side.py")


def has_llama(python):
    """Whether that interpreter can import llama_cpp."""
    return subprocess.run([python, "-c", "import llama_cpp"], capture_output=True).returncode == 0


def ask(python, **job):
    """Run llama_side.py under another interpreter."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run([python, str(SIDE)], input=json.dumps(job), capture_output=True, text=True, env=plain)
    if done.returncode:
        raise UserError(f"llama.cpp 没能跑完：{(done.stderr.strip().splitlines() or ['没有输出'])[-1]}", 3)
    return json.loads(done.stdout)


def check(path, python, texts, dialogues, strings):
    """texts: where prompts come from; strings: what the tokeniser is tried on -> dict of figures, per precision and
    over all."""
    model, vocab, _ = load(path, "cpu")
    rows = [[vocab.id("<|im_end|>"), *ids[:200].tolist()] for ids in vocab.encode_many(texts[:PROMPTS])]
    prompts = [ids[:PROMPT] for ids in rows]
    ours = [generate(model, ids, TOKENS, stop_ids=(), guard=False, speculate=False) for ids in prompts]
    with torch.inference_mode():
        logits = [model(torch.tensor([ids]), return_logits=True).logits_1[0].numpy() for ids in rows]
    talks = [messages[:-1] for messages in dialogues]
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for precision in PRECISIONS:
            gguf, _ = write_gguf(read_source(path), folder / f"{precision}.gguf", precision)
            first = precision == PRECISIONS[0]
            out = ask(python, gguf=str(gguf), prompts=prompts, count=TOKENS, banned=RESERVED, rows=rows,
                      logits=str(folder / "logits.npz"),
                      texts=strings if first else [], talks=talks if first else [])
            theirs = np.load(folder / "logits.npz")
            equal = [a == b for a, b in zip(ours, out["continuations"])]
            ties = sum(tied(model, *parts) for same, *parts in zip(equal, prompts, ours, out["continuations"])
                       if not same)
            best = np.concatenate([a.argmax(-1) == np.array(b) for a, b in zip(logits, out["best"])])
            result[precision] = {
                "prompts": len(prompts), "equal": sum(equal), "ties": ties, "same_best_token": float(best.mean()),
                "positions": len(best),
                "logit_difference": max(float(np.abs(a - theirs[f"arr_{i}"]).max()) for i, a in enumerate(logits)),
                "bytes": gguf.stat().st_size}
            if first:
                result |= {"version": out["version"], "strings": len(strings),
                           "modelfile": (folder / "Modelfile").is_file(),
                           "example": [vocab.decode(prompts[0][1:]), vocab.decode(out["continuations"][0])],
                           "other_ids": [t for t, a, b in zip(strings, vocab.encode_many(strings), out["ids"])
                                         if a.tolist() != b],
                           "other_text": [t for t, back in zip(strings, out["decoded"]) if back != t],
                           "talks": len(talks),
                           "talks_equal": sum(render_prompt(m, vocab) == b for m, b in zip(talks, out["talks"]))}
    return result
