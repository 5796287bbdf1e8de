"""A plain training step of the same model, as one would first write it: what the fast one is measured against.

Rows padded to one length, float32 throughout, a loop over experts that picks its tokens with boolean masks, all logits
of both heads, autograd for everything, PyTorch's AdamW. It computes with a TinySeek's own parameters, so that the tests
can ask both for the same loss and the same gradients. Its steps run in a process of their own, with the allocator as
everybody has it. B rows, T positions, E experts, K of them per token, d width, V vocabulary.
"""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

import torch
from torch.nn import functional as F

from model import ModelConfig, TinySeek
from model.layers import rotary_tables, rotate


def rms(x, norm):
    return F.rms_norm(x, norm.weight.shape, norm.weight, norm.eps)


def attention(x, layer, tables):
    """x (B, T, d) -> (B, T, d): MLA over whole rows. Padding stands at a row's end, where no real query looks."""
    c, (rows, length, _) = layer.config, x.shape
    q = layer.q_up(rms(layer.q_down(x), layer.q_norm)).view(-1, c.n_head, layer.key_width)
    latent, turning = layer.kv_down(x).split([c.d_c, c.d_r], -1)
    key, value = layer.kv_up(rms(latent, layer.kv_norm)).view(-1, c.n_head, 2 * c.d_h).split(c.d_h, -1)
    turning = rotate(turning.reshape(-1, 1, c.d_r), tables).expand(-1, c.n_head, -1)
    q = torch.cat((q[..., :c.d_h], rotate(q[..., c.d_h:], tables)), -1)
    q, k, v = (t.view(rows, length, c.n_head, -1).transpose(1, 2) for t in (q, torch.cat((key, turning), -1), value))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=layer.scale)
    return layer.out(mixed.transpose(1, 2).flatten(2))


def feed(x, up, down):
    gate, value = F.linear(x, up).chunk(2, -1)
    return F.linear(F.silu(gate) * value, down)


def experts(x, layer, valid):
    """x (N, d), valid (N,) -> (N, d), Lexp of the real tokens."""
    c = layer.config
    probabilities = F.linear(x, layer.router.weight).softmax(-1)
    weights, chosen = probabilities.topk(c.keep, -1)
    mixed = feed(x, layer.shared.up.weight, layer.shared.down.weight)
    for e in range(c.other_experts):
        mask = (chosen == e).any(-1)
        weight = (weights * (chosen == e)).sum(-1)[mask]
        mixed = mixed.index_add(0, mask.nonzero()[:, 0], feed(x[mask], layer.up[e], layer.down[e]) * weight[:, None])
    load = F.one_hot(chosen[valid], c.other_experts).sum((0, 1)).float()
    balance = c.other_experts * (load / load.sum() * probabilities[valid].mean(0)).sum() - 1
    return mixed, balance


def loss(model, ids, labels_1, labels_2, valid):
    """Everything (B, T); labels shifted, negative = no target -> CE(head 1) + CE(head 2) + alpha * sum of Lexp."""
    c, balance = model.config, 0.0
    x = model.embed(ids)
    tables = rotary_tables(torch.arange(ids.shape[1]).repeat(len(ids)), c.d_r, c.ro_theta)
    for block in model.blocks:
        x = x + attention(rms(x, block.attention_norm), block.attention, tables)
        mixed = rms(x, block.mlp_norm)
        if c.use_moe:
            fed, share = experts(mixed.flatten(0, 1), block.mlp, valid.flatten())
            x, balance = x + fed.view_as(x), balance + share
        else:
            x = x + feed(mixed, block.mlp.up.weight, block.mlp.down.weight)
    x = rms(x, model.norm)
    total = c.alpha * balance
    for head, labels in zip(model.heads(), (labels_1, labels_2)):
        total = total + F.cross_entropy(head(x).flatten(0, 1), labels.flatten(), ignore_index=-100)
    return total


class Yardstick:
    """A process that trains in plain steps when asked. batches: {name: list of (ids, labels_1, labels_2, valid)}, used
    by turns."""

    def __init__(self, config, batches, folder):
        path = Path(folder) / "yardstick.pt"
        torch.save({"config": config.to_dict(), "batches": batches, "threads": torch.get_num_threads()}, path)
        self.process = subprocess.Popen([sys.executable, __file__, str(path)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()

    def steps(self, name, count):
        """So many training steps on the next batches of that name -> seconds of each."""
        self.process.stdin.write((name + "\n") * count)
        self.process.stdin.flush()
        return [float(self.process.stdout.readline()) for _ in range(count)]


def serve(path):
    given = torch.load(path, weights_only=True)
    torch.set_num_threads(given["threads"])
    torch.manual_seed(0)
    model = TinySeek(ModelConfig.from_dict(given["config"]))
    optimizer, done = torch.optim.AdamW(model.parameters(), 3e-4), dict.fromkeys(given["batches"], 0)
    for name in map(str.strip, sys.stdin):
        batches = given["batches"][name]
        batch, start = batches[done[name] % len(batches)], time.perf_counter()
        done[name] += 1
        optimizer.zero_grad()
        value = loss(model, *batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        value.item()
        print(time.perf_counter() - start, flush=True)


def padded(cache, documents, width, start, rows):
    """The next `rows` documents from number `start` on, each in a row of its own of `width` -> batch, real tokens in
    it."""
    ids, valid = torch.zeros(rows, width, dtype=torch.long), torch.zeros(rows, width, dtype=torch.bool)
    labels = [torch.full((rows, width), -100) for _ in range(2)]
    for row in range(rows):
        numbers, learned = (torch.from_numpy(t) for t in cache.document(int(documents[(start + row) % len(documents)])))
        size = min(width, len(numbers) - 1)
        ids[row, :size], valid[row, :size] = numbers[:size], True
        for ahead, label in zip((1, 2), labels):
            goal = torch.where(learned, numbers, -100)[ahead:size + ahead]
            label[row, :len(goal)] = goal
    return (ids, *labels, valid), int(valid.sum())


if __name__ == "__main__":
    serve(sys.argv[1])
