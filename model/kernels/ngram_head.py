"""A head that also counts: head 1 mixed with what followed the last one, two ... tokens in the training text.

A transformer of a few minutes has seen each rare combination once or not at all, while a table of counts knows them all after one
pass that takes seconds. So the next token's probability is a mixture

    p(y) = w_0 softmax(fc1 h)(y) + w_2 p_2(y) + ... + w_n p_n(y)

where p_k(y) is the share of y among the tokens that followed the last k - 1 tokens, and a small gate reads the weights w from the
hidden state and from how much each table knows here. Every part is a distribution, so the mixture is one. In training on the very
text that was counted each position is taken out of the tables for its own prediction; else the gate would trust them blindly.

Mixtures of n-grams: Jelinek & Mercer 1980; with a network: Mikolov et al. 2011. The head finds the last tokens' ids in columns that
`tagged` appends to the hidden states, so whoever holds hidden states can ask for logits as of any other head.

N positions, d width, V vocabulary, K = orders 2 .. n, C contexts and M pairs (context, next token) of one order.
"""

import torch
from torch import nn
from torch.nn import functional as F

from model.kernels.cross_entropy import WeightGradient, chunk_size, softmax_and_norm
from model.layers import compute_dtype

NOTHING = 0         # the id before a document's first token: padding, which no text contains
DIGIT = 256         # ids travel as two digits: exact in every floating-point type
GATE = 64           # inner width of the gate
TINY = 1e-30
BUFFERS = ("contexts", "starts", "pairs", "counts", "totals")


