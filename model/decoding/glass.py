"""What goes on inside while a reply is written: one plain pass over prompt and reply that keeps what is usually let go.

R ids of the reply, T of prompt and reply, V vocabulary, K experts of a token, L layers. Row r of everything is the
step that wrote reply[r]: it reads the id before.
"""

from dataclasses import dataclass

import torch

from model.attention import attention_bias
from model.kernels.ngram_head import last_ids
from model.segments import Segments


@dataclass
class Inside:
    """logits_1 (R, V): head 1; logits_2 (R - 1, V): what head 2 had guessed two steps ahead for reply[1:], None without
    that head; experts: per layer (experts (R, K), weights (R, K)), or None where the layer is dense; attention (R, T):
    how much of its attention one head gave to each id, 0 for those that come later."""

    logits_1: torch.Tensor
    logits_2: torch.Tensor | None
    experts: list
    attention: torch.Tensor


@torch.inference_mode()
def look_inside(model, prompt, reply, layer, head):
    """prompt, reply: lists of ids, neither empty; layer, head: whose attention. The model must be in eval mode."""
    ids = torch.tensor([*prompt, *reply], device=model.embed.weight.device)
    positions, steps = torch.arange(len(ids), device=ids.device), slice(len(prompt) - 1, len(ids) - 1)
    x, tables, layout = model.embedded(ids, positions), model.tables(positions), Segments.dense(1, len(ids))
    experts = []
    for number, block in enumerate(model.blocks):
        if number == layer:
            attention = weights_of(block, x, tables, positions, steps, head)
        x, _, routings = block(x, tables, layout, None, 1)
        experts.append((routings[0].experts[steps], routings[0].weights[steps]) if routings else None)
    hidden, past = model.norm(x), model.config.counted - 1
    before = [last_ids(ids, positions, past)[steps]] if past > 0 else []
    guesses = None
    if model.config.use_fc2:
        guesses = model.fc2(model.ahead(hidden[steps][:-1], ids[len(prompt):-1]))
    return Inside(model.fc1(hidden[steps], *before), guesses, experts, attention)


def weights_of(block, x, tables, positions, steps, head):
    """x (T, d): what the block reads -> (R, T): one head's attention from the positions `steps` to all."""
    attention, x = block.attention, block.attention_norm(x)
    query = attention.queries(x, tables)[steps, head]                             # (R, d_k)
    keys = attention.expand(*attention.latents(x, tables))[0][:, head]            # (T, d_k)
    bias = attention_bias(attention.config, attention.config.n_head, positions[steps], positions)
    return (query @ keys.T * attention.scale + bias[head if len(bias) > 1 else 0]).float().softmax(-1)
