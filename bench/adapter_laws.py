"""The laws of adapters on a trained base: nothing changes at step 0, the base stays, merged is unmerged, small files,
one base in memory.

    python bench/adapter_laws.py [--model out/TinySeek_SFT_final.pkl] [--gate out/gate/TinySeek_gate_final.pkl]
    [--quick]

The tests hold these laws at toy size; here they are seen on a model that somebody uses. The last line of stdout is one
JSON object.
"""

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import torch

from bench.adapt import Workplace, replies, room_for
from bench.adapters import read_rows
from chat_agent.evaluate import table
from chat_agent.load import load
from model.build import attach, build, build_gate, merged, own_weights
from model.gate import Gate
from model.tiny_seek import TinySeek
from tools.checkpoint import load_chain, read_checkpoint, weights_hash
from tools.cli import guarded, parse
from tools.demo.adapters import write_adapters
from tools.demo_data import HAND, write_demo
from tools.errors import UserError
from tools.template import render_prompt

KINDS = {"lora": {"type": "lora", "rank": 8, "targets": "attention"},
         "lora all": {"type": "lora", "rank": 8, "targets": "all"},
         "prefix": {"type": "prefix", "kind": "kv", "length": 16}, "memory": {"type": "memory"}}
STEPS, EXPERTS = 10, 6
OPTIONS = [
    ("--model", {"metavar": "文件", "help": "底座（默认 out_dir 里的 TinySeek_SFT_final.pkl）"}),
    ("--gate", {"metavar": "文件", "help": "选择门（默认 out_dir/gate 里的 TinySeek_gate_final.pkl，没有就跳过）"}),
    ("--quick", {"action": "store_true", "help": "少训练几步，少答几题"}),
]


def main(argv=None):
    manager, options = parse(argv, "适配器的几条定律，在训练好的底座上量一遍", extra=OPTIONS)
    out = Path(manager.config["out_dir"])
    base, gate = options.model or str(out / "TinySeek_SFT_final.pkl"), options.gate or str(out / "gate"
        / "TinySeek_gate_final.pkl")
    if not Path(base).is_file():
        raise UserError(f"找不到底座 {base}。请先运行 python run.py，或用 --model 指定。", 3)
    rows = read_rows(write_adapters(HAND)["gate_eval"])[::12 if options.quick else 1]
    chain = load_chain(base)
    ids = prompts(base, rows[:64])
    found = {"zero_law": zero_law(chain, ids), "merged": merged_law(chain, ids), "one_base": one_base(chain)}
    with tempfile.TemporaryDirectory() as folder:
        work = Workplace(manager, base, Path(folder), write_demo(HAND)["sft"])
        found["trained"] = trained(work, 2 if options.quick else STEPS)
    if Path(gate).is_file():
        found["gate"] = mixed_as_alone(gate, rows)
    print(table(lines(found)))
    print(json.dumps(found, ensure_ascii=False))


def prompts(base, rows):
    """(B, T) ids of questions, cut to the shortest."""
    _, vocab, _ = load(base, "cpu")
    made = [render_prompt(row["conversations"][:-1], vocab) for row in rows]
    width = min(map(len, made))
    return torch.tensor([ids[:width] for ids in made])


@torch.no_grad()
def logits(model, ids):
    out = model(ids)
    return torch.stack([out.logits_1, out.logits_2]) if out.logits_2 is not None else out.logits_1


def zero_law(chain, ids):
    """{adapter: whether a new one leaves every logit of both heads what it was, bit for bit}."""
    plain = logits(build(chain), ids)
    return {name: bool(torch.equal(plain, logits(attach(build(chain), kind).eval(), ids)))
            for name, kind in KINDS.items()}


def merged_law(chain, ids):
    """Largest logit difference between a LoRA on every projection and the plain model that it folds into."""
    found = {}
    for dtype in (torch.float64, torch.float32):
        model = attach(build(chain), KINDS["lora all"]).to(dtype).eval()
        torch.manual_seed(0)
        for tensor in own_weights(model).values():
            tensor.copy_(torch.randn_like(tensor) * 0.05)
        config, weights = merged(model)
        plain = TinySeek(config).to(dtype).eval()
        plain.load_state_dict(weights, strict=True)
        together = logits(model, ids)
        off = (together - logits(plain, ids)).abs().max()
        found[str(dtype).removeprefix("torch.")] = {"difference": float(off),
                                                    "relative": float(off / together.abs().max())}
    return found


