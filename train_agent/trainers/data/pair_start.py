"""A start from pair counts: before the first step, word vectors and heads are fitted to which token follows which.

C_k (V, V) counts how often token v stands k places after token w in the training rows. The embedding E and the head U_k
of each k are fitted so that softmax(U_k · norm(E[w])) is close to the row C_k[w] / its sum: what a network learns
first, and most slowly, it then knows before its first step. Only initial values change; loss, heads, checkpoints and
exports stay what they are. It carries the bias that starts at log-unigram frequencies (Meister et al. 2022,
arXiv:2212.09686) one token further, without a bias.

V vocabulary, d width, C words of a chunk.
"""

import time

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from model.layers import make_norm
from tools.errors import UserError
from train_agent.trainers import parallel
from train_agent.trainers.data import copy_start

PASSES = 12             # over the vocabulary, where the user names no number
WIDEST = 8192           # words: two tables of V x V floats
MOST = 32_000_000       # tokens that are counted; a longer text gives its first documents
BLOCK = 4_000_000       # tokens counted at a time
CHUNK = 256             # words fitted at a time
RATES = 0.1, 0.02       # of the word vectors and of the heads, for 30 % of the way, then falling to 0
SCALE = 0.3             # of the word vectors in the end: the blocks add to them, and must be heard
PRIOR = 20              # counts that weigh as much as the word's own, in the first word vectors
PULL = (1.0, 0.5)       # of each head on the word vectors


def passes_for(model, options):
    """How many passes this run makes, 0 = none. UserError 2 where the user asks for what cannot be done."""
    wanted, config = options["pair_start"], model.config
    why = "词向量和输出头共用权重（tie_embedding）" if config.tie_embedding else \
        f"词表有 {config.vocab_size} 个词，最多 {WIDEST}" if config.vocab_size > WIDEST else \
        "模型从检查点开始" if options["init_from"] or options["pretraining_model_path"] else None
    if why and wanted:
        raise UserError(f"pair_start {wanted} 用不上：{why}。请设 pair_start=0，或去掉它（自动判断）。")
    return 0 if why else PASSES if wanted is None else wanted


def start_from_pairs(model, data, passes, copies, seed, device):
    """Sets embedding and heads of `model` from the pairs of `data` (a PackedData), the same on every process; copies:
    and the heads that copy, see copy_start.

    -> {"pair_tokens", "pair_seconds", "pair_cpu_seconds"} for the log's header.
    """
    values, notes = parallel.from_main(lambda: fitted(model, data, passes, copies, seed, device))
    with torch.no_grad():
        for name, value in values.items():
            model.get_parameter(name).copy_(value)
    return notes


def fitted(model, data, passes, copies, seed, device):
    """-> {name: value on the CPU} of the parameters that begin elsewhere than at random, notes."""
    since, since_cpu = time.perf_counter(), time.process_time()
    counts, tokens = count_pairs(data, model.config.vocab_size, len(model.heads()), device)
    width = model.config.d_model - (copy_start.spare(model.config) if copies else 0)
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        norm = make_norm(model.config.norm, width, model.config.norm_eps).to(device)
        vectors, heads = fit(counts, width, passes, norm)
        vectors, heads = vectors.cpu(), [head.cpu() for head in heads]
        values = copy_start.install(model, vectors, heads, SCALE) if copies else {
            "embed.weight": vectors * SCALE, **{f"fc{n}.weight": head for n, head in enumerate(heads, 1)}}
    return values, {
        "pair_tokens": tokens, "pair_seconds": round(time.perf_counter() - since, 2),
        "pair_cpu_seconds": round(time.process_time() - since_cpu, 2)}


