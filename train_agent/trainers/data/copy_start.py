"""A start that can copy: before the first step, three heads already look up what stood beside an earlier token.

Repeating what was said once (a name, a number, a word to turn round) takes an induction circuit (Olsson et al. 2022,
arXiv:2209.11895): a head that tells each token its predecessor, and in the next block a head that looks for the token
whose predecessor is the current one, and says that token again. Two of its neighbours turn round (the predecessor of
the same token) and skip (what followed the same predecessor). Networks this small find all of it late. Here it is
written into the first values, as attention can be started near what it will become (Trockman & Kolter 2023,
arXiv:2305.09828); shape, loss and exports stay as they are, and training changes these weights like all others.

The residual stream (d) begins as [what the pairs fit (f) | said (k) | told (k) | constant (1)]: `told` will hold the
predecessor's code, `said` the code of the token to say, and `constant` is the same for every token, so that positions
can be compared whatever is read. A token's code (k) is a linear map of its word vector. Heads and layouts as in MLA.
"""
import math
from copy import deepcopy

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
CODE, PREDECESSOR = "code", "predecessor"
# by what a head asks, what it looks for, what it says, how loud: the first is right most often
FINDS = ((CODE, PREDECESSOR, CODE, 1.0),         # what followed the same token
         (CODE, CODE, PREDECESSOR, 0.7),         # what stood before the same token
         (PREDECESSOR, PREDECESSOR, CODE, 0.7))  # what followed the same predecessor
ELSEWHERE = 5.0         # what a token close by loses in the last two, which would find themselves first


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
    """Half of a latent for a token's own code, half for its predecessor's; the query's has the constant, too."""
    return min(config.d_c // 2, config.d_h, (config.query_latent - 1) // 2)


def spare(config):
    """Dimensions of the residual stream that the pairs leave free."""
    return 2 * code_width(config) + 1


@torch.no_grad()
def install(model, vectors, heads, size):
    """{name: first value, on the CPU} from vectors (V, f) and heads [(V, f), ...], fitted to each other in f = d -
    spare dimensions, and the circuit. size: root mean square of the word vectors."""
    config = model.config
    width, free = code_width(config), vectors.shape[1]
    said, told = slice(free, free + width), slice(free + width, free + 2 * width)
    length = size * math.sqrt(config.d_model)
    embed = torch.zeros(len(vectors), config.d_model)
    embed[:, :free] = F.normalize(vectors, dim=1) * length * math.sqrt(1 - CONSTANT)
    embed[:, -1] = length * math.sqrt(CONSTANT)
    reader, codes = reader_of(embed * (math.sqrt(config.d_model) / length), free, width)
    longer = math.sqrt(1 + TOLD ** 2 + SAID ** 2)            # the residual stream in the end, over a word vector
    tables = [torch.zeros(len(vectors), config.d_model) for _ in heads]
    for table, fitted in zip(tables, heads):
        table[:, :free] = fitted * longer * math.sqrt(free / config.d_model / (1 - CONSTANT))
    tables[0][:, said] = codes * (VOICE * longer / SAID / math.sqrt(config.d_model))
    first, second = (deepcopy(block.attention).cpu() for block in model.blocks[:2])
    tell_predecessor(first, reader, told, TOLD * length)
    say_again(second, reader, told, said, SAID * length)
    values = {"embed.weight": embed, **{f"fc{n}.weight": table for n, table in enumerate(tables, 1)}}
    for i, attention in enumerate((first, second)):
        for name in ("q_down", "q_up", "kv_down", "kv_up", "out"):
            values[f"blocks.{i}.attention.{name}.weight"] = getattr(attention, name).weight.detach()
    return values


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


def head_of(attention, number):
    """Views of what belongs to one head, zeroed: query (d_h + d_r, query latent), key and value (d_h, d_c), out (d,
    d_h)."""
    c = attention.config
    query = attention.q_up.weight.view(c.n_head, attention.key_width, -1)[number]
    key, value = attention.kv_up.weight.view(c.n_head, 2, c.d_h, c.d_c)[number]
    out = attention.out.weight[:, number * c.d_h:(number + 1) * c.d_h]
    for part in (query, key, value, out):
        part.zero_()
    return query, key, value, out


def tell_predecessor(attention, reader, told, length):
    """Head 0 reads one token back: key and query are constants that the rotation turns, the query's one step behind."""
    c, width = attention.config, len(reader)
    query, _, value, out = head_of(attention, 0)
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


def say_again(attention, reader, told, said, length):
    """Heads that find a token and say what FINDS names of it. The query's latent begins [code | told], that of keys
    and values [told | code]."""
    c, width = attention.config, len(reader)
    noise = c.init_std * math.sqrt(c.d_model)
    hear = torch.zeros(width, c.d_model)
    hear[:, told] = torch.eye(width) * LOUD / (TOLD / math.sqrt(1 + TOLD ** 2) * math.sqrt(c.d_model))
    attention.q_down.weight[:2 * width] = torch.cat((reader * LOUD, hear))
    attention.kv_down.weight[:2 * width] = torch.cat((hear, reader * LOUD))
    constant = math.sqrt(CONSTANT * c.d_model / (1 + TOLD ** 2))                  # as it is read
    attention.q_down.weight[2 * width].zero_()
    attention.q_down.weight[2 * width, -1] = LOUD / constant
    share = LOUD ** 2 / (3 * LOUD ** 2 + (c.query_latent - 2 * width - 1) * noise ** 2)
    fast = min(6, c.d_r)                                     # the rotary dimensions that tell near from far
    away = math.sqrt(ELSEWHERE / (fast // 2) / attention.scale)
    attention.kv_down.weight[c.d_c:c.d_c + fast].zero_()
    attention.kv_down.weight[c.d_c:c.d_c + fast:2, -1] = away / constant
    half = math.sqrt(c.d_c / 2)                              # each half of the latent after its norm
    strength = math.sqrt(LIKENESS / attention.scale)
    one = torch.eye(width)
    asked = {CODE: slice(0, width), PREDECESSOR: slice(width, 2 * width)}
    kept = {PREDECESSOR: slice(0, width), CODE: slice(width, 2 * width)}
    for number, (by, of, what, loud) in enumerate(FINDS[:c.n_head]):
        query, key, value, out = head_of(attention, number)
        query[:width, asked[by]] = one * strength / math.sqrt(share * c.query_latent)
        key[:width, kept[of]] = one * strength / half
        value[:width, kept[what]] = one / half
        out[said, :width] = one * length * loud
        if number:
            query[c.d_h:c.d_h + fast:2, 2 * width] = -away / math.sqrt(share * c.query_latent)
