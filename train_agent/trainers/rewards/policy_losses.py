"""What is learned from replies that got a reward, as plain functions of log-probabilities. No model, no data.

A group is G replies to one question. Its replies' advantages say how much better each is than the group:

    grpo       A = (R - mean) / std   -min(r A, clip(r, 1 - low, 1 + high) A)    a reply's mean, then the mean of all
               DeepSeekMath, arXiv:2402.03300
    dr_grpo    A = R - mean           the same                                   a reply's sum / the longest reply
               allowed: long wrong replies are not cheaper than short ones. arXiv:2503.20783
    cispo      A = (R - mean) / std   -sg(min(r, 1 + high)) A log p              the mean of all tokens: no token's
               gradient is cut off, only its weight is. MiniMax-M1, arXiv:2506.13585
    reinforce  A = R - mean           -A log p                                   a reply's sum: the gradient of the
               mean reward itself, with the group's mean as baseline. Williams 1992

r = p / p_old, the same token's probability now and when the reply was sampled; std: of the population; sg: no gradient.
"""

import torch

STANDARDISED = ("grpo", "cispo")
EQUAL = 1e-9            # rewards that differ by less are the same reward


def advantages(kind, rewards):
    """rewards: list of floats of one group, None = no sample -> list of floats, None where there is no sample; None
    where nothing can be learned, because fewer than two are left or all are equal."""
    known = [r for r in rewards if r is not None]
    if len(known) < 2 or max(known) - min(known) < EQUAL:
        return None
    mean = sum(known) / len(known)
    scale = (sum((r - mean) ** 2 for r in known) / len(known)) ** 0.5 if kind in STANDARDISED else 1.0
    return [None if r is None else (r - mean) / scale for r in rewards]


def token_losses(kind, log_p, old, advantage, low, high):
    """log_p, old, advantage (N,): each token's -> its loss (N,), and whether clipping stopped or capped it (N,) bool.

    log_p has a gradient, the others have none.
    """
    ratio = (log_p - old).exp()
    if kind == "reinforce":
        return -advantage * log_p, torch.zeros_like(ratio, dtype=torch.bool)
    if kind == "cispo":
        return -ratio.detach().clamp_max(1 + high) * advantage * log_p, ratio.detach() > 1 + high
    clipped = ratio.clamp(1 - low, 1 + high)
    stopped = torch.where(advantage > 0, ratio > 1 + high, ratio < 1 - low) & (advantage != 0)
    return -torch.minimum(ratio * advantage, clipped * advantage), stopped


def token_weights(kind, sizes, longest, replies, tokens):
    """sizes (N,): tokens in the reply of each token; replies, tokens: of the whole step; longest: a reply may be ->
    what each token's loss is multiplied with, (N,), so that a step's sum divided by `replies` is the loss."""
    if kind == "grpo":
        return 1 / sizes
    if kind == "cispo":
        return torch.full_like(sizes, replies / max(1, tokens))
    return torch.full_like(sizes, 1 / longest if kind == "dr_grpo" else 1.0)


def k3(log_p, reference):
    """(N,) each token's estimate of KL(policy | reference): never negative, unbiased, little noise (Schulman's k3).

    x = reference - log_p;  exp(x) - x - 1
    """
    more = reference - log_p
    return more.exp() - more - 1


def entropies(logits):
    """(N, V) -> (N,): the entropy of each distribution in nats; -inf: an id that cannot come."""
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p.masked_fill(log_p == float("-inf"), 0.0)).sum(-1)
