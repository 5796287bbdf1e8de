"""A head that also counts: head 1 mixed with what followed the last one, two ... tokens in the training text.

A transformer of a few minutes has seen each rare combination once or not at all, while a table of counts knows them all
after one pass that takes seconds. So the next token's probability is a mixture

    p(y) = w_0 softmax(fc1 h)(y) + w_2 p_2(y) + ... + w_n p_n(y)

where p_k(y) is the share of y among the tokens that followed the last k - 1 tokens, and a small gate reads the
weights w from the hidden state and from how much each table knows here. Every part is a distribution, so the mixture
is one. Where text that was counted is trained on or scored, each position is taken out of the tables for its own
prediction; else the gate would trust them blindly. So the head remembers which documents its tables have counted.

Mixtures of n-grams: Jelinek & Mercer 1980; with a network: Mikolov et al. 2011. Beside the hidden states the head reads
`before`, the ids read last.

N positions, d width, V vocabulary, P = n - 1 ids of `before`, K = orders 2 .. n, C contexts and M pairs (context, next
token) of one order, D documents.
"""

import torch
from torch import nn
from torch.nn import functional as F

from model.kernels.cross_entropy import chosen, linear_cross_entropy, plain_losses
from model.lora import in_effect

NO_ID = 0         # the id before a document's first token: padding, which no text contains
GATE = 64           # inner width of the gate
TINY = 1e-30
BUFFERS = ("contexts", "starts", "pairs", "counts", "totals")
EVERY_ORDER = 127   # left out of the tables of every order
UNLISTED = -2 ** 63     # among the documents' keys: others were counted too, by a version that kept no list
MIX = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB, 0x2545F4914F6CDD1D     # odd numbers without a pattern


