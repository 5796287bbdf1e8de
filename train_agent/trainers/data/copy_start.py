"""A start that can copy: before the first step, one head already looks up what followed an earlier token.

Repeating what was said once (a name, a number, a word to turn round) takes an induction circuit (Olsson et al. 2022,
arXiv:2209.11895): a head that tells each token its predecessor, and in the next block a head that looks for the token
whose predecessor is the current one, and says that token again. Networks this small find it late. Here it is written
into the first values, as attention can be started near what it will become (Trockman & Kolter 2023, arXiv:2305.09828);
shape, loss and exports stay as they are, and training changes these weights like all others.

The residual stream (d) begins as [what the pairs fit (f) | said (k) | told (k) | constant (1)]: `told` will hold the
predecessor's code, `said` the code of the token to say, and `constant` is the same for every token, so that positions
can be compared whatever is read. A token's code (k) is a linear map of its word vector. Heads and layouts as in MLA.
"""
import math

import torch
from torch.nn import functional as F

from tools.errors import UserError

CONSTANT = 0.2          # share of a word vector's square that is the same for every token
NEARNESS = 14.0         # scores of the predecessor's head: what is one token off gets half of it at most
LIKENESS = 8.0          # score of the same code; that of other codes is about 0
TOLD, SAID = 0.5, 0.3   # lengths of what the two heads write, word vectors have 1
VOICE = 6.0             # what a token that is found again gains in head 1's logits
CONSTANT_QUERY = 0.3    # share of the first block's query latent that is the constant
LOUD = 3.0              # codes among the random rows of a latent


def why_not(config, passes):
    """Why a model of this shape cannot start so, in Chinese; None = it can."""
    if not passes:
        return "起步前不学词对（pair_start 0）"
    if config.attention != "mla" or config.position != "rope":
        return "只有 attention mla、position rope 的模型能这样起步"
    if config.norm != "rms" or config.n_layer < 2:
        return "要用 norm rms，至少两层"
    if 4 * spare(config) > 3 * config.d_model or code_width(config) < 4:
        return f"d_model {config.d_model}、d_c {config.d_c} 放不下"
    return None


def wanted(model, options, passes):
    """Whether this run starts so. UserError 2 where the user asks for what cannot be done."""
    why = why_not(model.config, passes)
    if why and options["copy_start"]:
        raise UserError(f"copy_start true 用不上：{why}。请设 copy_start=false，或去掉它（自动判断）。")
    return not why and options["copy_start"] is not False