def one_base(chain):
    """Bytes of distinct tensor storage of a gate over six LoRA, as a multiple of one model's."""
    experts = []
    for seed in range(EXPERTS):
        torch.manual_seed(seed)
        model = attach(build(chain), KINDS["lora"])
        weights = {n: torch.randn_like(t) for n, t in own_weights(model).items()}
        experts.append([*chain, {**chain[-1], "kind": "adapter", "adapter": KINDS["lora"], "weights": weights}])
    size = chain[0]["config"]["vocab_size"]
    gate = Gate(size, EXPERTS)
    together = build_gate(
        {"weights": gate.state_dict(), "adapter": {"vocab_size": size, "hidden": 64, "turn": None}, "experts": experts})
    return {"experts": EXPERTS, "times_one_model": round(storage(together) / storage(build(chain)), 4)}


def storage(model):
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in [*model.parameters(), *model.buffers()]}
    return sum(held.values())


def trained(work, steps):
    """A few real steps of each kind -> whether the base's tensors are the same afterwards, and how large the file
    is."""
    paths, found = write_adapters(HAND), {}
    base = read_checkpoint(work.base)
    digest = weights_hash(base["weights"])
    for kind in ("lora", "prefix", "memory"):
        done = work.adapt(kind, kind, paths["identity"], paths["identity_eval"], max_steps=steps)
        inside = {n.replace(".base.", "."): t for n, t in done["model"].state_dict().items()}
        found[kind] = {"steps": done["steps"],
                       "base_untouched": all(torch.equal(inside[n], t) for n, t in base["weights"].items()),
                       "base_file_untouched": weights_hash(read_checkpoint(work.base)["weights"]) == digest,
                       "trainable": done["trainable"], "bytes": done["bytes"],
                       "share_of_base": round(done["bytes"] / Path(work.base).stat().st_size, 4)}
    return found


def mixed_as_alone(path, rows):
    """Replies of a gate to all questions in one batch against those to each alone."""
    model, vocab, _ = load(path)
    asked, room = [render_prompt(row["conversations"][:-1], vocab) for row in rows], room_for(vocab, rows)
    picks = [model.gate.choose([ids])[0] for ids in asked]
    together, alone = replies(model, vocab, rows, room), [replies(model, vocab, [row], room)[0] for row in rows]
    return {"questions": len(rows), "experts_asked": len(set(picks)), "same_choice": picks == model.gate.choose(asked),
            "same_reply": sum(a == b for a, b in zip(together, alone))}


def lines(found):
    """Cells for the table: law, figure."""
    rows = [["定律", "结果"]]
    rows += [[f"第 0 步与底座逐位相同：{name}", "是" if same else "否"] for name, same in found["zero_law"].items()]
    rows += [[f"合并前后最大差 {name}", f"{f['difference']:.2e}（最大 logit 的 {f['relative']:.1e}）"]
             for name, f in found["merged"].items()]
    rows.append([f"{found['one_base']['experts']} 个适配器加门，内存是一个模型的", f"{found['one_base']['times_one_model']:.3f} 倍"])
    for kind, f in found["trained"].items():
        rows.append(
            [f"{kind} 训练 {f['steps']} 步后底座逐位未变", "是" if f["base_untouched"] and f["base_file_untouched"] else "否"])
        rows.append([f"　文件 {f['bytes']:,} 字节，占底座", f"{f['share_of_base']:.2%}"])
    if "gate" in found:
        gate = found["gate"]
        rows.append([f"门：{gate['questions']} 题一批，选择与单独问相同", "是" if gate["same_choice"] else "否"])
        rows.append(["　回答与单独问相同", f"{gate['same_reply']}/{gate['questions']}"])
    return rows


if __name__ == "__main__":
    guarded(main)
