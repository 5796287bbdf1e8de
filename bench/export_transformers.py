"""An exported folder in transformers, held against the model it came from (see export_check.py)."""

import tempfile
from pathlib import Path

import torch
import transformers
from safetensors import safe_open

from bench.ties import first_tie
from chat_agent.exports.hf.folder import write_hf
from chat_agent.exports.hf.back import read_hf
from chat_agent.exports.source import read_source
from chat_agent.load import load
from model.generate import generate, generate_reply
from model.sampling import RESERVED
from tools.checkpoint import read_checkpoint
from tools.template import render_prompt

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
PROMPT = 24             # ids that a continuation starts from
TOKENS = 64


def check(path, texts, question=None):
    """Export the checkpoint at `path`, load it as anybody would, compare -> dict of figures; `question`: also talk to
    it."""
    model, vocab, _ = load(path, "cpu")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        name = write_hf(read_source(path), folder / "hf")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", trust_remote_code=False,
                                                                   dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "hf", trust_remote_code=False)
        theirs.save_pretrained(folder / "again")
        found = {"class": name, "names_equal": listed(folder / "hf") == listed(folder / "again"),
                 "round_trip": same_payload(read_hf(folder / "hf"), read_checkpoint(path))}
    rows = [[vocab.id("<|im_end|>"), *ids.tolist()] for ids in vocab.encode_many(texts)]
    found |= logits(model, theirs, rows) | continuations(model, theirs, [ids[:PROMPT] for ids in rows])
    return found | (talk(model, vocab, theirs, tokenizer, question) if question else {})


def listed(folder):
    """{name: (shape, type)} of a folder's weights."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: (file.get_slice(name).get_shape(), file.get_slice(name).get_dtype()) for name in file.keys()}


def same_payload(back, payload):
    """Weights bit for bit, configuration, vocabulary."""
    a, b = back["weights"], payload["weights"]
    bits = a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape
                                        and torch.equal(a[n].contiguous().view(torch.uint8),
                                                        b[n].contiguous().view(torch.uint8)) for n in a)
    return bits and all(back[key] == payload[key] for key in ("config", "vocab_hash", "vocab"))


@torch.inference_mode()
def logits(model, theirs, rows):
    """The largest difference of any logit, and how far logits spread: flat ones would prove nothing."""
    longest = model.config.max_position or 512
    worst, spread = 0.0, []
    for ids in rows:
        ids = torch.tensor([ids[:longest]])
        ours = model(ids, return_logits=True).logits_1
        worst = max(worst, float((theirs(ids).logits - ours).abs().max()))
        spread.append(float(ours.std()))
    return {"logit_difference": worst, "logit_spread": sum(spread) / len(spread), "rows": len(rows)}


def continuations(model, theirs, prompts):
    """Greedy replies of exactly TOKENS ids, text alone: reserved ids are forbidden on both sides."""
    equal, ties = 0, 0
    for ids, out in zip(prompts, written(theirs, prompts)):
        ours = generate(model, ids, TOKENS, stop_ids=(), guard=False, speculate=False)
        equal, ties = equal + (ours == out), ties + (ours != out and tied(model, ids, ours, out))
    return {"continuations": len(prompts), "equal": equal, "ties": ties, "differ": len(prompts) - equal - ties}


def written(theirs, prompts):
    """What transformers' generate writes; prompts of one length go together, so that nothing is padded."""
    replies = {}
    for length in {len(ids) for ids in prompts}:
        places = [i for i, ids in enumerate(prompts) if len(ids) == length]
        out = theirs.generate(torch.tensor([prompts[i] for i in places]), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
                              do_sample=False,
                              eos_token_id=None, suppress_tokens=list(range(RESERVED)))
        replies |= dict(zip(places, out[:, length:].tolist()))
    return [replies[i] for i in range(len(prompts))]


def tied(model, prompt, ours, other):
    """Whether two greedy replies that part do so at or after a tie."""
    parted = next((i for i, (a, b) in enumerate(zip(ours, other)) if a != b), min(len(ours), len(other)))
    tie = first_tie(model, prompt, ours, stop=None)
    return tie is not None and tie <= parted


def talk(model, vocab, theirs, tokenizer, question):
    """One question through their own chat template and generate, and through ours."""
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    out = theirs.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)[0, prompt["input_ids"].shape[1]:]
    ours = generate_reply(model, render_prompt(messages, vocab), TOKENS, speculate=False)
    return {"question": question, "reply": tokenizer.decode(out, skip_special_tokens=True),
            "own_reply": vocab.decode(ours.ids)}
