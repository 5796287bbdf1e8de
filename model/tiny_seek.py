"""TinySeek: a DeepSeek-shaped decoder with two heads, for the next and the second next token.

B rows, T positions, N = B * T tokens of the flat batch, d width, V vocabulary.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.attention import GQA, MLA
from model.decoding.cache import Step
from model.kernels.ngram_head import CountedHead, last_ids
from model.kernels.cross_entropy import IGNORE, head_cross_entropy, target_losses
from model.kernels.distillation import distilled_cross_entropy
from model.layers import FeedForward, make_norm, residual_std, rotary_tables
from model.segments import Segments
from model.moe import MoE, Router


@dataclass
class ModelOutput:
    """What a forward pass was asked for; everything else stays None."""

    hidden: torch.Tensor = None          # (B, T, d), after the final norm
    logits_1: torch.Tensor = None        # (B, T, V), next token
    logits_2: torch.Tensor = None        # (B, T, V), second next token
    losses_1: torch.Tensor = None        # (B, T), cross-entropy of each target of head 1
    loss_sums: tuple = ()                # cross-entropy sums of both heads
    counts: tuple = ()                   # supervised targets of both heads
    divergence: torch.Tensor = None      # the weighted divergence from a teacher, which loss_sums[0] holds too
    aux_loss: torch.Tensor = None        # alpha * routing loss, None without experts
    routings: list = field(default_factory=list)
    chapters: list = field(default_factory=list)   # ChapterRouting of each memory adapter

    @property
    def logits(self):
        return self.logits_1

    @property
    def loss(self):
        """CE(head 1) + CE(head 2), each its own mean. The routing loss is not in here."""
        if not self.loss_sums:
            return None
        return sum(total / count.clamp_min(1) for total, count in zip(self.loss_sums, self.counts))

    @property
    def total_loss(self):
        if self.loss is None or self.aux_loss is None:
            return self.loss
        return self.loss + self.aux_loss


class Routings(NamedTuple):
    """What the routers of a pass did: Routing of each layer with experts, ChapterRouting of each memory adapter."""

    experts: list
    chapters: list


class Block(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        self.attention_norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.attention = MLA(config) if config.attention == "mla" else GQA(config)
        self.mlp_norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.mlp = MoE(config) if config.is_moe_layer(index) else \
            FeedForward(config.d_model, config.dense_width, config.activation, config.bias == "all")
        self.dropout = nn.Dropout(config.dropout)
        self.memories = nn.ModuleList()                                           # see model/memory.py

    def forward(self, x, tables, layout, valid, sequences):
        """x (N, d) -> (N, d), [ChapterRouting of each memory adapter], [Routing of the experts, where there are]."""
        x = x + self.dropout(self.attention(self.attention_norm(x), tables, layout))
        x, chapters = self.recall(x)
        mixed = self.mlp_norm(x)
        if not isinstance(self.mlp, MoE):
            return x + self.dropout(self.mlp(mixed)), chapters, []
        mixed, routing = self.mlp(mixed, valid, sequences)
        return x + self.dropout(mixed), chapters, [routing]

    def recall(self, x):
        """x (N, d) -> x plus what the memory adapters add to it, their ChapterRoutings. Each token stands alone."""
        chapters = []
        for memory in self.memories:
            remembered, routing = memory(x)
            x = x + self.dropout(remembered)
            chapters.append(routing)
        return x, chapters

    def decode(self, x, step, kv, folded=None):
        """The block for new tokens only, x (N, d) -> (N, d); kv: this layer's part of a DecodeCache; folded: a Folded
        of this block, or None."""
        attention = folded.attention if folded and folded.attention and step.absorb else self.attention
        x = x + attention.decode(self.attention_norm(x), step, kv)
        if self.memories:
            x = self.recall(x)[0]
        mixed = self.mlp_norm(x)
        if isinstance(self.mlp, MoE):
            return x + self.mlp.decode(mixed, folded and folded.mlp)
        return x + (folded.mlp if folded else self.mlp)(mixed)


class TinySeek(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.d_model)
        if config.position == "learned":
            self.place = nn.Embedding(config.max_position, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.norm = make_norm(config.norm, config.d_model, config.norm_eps)
        self.fc1 = CountedHead(config) if config.counted else nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.use_fc2:
            self.fc2 = nn.Linear(config.d_model, config.vocab_size, bias=False)
            if config.fc2_token:
                self.follow = nn.Linear(config.d_model, config.d_model, bias=False)
        self.checkpointing = config.gradient_checkpointing
        self.initialise()
        if config.tie_embedding:
            self.fc1.weight = self.embed.weight

    def initialise(self):
        """Normal(0, init_std), smaller where a branch returns to the residual stream: the first loss is close to ln
        V."""
        back = residual_std(self.config)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=self.config.init_std)
                if getattr(module, "bias", None) is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, Router):
                nn.init.normal_(module.weight, std=self.config.init_std)
            elif isinstance(module, MoE):
                nn.init.normal_(module.up, std=self.config.init_std)
        if hasattr(self, "follow"):
            nn.init.zeros_(self.follow.weight)
        for block in self.blocks:
            nn.init.normal_(block.attention.out.weight, std=back)
            for layer in [block.mlp.shared, block.mlp] if isinstance(block.mlp, MoE) else [block.mlp]:
                down = layer.down if isinstance(layer, MoE) else layer.down.weight
                nn.init.normal_(down, std=back)

    def gradient_checkpointing_enable(self):
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.checkpointing = True

    def groups(self, conversations):
        """[(model, places of the conversations that it answers)]: all of them go to this one. See GatedExperts for
        several."""
        return [(self, list(range(len(conversations))))]

    def heads(self):
        return [self.fc1, self.fc2] if self.config.use_fc2 else [self.fc1]

    def forward(self, input_ids, labels=None, labels_1=None, labels_2=None, positions=None, layout=None, valid=None,
                return_logits=None, each=False, left_out=None, taught=None):
        """One pass over a batch.

        input_ids (B, T); positions (B, T) and layout describe packed documents, None = every row is one document;
        valid (B, T) bool, False = padding. `labels` (B, T) are the ids themselves and are shifted here; `labels_1`,
        `labels_2` come shifted. Negative labels are no targets. Logits are made when there are no labels, or when asked
        for.
        each: the losses of head 1's targets one by one (losses_1) instead of the heads' sums.
        left_out (B, T): where a counted head has counted the target itself, see `orders_held`; None = nowhere.
        taught: what a teacher says of each target of head 1, see `distilled_cross_entropy`; None = there is none.
        """
        if labels is not None:
            labels_1, labels_2 = shifted(labels, 1), shifted(labels, 2)
        hidden, before, routings = self.encode(input_ids, positions, layout, valid)
        out = ModelOutput(hidden=hidden.unflatten(0, input_ids.shape), aux_loss=self.routing_loss(routings.experts),
                          routings=routings.experts, chapters=routings.chapters)
        more = before, None if left_out is None else left_out.flatten()
        heads = [(self.fc1, hidden, labels_1)]
        if self.config.use_fc2:
            read = self.ahead(hidden, self.following(input_ids, hidden, labels_1))
            heads.append((self.fc2, read, labels_2))
        if each:
            out.losses_1 = target_losses(hidden, self.fc1, labels_1.flatten(), *more).view_as(labels_1)
        elif labels_1 is not None:
            learned = [head_cross_entropy(head, read, goals.flatten(), *more)
                       for head, read, goals in heads[taught is not None:]]
            if taught is not None:
                *first, out.divergence = distilled_cross_entropy(self.fc1, hidden, labels_1.flatten(), taught)
                learned.insert(0, first)
            out.loss_sums, out.counts = zip(*learned)
        if return_logits or (return_logits is None and labels_1 is None):
            past = [] if before is None else [before]
            logits = [head(read, *past).unflatten(0, input_ids.shape) for head, read, _ in heads]
            out.logits_1, out.logits_2 = (*logits, None)[:2]
        return out

    def ahead(self, hidden, following):
        """What head 2 reads: hidden states (N, d), with as much of its gradient let through as `fc2_gradient` says,
        and, where `fc2_token` is set, the token that comes next, `following` (N,) ids (DeepSeek-V3, arXiv:2412.19437,
        section 2.2).
        """
        share = self.config.fc2_gradient if self.training else 1.0
        let_through = (lambda x: x) if share == 1.0 else lambda x: x.detach().lerp(x, share)
        if not self.config.fc2_token:
            return let_through(hidden)
        known = let_through(self.embed(following))
        return let_through(hidden) + self.follow(F.rms_norm(known, known.shape[-1:]))

    def following(self, input_ids, hidden, labels_1):
        """(N,) the id after each position: the label, the next input, or at a row's end without either what head 1
        would choose."""
        if not self.config.fc2_token:
            return None
        following = input_ids.roll(-1, 1)
        if labels_1 is None:
            last = hidden.unflatten(0, input_ids.shape)[:, -1]
            following[:, -1] = self.fc1(last).argmax(-1)
        else:
            following = torch.where(labels_1 >= 0, labels_1, following)
        return following.flatten()

    def encode(self, input_ids, positions=None, layout=None, valid=None):
        """input_ids (B, T) -> hidden states (N, d) after the final norm; the ids read last (N, P) where the head
        counts, else None; what each router did, Routings. ValueError beyond max_position (learned positions)."""
        rows, length = input_ids.shape
        if positions is None:
            positions = torch.arange(length, device=input_ids.device).expand(rows, length)
        layout = layout or Segments.dense(rows, length)
        self.check_length(layout.longest)
        ids, positions, valid = input_ids.flatten(), positions.flatten(), None if valid is None else valid.flatten()
        x = self.dropout(self.embedded(ids, positions))
        tables, routings = self.tables(positions), Routings([], [])
        for block in self.blocks:
            if self.checkpointing and self.training:
                x, chapters, experts = checkpoint(block, x, tables, layout, valid, rows, use_reentrant=False)
            else:
                x, chapters, experts = block(x, tables, layout, valid, rows)
            routings.chapters.extend(chapters)
            routings.experts.extend(experts)
        past = self.config.counted - 1
        return self.norm(x), last_ids(ids, positions, past) if past > 0 else None, routings

    @torch.inference_mode()
    def decode(self, ids, cache, slots=None, counts=None):
        """Read the next tokens of some sequences, as `encode` would after everything before them.

        ids (B, T): T next tokens for each of B different slots of `cache` (a DecodeCache); slots: B ints, None = all,
        in order. Rows shorter than T are padded at the end with any id and named by counts (B ints, None = all T).
        `cache.lengths` grows by T or by counts; the cache itself grows as needed.
        -> hidden states (B, T, d) after the final norm, see `cache.logits`; those of padding mean nothing. The model
        must be in eval mode. ValueError beyond max_position (learned positions).
        """
        rows, length = ids.shape
        slots = list(range(len(cache.lengths)) if slots is None else slots)
        counts = [length] * rows if counts is None else counts
        self.check_length(max(cache.lengths[slot] + count for slot, count in zip(slots, counts)))
        step = Step(cache, slots, length)
        positions = step.positions
        if self.config.position == "learned":                                     # padding may lie beyond
            positions = positions.clamp_max(self.config.max_position - 1)
        x = self.embedded(ids.reshape(-1), positions)
        for block, kv, folded in zip(self.blocks, cache.kv, cache.folded):
            x = block.decode(x, step, kv, folded)
        if cache.tokens is not None:
            step.write(cache.tokens, ids.reshape(-1, 1))
        for slot, count in zip(slots, counts):
            cache.lengths[slot] += count
        return self.norm(x).view(rows, length, -1)

    def check_length(self, length):
        """ValueError for a document longer than the learned positions; asks no device for anything."""
        if self.config.position == "learned" and length > self.config.max_position:
            raise ValueError(f"position {length - 1} is beyond max_position {self.config.max_position}")

    def embedded(self, ids, positions):
        """ids, positions (N,) -> (N, d)."""
        x = self.embed(ids)
        return x + self.place(positions) if self.config.position == "learned" else x

    def tables(self, positions):
        """Rotary cos and sin for positions (N,), or None."""
        if self.config.position != "rope":
            return None
        return rotary_tables(positions, *self.config.rope)

    def routing_loss(self, routings):
        """alpha * sum over layers of the balance loss, plus the router z-loss; None without experts."""
        if not routings:
            return None
        loss = self.config.alpha * sum(r.loss for r in routings)
        if self.config.router_z_loss:
            loss = loss + self.config.router_z_loss * sum(r.z_loss for r in routings)
        return loss


def shifted(labels, by):
    """labels (B, T) rolled left by `by`; the rolled-in tail is no target."""
    return F.pad(labels[:, by:], (0, by), value=IGNORE)