def code_width(config):
    """Half of the latent for whom to look for, half for what to say."""
    return min(config.d_c // 2, config.d_h, config.query_latent // 2)


def spare(config):
    """Dimensions of the residual stream that the pairs leave free."""
    return 2 * code_width(config) + 1


@torch.no_grad()
def install(model, vectors, heads, size):
    """Writes vectors (V, f) and heads [(V, f), ...], fitted to each other in f = d - spare dimensions, and the circuit
    into `model`, on the CPU. size: root mean square of the word vectors."""
    config = model.config
    width, free = code_width(config), vectors.shape[1]
    said, told = slice(free, free + width), slice(free + width, free + 2 * width)
    length = size * math.sqrt(config.d_model)
    embed = torch.zeros(len(vectors), config.d_model)
    embed[:, :free] = F.normalize(vectors, dim=1) * length * math.sqrt(1 - CONSTANT)
    embed[:, -1] = length * math.sqrt(CONSTANT)
    model.embed.weight.copy_(embed)
    reader, codes = reader_of(embed * (math.sqrt(config.d_model) / length), free, width)
    longer = math.sqrt(1 + TOLD ** 2 + SAID ** 2)            # the residual stream in the end, over a word vector
    for head, fitted in zip(model.heads(), heads):
        head.weight.zero_()
        head.weight[:, :free] = fitted * longer * math.sqrt(free / config.d_model / (1 - CONSTANT))
    model.fc1.weight[:, said] = codes * (VOICE * longer / SAID / math.sqrt(config.d_model))
    tell_predecessor(model.blocks[0].attention, reader, told, TOLD * length)
    say_successor(model.blocks[1].attention, reader, told, said, SAID * length)


def reader_of(seen, free, width):
    """seen (V, d): word vectors after a norm -> the map to codes (k, d), which takes the mean off by the constant;
    codes (V, k) of length 1, as far from one another as a random map of uncorrelated dimensions makes them."""
    mean = seen[:, :free].mean(0)
    _, sizes, axes = torch.linalg.svd(seen[:, :free] - mean, full_matrices=False)
    axes = axes / sizes.clamp_min(1e-4 * sizes[0])[:, None] * math.sqrt(len(seen))
    mix = torch.linalg.qr(torch.randn(len(axes), width))[0]
    reader = torch.zeros(width, seen.shape[1])
    reader[:, :free] = mix.t() @ axes / math.sqrt(width)
    reader[:, -1] = -(reader[:, :free] @ mean) / seen[0, -1]
    return reader, F.normalize(seen @ reader.t(), dim=1)


def first_head(attention):
    """Views of what belongs to head 0, zeroed: query (d_h + d_r, query latent), key and value (d_h, d_c), out (d,
    d_h)."""
    c = attention.config
    query = attention.q_up.weight.view(c.n_head, attention.key_width, -1)[0]
    key, value = attention.kv_up.weight.view(c.n_head, 2, c.d_h, c.d_c)[0]
    out = attention.out.weight[:, :c.d_h]
    for part in (query, key, value, out):
        part.zero_()
    return query, key, value, out


def tell_predecessor(attention, reader, told, length):
    """Head 0 reads one token back: key and query are constants that the rotation turns, the query's one step behind."""
    c, width = attention.config, len(reader)
    query, _, value, out = first_head(attention)
    constant = math.sqrt(CONSTANT * c.d_model)               # as it is read
    noise = c.init_std * math.sqrt(c.d_model)                # a random row's reading
    attention.q_down.weight[0].zero_()
    attention.q_down.weight[0, -1] = \
        noise * math.sqrt(CONSTANT_QUERY / (1 - CONSTANT_QUERY) * (c.query_latent - 1)) / constant
    strength = math.sqrt(NEARNESS / attention.scale)
    angles = c.ro_theta ** (-torch.arange(0, c.d_r, 2, dtype=torch.float64) / c.d_r)
    behind = torch.stack((angles.cos(), -angles.sin()), 1).flatten().float()
    query[c.d_h:, 0] = behind * strength / math.sqrt(CONSTANT_QUERY * c.query_latent)
    attention.kv_down.weight[c.d_c:].zero_()
    attention.kv_down.weight[c.d_c::2, -1] = strength / constant
    attention.kv_down.weight[:width] = reader * LOUD
    value[:width, :width] = torch.eye(width) / math.sqrt(c.d_c)
    out[told, :width] = torch.eye(width) * length


def say_successor(attention, reader, told, said, length):
    """Head 0 looks for the token that was told the current one, and says it again."""
    c, width = attention.config, len(reader)
    query, key, value, out = first_head(attention)
    noise = c.init_std * math.sqrt(c.d_model)
    half = math.sqrt(c.d_c / 2)                              # each half of the latent after its norm
    strength = math.sqrt(LIKENESS / attention.scale)
    attention.q_down.weight[:width] = reader * LOUD
    share = LOUD ** 2 / (LOUD ** 2 + (c.query_latent - width) * noise ** 2)
    query[:width, :width] = torch.eye(width) * strength / math.sqrt(share * c.query_latent)
    attention.kv_down.weight[:2 * width].zero_()
    attention.kv_down.weight[:width, told] = \
        torch.eye(width) * LOUD / (TOLD / math.sqrt(1 + TOLD ** 2) * math.sqrt(c.d_model))
    attention.kv_down.weight[width:2 * width] = reader * LOUD
    key[:width, :width] = torch.eye(width) * strength / half
    value[:width, width:2 * width] = torch.eye(width) / half
    out[said, :width] = torch.eye(width) * length
