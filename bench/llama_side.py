"""The other side of export_llama.py, for an interpreter that has llama-cpp-python and nothing else of ours.

Reads a job from stdin, writes what llama.cpp makes of it to stdout, both JSON; judges nothing.

    {"gguf": path, "prompts": [[id, …], …], "count": n, "banned": m, "rows": [[id, …], …], "logits": path or null,
    "texts": [str, …],
     "talks": [messages, …]}
    {"continuations": [[id, …], …], "best": [[id at each position], …], "ids": [[id, …], …], "decoded": [str, …],
    "talks": [[id, …], …]}

Cache and attention are in float32, ids below `banned` are never chosen. logits: where those of the rows go, as one
.npz.
"""

import json
import sys

import llama_cpp
import numpy as np
from llama_cpp.llama_chat_format import Jinja2ChatFormatter

F32 = 0     # ggml's number for float32


def logits_of(llama, ids):
    llama.reset()
    llama.eval(ids)
    return np.array(llama.scores[:len(ids)])                                      # (T, V)


def continuation(llama, ids, count, banned):
    llama.reset()
    llama.eval(ids)
    found = []
    for _ in range(count):
        scores = llama.scores[llama.n_tokens - 1]
        found.append(banned + int(np.argmax(scores[banned:])))
        llama.eval(found[-1:])
    return found


def tokens(llama, text, special=False):
    return llama.tokenize(text.encode(), add_bos=False, special=special)


def dialogue(llama, form, messages):
    return tokens(llama, form(messages=messages).prompt, special=True)


def main():
    job = json.load(sys.stdin)
    llama = llama_cpp.Llama(job["gguf"], n_ctx=1024, n_threads=1, n_threads_batch=1, logits_all=True, verbose=False,
                            type_k=F32, type_v=F32, flash_attn=False)
    rows = [logits_of(llama, ids) for ids in job["rows"]]
    if job["logits"]:
        np.savez(job["logits"], *rows)
    ids = [tokens(llama, text) for text in job["texts"]]
    form = Jinja2ChatFormatter(template=llama.metadata["tokenizer.chat_template"], eos_token="", bos_token="",
                               add_generation_prompt=True)
    json.dump({"continuations": [continuation(llama, p, job["count"], job["banned"]) for p in job["prompts"]],
               "best": [row.argmax(-1).tolist() for row in rows], "ids": ids,
               "decoded": [llama.detokenize(i).decode(errors="replace") for i in ids],
               "talks": [dialogue(llama, form, messages) for messages in job["talks"]],
               "version": llama_cpp.__version__}, sys.stdout)


if __name__ == "__main__":
    main()
