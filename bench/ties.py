"""Where a greedy reply hangs on rounding: two logits, or the last chosen and the first refused expert, closer than
CLOSE."""

import torch

CLOSE = 1e-4


@torch.inference_mode()
def first_tie(model, prompt, reply, close=CLOSE, reserved=16, stop=1):
    """Index of the first id of `reply` whose choice rests on a tie, None if no choice does; len(reply) means the end
    after it.

    A tie between experts counts for every id from its position on, a position inside the prompt for the whole reply:
    what is written later reads it.
    """
    margins, handles = [], []
    keep = model.config.keep

    def watch(router, _, out):
        scores = out[3].sigmoid() + router.bias if model.config.router == "sigmoid" else out[2]
        best = scores.topk(min(keep + 1, scores.shape[-1]), -1).values
        if best.shape[-1] > keep:
            margins.append(best[:, keep - 1] - best[:, keep])

    for block in model.blocks:
        if hasattr(block.mlp, "router"):
            handles.append(block.mlp.router.register_forward_hook(watch))
    try:
        logits = model(torch.tensor([[*prompt, *reply]]), return_logits=True).logits_1[0, len(prompt) - 1:].clone()
    finally:
        for handle in handles:
            handle.remove()
    logits[:, [i for i in range(min(reserved, logits.shape[1])) if i != stop]] = float("-inf")
    best = logits.topk(2, -1).values
    # (R + 1,): the choice of each id, and of the end
    tied = best[:, 0] - best[:, 1] < close
    if margins:
        routed = (torch.stack(margins) < close).any(0)                            # (P + R,)
        tied |= routed[len(prompt) - 1:]
        tied[0] |= routed[:len(prompt)].any()
    places = tied.nonzero()
    return int(places[0]) if len(places) else None
