"""The gate: a small classifier that reads the last user turn and picks one expert for the whole reply.

B turns, T tokens, h hidden width, X experts.
"""

import torch
from torch import nn
from torch.nn import functional as F

WINDOW = 3     # tokens that one feature sees
LONGEST_TURN, TOGETHER = 1024, 64     # tokens of a turn that are read, from its end; turns at a time


class Gate(nn.Module):
    """Embeddings, one convolution, the maximum over the turn, a linear layer (Kim 2014, arXiv:1408.5882).

    turn: {"start": id that opens a user turn, "ends": ids that close one}; the gate finds the turn by itself. Of a base
    of others {"start": any id, "marks": special tokens, "reply": ids that open a reply or []}, see `_between_marks`.
    """

    def __init__(self, vocab_size, experts, hidden=64, turn=None):
        super().__init__()
        self.turn = turn or {"start": -1, "ends": []}
        self.embed = nn.Embedding(vocab_size, hidden)
        self.features = nn.Conv1d(hidden, hidden, WINDOW, padding=WINDOW // 2)
        self.choice = nn.Linear(hidden, experts)
        nn.init.normal_(self.embed.weight, std=hidden ** -0.5)

    def forward(self, ids, valid):
        """ids (B, T), valid (B, T) bool, False = padding at the end -> (B, X) scores. Padding changes nothing."""
        x = self.embed(ids) * valid[..., None]                                    # (B, T, h)
        x = F.relu(self.features(x.transpose(1, 2))).masked_fill(~valid[:, None], 0)     # (B, h, T)
        return self.choice(x.amax(-1))

    @torch.no_grad()
    def choose(self, conversations):
        """Conversations (lists of ids) -> the number of the expert for each, chosen one by one."""
        turns = [last_turn(ids, self.turn)[-LONGEST_TURN:] or [self.turn["start"]] for ids in conversations]
        chosen = []
        for begin in range(0, len(turns), TOGETHER):
            ids, valid = padded(turns[begin:begin + TOGETHER], self.embed.weight.device)
            chosen += self(ids, valid).argmax(-1).tolist()
        return chosen


def last_turn(ids, turn):
    """A conversation (list of ids) -> the ids of its last user turn, see Gate; all of them where nobody spoke."""
    if "marks" in turn:
        return _between_marks(list(ids), turn)
    starts = [i for i, token in enumerate(ids) if token == turn["start"]]
    if not starts:
        return list(ids)
    begin = starts[-1] + 1
    stop = next((i for i in range(begin, len(ids)) if ids[i] in turn["ends"]), len(ids))
    return list(ids[begin:stop])


def _between_marks(ids, turn):
    """What stands before the last opening of a reply, back to the special token before it; where replies open without
    special tokens what stands behind the last of those. ([<user>, 5, 6, <reply>, 7, <end>]: [5, 6].)"""
    reply, marks = turn["reply"], set(turn["marks"])
    opened = [i for i in range(len(ids)) if reply and ids[i:i + len(reply)] == reply]
    stop = opened[-1] if opened else len(ids)
    places = [i for i in range(stop) if ids[i] in marks]
    while not opened and places and places[-1] == stop - 1:
        stop = places.pop()
    return ids[places[-1] + 1 if places else 0:stop]


def padded(turns, device=None):
    """Lists of ids -> ids (B, T), valid (B, T)."""
    lengths = torch.tensor([len(t) for t in turns])
    ids = nn.utils.rnn.pad_sequence([torch.tensor(t, dtype=torch.long) for t in turns], batch_first=True)
    valid = torch.arange(ids.shape[1])[None] < lengths[:, None]
    return ids.to(device), valid.to(device)


class GatedExperts(nn.Module):
    """A gate and the models it chooses from; their common base exists once."""

    def __init__(self, gate, experts):
        super().__init__()
        if len(experts) != gate.choice.out_features:
            raise ValueError(f"the gate chooses between {gate.choice.out_features} experts, there are {len(experts)}")
        if len({expert.config.vocab_size for expert in experts}) > 1:
            raise ValueError("the experts' vocabularies differ in size")
        self.gate, self.experts = gate, nn.ModuleList(experts)

    @property
    def config(self):
        """The shape of the first expert: what all have in common is the vocabulary."""
        return self.experts[0].config

    def expert_for(self, ids):
        """The model that should answer this conversation (a list of ids)."""
        return self.experts[self.gate.choose([ids])[0]]

    def groups(self, conversations):
        """Conversations (lists of ids) -> [(model, [places of the conversations it should answer])], every place
        once."""
        picks = self.gate.choose(conversations)
        return [(self.experts[i], [place for place, pick in enumerate(picks) if pick == i]) for i in sorted(set(picks))]

    def forward(self, input_ids):
        """input_ids (B, T), every row a conversation without padding -> logits_1 (B, T, V), each row from its own
        expert."""
        out = None
        for model, places in self.groups(input_ids.tolist()):
            logits = model(input_ids[places]).logits_1
            out = logits.new_zeros(*input_ids.shape, logits.shape[-1]) if out is None else out
            out[places] = logits
        return out