def count_pairs(data, words, orders, device):
    """-> [C_1, C_2 ...] float32 (V, V) on `device`, pairs inside one document only; tokens counted."""
    begin, end = data.cache.bounds(data.documents)
    sizes = end - begin
    within = sizes.cumsum() <= max(MOST, sizes[0])
    begin, sizes = begin[within], sizes[within]
    tables = [torch.zeros(words * words, device=device) for _ in range(orders)]
    blocks = np.split(np.arange(len(sizes)), np.flatnonzero(np.diff(sizes.cumsum() // BLOCK)) + 1)
    for block in tqdm(blocks, desc="数词对", delay=2, leave=False):
        lengths = sizes[block]
        starts = np.repeat(begin[block] - (lengths.cumsum() - lengths), lengths)
        # tokens from here to the document's end
        places = np.repeat(lengths.cumsum(), lengths) - np.arange(lengths.sum())
        ids = torch.from_numpy(
            data.cache.split(np.asarray(data.cache.tokens[starts + np.arange(len(starts))]))[0].astype(np.int64))
        left = torch.from_numpy(places)
        for ahead, table in enumerate(tables, 1):
            inside = left[:-ahead] > ahead
            pairs = (ids[:-ahead] * words + ids[ahead:])[inside].to(device)
            table += torch.bincount(pairs, minlength=words * words)
    return [table.view(words, words) for table in tables], int(sizes.sum())


def first_vectors(table, width):
    """Left singular vectors (V, d) of log(1 + count / what chance would give), each word's of mean square 1."""
    seen, share = table.sum(1, keepdim=True), table.sum(0) / table.sum().clamp_min(1)
    share = share.clamp_min(share[share > 0].min() if share.any() else 1.0)
    weighted = (table / (PRIOR * share)).log1p_() * (seen + 1) ** 0.25 * share ** 0.25
    left, sizes, _ = torch.svd_lowrank(weighted, q=min(len(table), width + 16), niter=1)
    vectors = F.pad(left * sizes.sqrt(), (0, max(0, width - len(sizes))))[:, :width]
    # a word that nothing follows is not 0
    vectors = vectors + 1e-3 * vectors.std() * torch.randn_like(vectors)
    return vectors * vectors.pow(2).mean(1, keepdim=True).rsqrt()


def fit(counts, width, passes, norm):
    """counts: [C_1, C_2 ...]; norm: the module between residual stream and heads -> word vectors (V, d), [head (V, d)
    ...]."""
    words, device = len(counts[0]), counts[0].device
    parts = torch.randperm(words).to(device).split(CHUNK)
    start = first_vectors(counts[0], width)
    vectors = [start[part].requires_grad_() for part in parts]
    heads = [torch.empty(words, width, device=device).normal_(0, 0.02).requires_grad_() for _ in counts]
    optimizer = torch.optim.Adam([{"params": vectors, "lr": RATES[0]}, {"params": heads, "lr": RATES[1]}],
                                 betas=(0.9, 0.95), fused=True)
    steps = passes * len(parts)
    order = [chunk for _ in range(passes) for chunk in torch.randperm(len(parts)).tolist()]
    for step, chunk in enumerate(tqdm(order, desc="从词对起步", delay=2, leave=False)):
        for group, rate in zip(optimizer.param_groups, RATES):
            group["lr"] = rate * min(1.0, (steps - step) / (0.7 * steps))
        with torch.autocast(device.type, enabled=False):
            pull(vectors[chunk], heads, [table[parts[chunk]] for table in counts], norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found = torch.empty_like(start)
    for part, chunk in zip(parts, vectors):
        found[part] = chunk.detach()
    return found, [head.detach() for head in heads]


def pull(vectors, heads, rows, norm):
    """Gradients of the cross-entropies of one chunk: vectors (C, d), heads (V, d) each, rows: their counts (C, V)
    each."""
    hidden = norm(vectors)                                                                # (C, d)
    low = hidden.detach().bfloat16()
    back = torch.zeros_like(hidden)
    for head, row, share in zip(heads, rows, PULL):
        seen = row.sum(1, keepdim=True)
        # rare words count for more than they weigh
        weight = (seen + 1) ** -0.25
        matrix = head.detach().bfloat16()
        error = ((low @ matrix.t()).softmax(-1, dtype=torch.float32).mul_(seen).sub_(row).mul_(weight)).bfloat16()
        head.grad = (error.t() @ low).float()
        back += share * (error @ matrix).float()
    hidden.backward(back)
    norm.zero_grad(set_to_none=True)