class Table(nn.Module):
    """Order n: what followed each run of n - 1 tokens. Buffers, as sorted integers; a pair seen less than `least` times is left out,
    or the long runs that occur once would be most of the file."""

    def __init__(self, order, vocab_size):
        super().__init__()
        self.order, self.vocab_size, self.least = order, vocab_size, 1 if order <= 3 else 2
        one = torch.zeros(1, dtype=torch.long)
        self.hold(one - 1, torch.zeros(2, dtype=torch.int32), one - 1, one.int())    # a context that never occurs

    def hold(self, contexts, starts, pairs, counts):
        """contexts (C,) sorted keys; starts (C + 1,) their first pair; pairs (M,) sorted row * V + next token; counts (M,)."""
        sums = F.pad(counts.long().cumsum(0), (1, 0))
        totals = (sums[starts[1:].long()] - sums[starts[:-1].long()]).int()
        for name, tensor in zip(BUFFERS, (contexts, starts, pairs, counts, totals)):
            self.register_buffer(name, tensor)

    def _load_from_state_dict(self, state, prefix, *rest):
        """The tables of a checkpoint have whatever size its text gave them."""
        for name in BUFFERS:
            if prefix + name in state:
                setattr(self, name, torch.empty_like(state[prefix + name], device=getattr(self, name).device))
        super()._load_from_state_dict(state, prefix, *rest)

    def key(self, before):
        """before: the n - 1 last tokens (N,) each, the nearest first -> (N,), exact: digits to the base V."""
        key = before[0]
        for past in before[1:self.order - 1]:
            key = key * self.vocab_size + past
        return key

    def count(self, before, ids):
        """Fill the table: ids (T,) and for each the tokens before it, as in `key`."""
        contexts, rows = torch.unique(self.key(before), return_inverse=True)
        pairs, counts = torch.unique(rows * self.vocab_size + ids, return_counts=True)
        kept = counts >= self.least
        pairs, counts = pairs[kept], counts[kept]
        used, rows = torch.unique_consecutive(pairs // self.vocab_size, return_inverse=True)
        if len(used):
            sizes = torch.bincount(rows)
            self.hold(contexts[used], F.pad(sizes.cumsum(0), (1, 0)).int(), rows * self.vocab_size + pairs % self.vocab_size, counts.int())

    def find(self, before):
        """-> row (N,) of each context, known (N,) bool."""
        key = self.key(before)
        row = torch.searchsorted(self.contexts, key).clamp_max(len(self.contexts) - 1)
        return row, self.contexts[row] == key

    def facts(self, before, target=None, left_out=False):
        """-> total (N,) tokens that followed here, kinds (N,) of them, times (N,) that it was `target`. left_out: less this one time."""
        row, known = self.find(before)
        total = self.totals[row].float() * known
        kinds = (self.starts[row + 1] - self.starts[row]).float() * known
        if target is None:
            return total, kinds, None
        pair = row * self.vocab_size + target
        at = torch.searchsorted(self.pairs, pair).clamp_max(len(self.pairs) - 1)
        times = self.counts[at].float() * (known & (self.pairs[at] == pair))
        if left_out:
            fewer = torch.where(times > self.least, times - 1, 0.0)
            total, kinds, times = total - (times - fewer), kinds - ((times > 0) & (fewer == 0)).float(), fewer
        return total, kinds, times

    def add_to(self, mixture, before, weight):
        """mixture (N, V) += weight (N,) * p_n, for every possible next token."""
        row, known = self.find(before)
        first = self.starts[row].long()
        sizes = (self.starts[row + 1] - self.starts[row]).long() * known
        owner = torch.repeat_interleave(torch.arange(len(row), device=row.device), sizes)
        pair = first[owner] + torch.arange(len(owner), device=row.device) - (sizes.cumsum(0) - sizes)[owner]
        share = self.counts[pair].to(mixture.dtype) / self.totals[row[owner]].to(mixture.dtype)
        return mixture.index_put((owner, self.pairs[pair] % self.vocab_size), share * weight[owner], accumulate=True)


class CountedHead(nn.Linear):
    """`fc1` with tables beside it: tagged hidden states (..., d + 2 * (n - 1)) -> log-probabilities (..., V)."""

    def __init__(self, config):
        super().__init__(config.d_model, config.vocab_size, bias=False)
        self.past = config.counted - 1
        self.tables = nn.ModuleList(Table(order, config.vocab_size) for order in range(2, config.counted + 1))
        self.gate = nn.Sequential(nn.Linear(config.d_model + 2 * self.past, GATE), nn.SiLU(), nn.Linear(GATE, 1 + self.past))
        self.left_out = False       # set while training on the text that was counted

    @torch.no_grad()
    def count(self, ids, positions):
        """ids, positions (T,): the training documents one after the other, positions counting from 0 in each."""
        before = [b[positions > 0] for b in before_in_batch(ids.roll(1), positions - 1, self.past)]
        ids = ids[positions > 0]
        for table in self.tables:
            table.count(before, ids)

    def forward(self, tagged):
        hidden, before = self.untag(tagged.reshape(-1, tagged.shape[-1]))
        logits = F.linear(hidden, self.weight)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        totals, kinds, _ = zip(*(table.facts(before) for table in self.tables))
        weights = self.weights(hidden, totals, kinds)
        mixture = (logits.log_softmax(-1) + weights[:, :1]).exp()
        for table, weight in zip(self.tables, weights[:, 1:].exp().unbind(-1)):
            mixture = table.add_to(mixture, before, weight)
        return mixture.clamp_min(TINY).log().view(*tagged.shape[:-1], -1)

    def weights(self, hidden, totals, kinds):
        """hidden (N, d), totals and kinds: (N,) of each order -> log of the mixture's weights (N, 1 + K); unknown contexts get none."""
        totals, kinds = torch.stack(totals, -1), torch.stack(kinds, -1)
        facts = torch.cat((totals.log1p(), kinds.log1p()), -1).to(hidden.dtype)
        scores = self.gate(torch.cat((hidden, facts), -1))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return scores.masked_fill(F.pad(totals == 0, (1, 0)), float("-inf")).log_softmax(-1)

    def cross_entropy(self, tagged, labels):
        """Sum of -log p(label) over labels >= 0 and how many there were, as `linear_cross_entropy`; never all logits at once."""
        picked = (labels >= 0).nonzero().squeeze(1)
        if len(picked) < len(labels):
            tagged, labels = tagged.index_select(0, picked), labels.index_select(0, picked)
        hidden, before = self.untag(tagged)
        totals, kinds, times = zip(*(table.facts(before, labels, self.left_out and self.training) for table in self.tables))
        weights = self.weights(hidden, totals, kinds)
        shares = torch.stack([t / total.clamp_min(1) for t, total in zip(times, totals)], -1).to(weights.dtype)
        counted = (weights[:, 1:].exp() * shares).sum(-1).clamp_min(TINY).log()
        total = _MixedCrossEntropy.apply(hidden, self.weight, labels, weights[:, 0], counted, compute_dtype(hidden))
        return total, torch.full((), len(labels), device=hidden.device)

    def tagged(self, hidden, before):
        """hidden (N, d) and the ids of the last tokens, the nearest first, (N,) each -> (N, d + 2 * past)."""
        digits = torch.stack([digit for ids in before for digit in (ids % DIGIT, ids // DIGIT)], -1)
        return torch.cat((hidden, digits.to(hidden.dtype)), -1)

    def untag(self, tagged):
        hidden, digits = tagged.split([self.in_features, 2 * self.past], -1)
        digits = digits.detach().long()
        return hidden, [digits[:, 2 * i] + DIGIT * digits[:, 2 * i + 1] for i in range(self.past)]


class _MixedCrossEntropy(torch.autograd.Function):
    """Sum of -log(exp(own) * softmax(hidden @ weight.T)[target] + exp(counted)). hidden (N, d), weight (V, d), the others (N,).

    As the plain one it makes the gradients in the forward pass, chunk by chunk: a token's usual gradient times the share of its
    probability that came from the network.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, own, counted, dtype):
        h, w, wide = hidden.to(dtype), weight.to(dtype), torch.promote_types(dtype, torch.float32)
        losses = torch.empty(len(h), dtype=wide, device=h.device)
        size = chunk_size(h.device)
        shares, grad_h, of_weight = torch.empty_like(losses), torch.empty_like(h), WeightGradient(h, len(w), size, wide)
        for start in range(0, len(h), size):
            part = slice(start, start + size)
            goal = targets[part, None]
            logits = h[part] @ w.t()                                              # (C, V)
            error, norm = softmax_and_norm(logits, wide)
            network = (logits.gather(1, goal).to(wide) - norm)[:, 0] + own[part]
            torch.logaddexp(network, counted[part].to(wide), out=losses[part])
            shares[part] = (network - losses[part]).exp()
            error.scatter_add_(1, goal, torch.full_like(goal, -1, dtype=wide))
            torch.mm(of_weight.add(start, error.mul_(shares[part, None])), w, out=grad_h[part])
        ctx.save_for_backward(grad_h, of_weight.total, shares)
        ctx.dtypes = hidden.dtype, weight.dtype
        return -losses.sum()

    @staticmethod
    def backward(ctx, grad):
        grad_h, grad_w, shares = ctx.saved_tensors
        return grad_h.to(ctx.dtypes[0]) * grad, (grad_w * grad).to(ctx.dtypes[1]), None, -shares * grad, (shares - 1) * grad, None


def before_in_batch(ids, positions, count):
    """ids, positions (N,) of packed documents -> the token at each place and the `count` - 1 before it, (N,) each."""
    return [ids] + [torch.where(positions >= j, ids.roll(j), NOTHING) for j in range(1, count)]