class Table(nn.Module):
    """Order n: what followed each run of n - 1 tokens. Buffers, as sorted integers; a pair seen less than `least`
    times is dropped, or the long runs that occur once would be most of the file."""

    def __init__(self, order, vocab_size):
        super().__init__()
        self.order, self.vocab_size, self.least = order, vocab_size, 1 if order <= 3 else 2
        one = torch.zeros(1, dtype=torch.long)
        self.hold(one - 1, torch.zeros(2, dtype=torch.int32), one - 1, one.int())    # a context that never occurs

    def hold(self, contexts, starts, pairs, counts):
        """contexts (C,) sorted keys; starts (C + 1,) their first pair; pairs (M,) sorted, row * V + next; counts."""
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
        """before (N, P): the last tokens, the nearest first -> (N,), exact: digits to the base V."""
        key = before[:, 0].contiguous()
        for past in range(1, self.order - 1):
            key = key * self.vocab_size + before[:, past]
        return key

    def count(self, before, ids):
        """Add to the table: ids (T,) and for each the tokens before it, as in `key`."""
        size = self.vocab_size
        contexts, rows = torch.unique(self.key(before), return_inverse=True)
        pairs, counts = torch.unique(rows * size + ids, return_counts=True)
        held = self.pairs[self.pairs >= 0]                             # a table that is still empty has none
        contexts, row = torch.unique(torch.cat((self.contexts, contexts)), return_inverse=True)
        old, new = row.split([len(self.contexts), len(row) - len(self.contexts)])
        moved = old[held // size] * size + held % size, new[pairs // size] * size + pairs % size
        pairs, place = torch.unique(torch.cat(moved), return_inverse=True)
        counts = torch.cat((self.counts[:len(held)].long(), counts))
        counts = counts.new_zeros(len(pairs)).index_add_(0, place, counts)
        kept = counts >= self.least
        pairs, counts = pairs[kept], counts[kept]
        used, rows = torch.unique_consecutive(pairs // size, return_inverse=True)
        if len(used):
            starts = F.pad(torch.bincount(rows).cumsum(0), (1, 0))
            self.hold(contexts[used], starts.int(), rows * size + pairs % size, counts.int())

    def find(self, before):
        """-> row (N,) of each context, known (N,) bool."""
        key = self.key(before)
        row = torch.searchsorted(self.contexts, key).clamp_max(len(self.contexts) - 1)
        return row, self.contexts[row] == key

    def facts(self, before, target=None, left_out=None):
        """-> total (N,) tokens that followed here, kinds (N,) of them, times (N,) that it was `target`.

        left_out (N,): up to which order `target` is taken out this one time, None = nowhere. Where counts of several
        texts were added up they may then be one too few, as each text's single pairs were dropped; no target sees
        itself.
        """
        row, known = self.find(before)
        total = self.totals[row].float() * known
        kinds = (self.starts[row + 1] - self.starts[row]).float() * known
        if target is None:
            return total, kinds, None
        times = self.times(row, known, target)
        if left_out is not None:
            fewer = torch.where(left_out < self.order, times, torch.where(times > self.least, times - 1, 0.0))
            total, kinds, times = total - (times - fewer), kinds - ((times > 0) & (fewer == 0)).float(), fewer
        return total, kinds, times

    def times(self, row, known, target):
        """How often `target` followed the context in a row that is known, 0 elsewhere; shapes are broadcast."""
        pair = row * self.vocab_size + target
        place = torch.searchsorted(self.pairs, pair).clamp_max(len(self.pairs) - 1)
        return self.counts[place].float() * (known & (self.pairs[place] == pair))

    def add_to(self, mixture, before, weight):
        """mixture (N, V) += weight (N,) * p_n, for every possible next token."""
        return (self.add_found if mixture.device.type == "cpu" else self.add_all)(mixture, before, weight)

    def add_all(self, mixture, before, weight):
        """Every token is looked up: more work, but no device is asked how many have followed."""
        row, known = (found[:, None] for found in self.find(before))
        times = self.times(row, known, torch.arange(self.vocab_size, device=row.device)).to(mixture.dtype)
        return mixture + times / self.totals[row].clamp_min(1) * weight[:, None]

    def add_found(self, mixture, before, weight):
        """Only the tokens that have followed."""
        row, known = self.find(before)
        first = self.starts[row].long()
        sizes = (self.starts[row + 1] - self.starts[row]).long() * known
        owner = torch.repeat_interleave(torch.arange(len(row), device=row.device), sizes)
        pair = first[owner] + torch.arange(len(owner), device=row.device) - (sizes.cumsum(0) - sizes)[owner]
        share = self.counts[pair].to(mixture.dtype) / self.totals[row[owner]].to(mixture.dtype)
        return mixture.index_put((owner, self.pairs[pair] % self.vocab_size), share * weight[owner], accumulate=True)


class CountedHead(nn.Linear):
    """`fc1` with tables beside it. `documents` (D,): the sorted keys of what they have counted, see `document_keys`."""

    def __init__(self, config):
        super().__init__(config.d_model, config.vocab_size, bias=False)
        self.past = config.counted - 1
        self.tables = nn.ModuleList(Table(order, config.vocab_size) for order in range(2, config.counted + 1))
        read = config.d_model + 2 * self.past
        self.gate = nn.Sequential(nn.Linear(read, GATE), nn.SiLU(), nn.Linear(GATE, 1 + self.past))
        self.weight_lora = nn.ModuleList()                                        # see model/lora.py
        self.register_buffer("documents", torch.zeros(0, dtype=torch.long))

    def _load_from_state_dict(self, state, prefix, *rest):
        """As the tables; an older file has no list."""
        known = self.documents if len(self.documents) else torch.tensor([UNLISTED])
        known = state.setdefault(prefix + "documents", known)
        self.documents = torch.empty_like(known, device=self.documents.device)
        super()._load_from_state_dict(state, prefix, *rest)

    @torch.no_grad()
    def count(self, ids, positions):
        """Add to the tables: ids, positions (T,) of documents one after the other, positions from 0 on in each."""
        self.documents = torch.cat((self.documents, document_keys(ids, positions))).unique()
        before, inner = last_ids(ids.roll(1), positions - 1, self.past), positions > 0
        before, ids = before[inner], ids[inner]
        for table in self.tables:
            table.count(before, ids)

    def tables_state(self):
        """{name: tensor} of all that was counted."""
        learned = dict(self.named_parameters())
        return {name: tensor.cpu() for name, tensor in self.state_dict().items() if name not in learned}

    def take_tables(self, counted):
        """What `tables_state` of another head of this shape says."""
        self.load_state_dict({**self.state_dict(), **counted})

    @torch.no_grad()
    def holds(self, ids, positions):
        """Which of these documents (as in `count`) the tables have counted -> (D,) bool.

        Where they do not say, the text does: all pairs of what was counted are known, of another text hardly ever.
        """
        listed = torch.isin(document_keys(ids, positions), self.documents)
        if listed.all() or UNLISTED not in self.documents:
            return listed
        before, owner = last_ids(ids.roll(1), positions - 1, self.past), (positions == 0).cumsum(0) - 1
        known = torch.stack([table.facts(before, ids)[2] > 0 for table in self.tables if table.least == 1]).all(0)
        missing = torch.zeros_like(listed, dtype=torch.long).index_add_(0, owner, (~known & (positions > 0)).long())
        return listed | (missing == 0)

    def forward(self, hidden, before):
        """hidden (N, d), before (N, P) -> log-probabilities (N, V)."""
        logits = sum((lora(hidden) for lora in self.weight_lora), F.linear(hidden, self.weight))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        totals, kinds, _ = zip(*(table.facts(before) for table in self.tables))
        weights = self.weights(hidden, totals, kinds)
        mixture = (logits.log_softmax(-1) + weights[:, :1]).exp()
        for table, weight in zip(self.tables, weights[:, 1:].exp().unbind(-1)):
            mixture = table.add_to(mixture, before, weight)
        return mixture.clamp_min(TINY).log()

    def weights(self, hidden, totals, kinds):
        """hidden (N, d), totals and kinds: (N,) of each order -> log of the mixture's weights (N, 1 + K); a context
        that is not known has none."""
        totals, kinds = torch.stack(totals, -1), torch.stack(kinds, -1)
        facts = torch.cat((totals.log1p(), kinds.log1p()), -1).to(hidden.dtype)
        scores = self.gate(torch.cat((hidden, facts), -1))
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return scores.masked_fill(F.pad(totals == 0, (1, 0)), float("-inf")).log_softmax(-1)

    def shares(self, hidden, before, labels, left_out):
        """hidden (N, d), before (N, P), labels (N,), left_out (N,) or None, see Table.facts -> logs of the network's
        weight and of the tables' part of p(label), (N,) each."""
        totals, kinds, times = zip(*(table.facts(before, labels, left_out) for table in self.tables))
        weights = self.weights(hidden, totals, kinds)
        shares = torch.stack([t / total.clamp_min(1) for t, total in zip(times, totals)], -1).to(weights.dtype)
        return weights[:, 0], (weights[:, 1:].exp() * shares).sum(-1).clamp_min(TINY).log()

    def cross_entropy(self, hidden, labels, before, left_out=None):
        """Sum of -log p(label) over labels >= 0 and how many there were, as `linear_cross_entropy`."""
        hidden, before, labels, left_out = chosen(labels, hidden, before, labels, left_out)
        network, counted = self.shares(hidden, before, labels.clamp_min(0), left_out)
        return linear_cross_entropy(hidden, in_effect(self.weight, self.weight_lora), labels, network, counted)

    def losses(self, hidden, labels, before, left_out=None):
        """-log p(label) of each position (N,), 0 where labels are negative; plain autograd."""
        network, counted = self.shares(hidden, before, labels.clamp_min(0), left_out)
        network = network - plain_losses(F.linear(hidden, in_effect(self.weight, self.weight_lora)), labels)
        return -torch.logaddexp(network, counted) * (labels >= 0)


def last_ids(ids, positions, count):
    """ids, positions (N,) of packed documents -> the id at each place and the `count` - 1 before it (N, count)."""
    return torch.stack([ids] + [torch.where(positions >= j, ids.roll(j), NO_ID) for j in range(1, count)], -1)


def document_keys(ids, positions):
    """ids, positions (T,) of documents one after the other -> (D,) int64: one number for what each of them holds."""
    a, b, c, d = MIX
    mixed = ids * a + positions * b
    mixed = (mixed ^ (mixed >> 31)) * c
    mixed = (mixed ^ (mixed >> 29)) * d
    first = positions == 0
    keys = torch.zeros(int(first.sum()), dtype=torch.long, device=ids.device)
    return keys.index_add_(0, first.cumsum(0) - 1, mixed ^ (mixed >> 32))


def orders_held(start, offset):
    """Up to which order the tables hold the target after place `offset` of a piece that begins at token `start` of a
    counted document, (N,) each -> (N,) int8: what stands before a later piece is not seen, so its first long contexts
    were never counted."""
    return torch.where(start > 0, (offset + 2).clamp_max(EVERY_ORDER), EVERY_ORDER).to(torch.int8)
