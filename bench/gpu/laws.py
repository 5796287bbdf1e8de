"""Laws of the model on this device, at toy size: forward and gradients against the CPU for every variant of
tests/toy.py, packed = unpacked, cached = full, grouped products = the loop, speculative = plain, checkpointing,
adapters."""

import copy

import torch

import toy
from bench.gpu.common import DEVICE, DTYPES, asked, run
from model import moe
from model.gate import Gate
from model.generate import generate
from model.kernels.expert_products import grouped_experts
from model.lora import apply_lora
from model.memory import apply_memory
from model.prefix import apply_prefix

# Relative distance of loss and gradients from float64 on the CPU. A token whose experts change in half precision moves
# its whole gradient, so there only the direction of all gradients together is asked for.
LOSS = {"float32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}
GRADIENTS = {"float32": 1e-3, "bf16": 0.25, "fp16": 0.15}
ADAPTERS = {"lora": lambda model: apply_lora(model, 2, targets="all"),
            "prefix": lambda model: apply_prefix(model, "kv", 3),
            "memory": lambda model: apply_memory(model, 8, 4, 2)}
FEW = ("default", "gqa_window_alibi", "counted", "gpt2", "sigmoid", "known_token")


def batch():
    packed, _ = toy.pack(toy.toy_documents(), 13)
    labels = packed["input_ids"].where(packed["valid"], -100)
    return {**packed, "labels_1": labels, "labels_2": labels.roll(-1, 1)}


def on(device, given):
    return {name: value.to(device) for name, value in given.items()}


def step(model, given, device, precision="float32"):
    """-> loss, all gradients in one vector, both float64 on the CPU."""
    model = model.train().to(device)
    with torch.autocast(device.type, dtype=DTYPES[precision], enabled=precision != "float32"):
        loss = model(**on(device, given)).total_loss
    loss.backward()
    gradients = torch.cat([p.grad.flatten().cpu().double() for p in model.parameters() if p.grad is not None])
    return float(loss), gradients


def compared(model, precision, given=None):
    """The model on this device against itself in float64 on the CPU -> relative distances of loss and gradients."""
    given = given or batch()
    loss, expected = step(copy.deepcopy(model).double(), given, torch.device("cpu"))
    got, gradients = step(model.float(), given, DEVICE, precision)
    off = abs(got - loss) / abs(loss), float((gradients - expected).norm() / expected.norm())
    assert off[0] <= LOSS[precision] and off[1] <= GRADIENTS[precision], f"loss {off[0]:.2g} gradients {off[1]:.2g}"
    return off


def adapted(kind, precision):
    """Fresh, it is the base; a step of it is that of the CPU."""
    base = toy.toy_model(dtype=torch.float32)
    model, given = ADAPTERS[kind](copy.deepcopy(base)), {k: v for k, v in batch().items() if "labels" not in k}
    logits = [one.eval().to(DEVICE)(**on(DEVICE, given), return_logits=True).logits_1 for one in (base, model)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-4)
    return compared(model.to("cpu"), precision)


def packed_is_unpacked(changes):
    model, documents = toy.toy_model(dtype=torch.float32, **changes).eval().to(DEVICE), toy.toy_documents()
    given, starts = toy.pack(documents, 13)
    with torch.no_grad():
        together = model(**on(DEVICE, given), return_logits=True).logits_1.flatten(0, 1)
        for document, start in zip(documents, starts):
            alone = model(torch.tensor([document], device=DEVICE), return_logits=True).logits_1[0]
            torch.testing.assert_close(together[start:start + len(document)], alone, rtol=1e-3, atol=1e-3)


def cached_is_full(changes):
    model = toy.toy_model(dtype=torch.float32, **changes).eval().to(DEVICE)
    ids = torch.randint(16, 300, (3, 12), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.no_grad():
        full = model(ids, return_logits=True).logits_1
        for sizes in ([12], [5, 4, 1, 1, 1], [1] * 12):
            torch.testing.assert_close(toy.decode_in_pieces(model, ids, sizes), full, rtol=1e-3, atol=1e-3)


def grouped_is_the_loop(dtype):
    """Sizes for which torch has a kernel, where it has one."""
    torch.manual_seed(0)
    x, up, down = torch.randn(96, 32), torch.randn(4, 64, 32) / 6, torch.randn(4, 32, 32) / 6
    weights, experts = torch.rand(96, 2), torch.rand(96, 4).topk(2, -1).indices
    results = []
    for product in (moe.one_by_one, grouped_experts):
        leaves = [t.to(DEVICE, dtype).requires_grad_() for t in (x, weights, up, down)]
        out = product(leaves[0], leaves[1], experts.to(DEVICE), *leaves[2:], "swiglu")
        out.float().square().sum().backward()
        results.append([out, *(leaf.grad for leaf in leaves)])
    for one, two in zip(*results):
        off = float((one - two).detach().float().norm() / one.detach().float().norm())
        assert off <= (1e-4 if dtype == torch.float32 else 3e-2), off


def speculative_is_plain():
    model = toy.toy_model(dtype=torch.float32).eval().to(DEVICE)
    replies = [generate(model, [1, 20, 30, 40], 24, speculate=one) for one in (True, False)]
    assert replies[0] == replies[1]


def checkpointing_changes_nothing(precision):
    results = []
    for changes in ({}, {"gradient_checkpointing": True}):
        results.append(step(toy.toy_model(dtype=torch.float32, **changes), batch(), DEVICE, precision))
    assert abs(results[0][0] - results[1][0]) <= 1e-4 * results[0][0]
    assert float((results[0][1] - results[1][1]).norm() / results[0][1].norm()) <= 1e-3


def a_gate_reads_the_same():
    torch.manual_seed(0)
    gate, ids = Gate(300, 3), torch.randint(1, 300, (4, 9))
    expected = gate(ids, ids > 5)
    torch.testing.assert_close(gate.to(DEVICE)(ids.to(DEVICE), (ids > 5).to(DEVICE)).cpu(), expected, rtol=1e-3,
                               atol=1e-4)


def no_wait_in_a_forward_pass(changes):
    """CUDA's own alarm for what makes the host wait."""
    if DEVICE.type != "cuda":
        return
    model, given = toy.toy_model(dtype=torch.float32, **changes).train().to(DEVICE), on(DEVICE, batch())
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**given).total_loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def laws(precision, quick):
    variants = {name: changes for name, changes in toy.VARIANTS.items() if not quick or name in FEW}
    works = {f"step {name}": lambda changes=changes: compared(toy.toy_model(**changes), precision)
             for name, changes in variants.items()}
    works |= {kind: lambda kind=kind: adapted(kind, precision) for kind in ADAPTERS}
    works["grouped products"] = lambda: grouped_is_the_loop(DTYPES[precision])
    works["checkpointing"] = lambda: checkpointing_changes_nothing(precision)
    if precision == "float32":
        for title, law in (("packed", packed_is_unpacked), ("cached", cached_is_full),
                           ("no wait", no_wait_in_a_forward_pass)):
            works |= {f"{title} {name}": lambda law=law, changes=changes: law(changes)
                      for name, changes in variants.items()}
        works |= {"speculative": speculative_is_plain, "gate": a_gate_reads_the_same}
    found, wrong = run(works)
    distances = [off for off in found.values() if off]
    return {"laws": len(works), "hold": len(found), "failed": wrong,
            "worst_loss": max((a for a, _ in distances), default=None),
            "worst_gradient": max((b for _, b in distances), default=None)}


if __name__ == "__main__":
    asked({f"laws_{precision}": lambda quick, precision=precision: laws(precision, quick) for precision in DTYPES})
