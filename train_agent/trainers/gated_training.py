"""The gate: a small classifier learns which of several experts answers a user's turn best."""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from model.build import build
from model.gate import Gate, last_turn, padded
from tools.checkpoint import load_chain, weights_hash
from tools.pictures.others import draw_confusion
from tools.errors import UserError
from tools.mask import last_reply
from tools.saving.start_files import start_name
from train_agent.trainers import parallel
from train_agent.trainers.running import resume
from train_agent.trainers.dataset import NOTHING, ItemData, Movable, Position
from train_agent.trainers.data.gate_targets import answered, expert_losses
from train_agent.trainers.build_stage import about, cached, identity, path_from, prepare_machine, training_and_held
from train_agent.trainers.data.split import divided
from train_agent.trainers.stage import Stage
from train_agent.trainers.start_model import found_start, open_vocab
from train_agent.trainers.run_stage import start


@dataclass
class TurnBatch(Movable):
    """ids (B, T) int64 and valid (B, T) bool: user turns; losses (B, X) float32: what each expert's reply would
    cost."""

    ids: torch.Tensor
    valid: torch.Tensor
    losses: torch.Tensor
    tokens: int
    targets_1: int
    targets_2: int = 0
    position: Position = None


class TurnData(ItemData):
    """Conversations for the gate."""

    def __init__(self, cache, documents, losses, turn, options, shuffle=True):
        """documents: numbers in the cache; losses: {document: (X,) array}; turn: what the gate reads, see Gate."""
        super().__init__(cache, documents, options, truncate=True, shuffle=shuffle)
        self.losses, self.turn = losses, turn

    def turns(self, documents):
        """-> the user turn before the last reply of each document, cut to max_len (its end counts)."""
        return [self._asked(*self.cache.document(d))[-self.width:] for d in documents]

    def _asked(self, ids, supervised):
        prompt = ids[:last_reply(supervised).argmax()]                  # what a chat would have given the gate
        return last_turn(prompt.tolist(), self.turn) or [self.turn["start"]]

    def batch(self, position):
        documents = self.items(position)
        ids, valid = padded(self.turns(documents))
        losses = torch.stack([torch.from_numpy(self.losses[int(d)]) for d in documents])
        made = TurnBatch(ids, valid, losses, tokens=int(valid.sum()), targets_1=len(documents), position=position)
        return made.blank() if position.batch == NOTHING else made


def gate_loss(model, batch, totals):
    """Cross-entropy of the gate's scores against the cheapest expert of each sample, this micro-batch's share of the
    step."""
    scores = model(batch.ids, batch.valid)
    # False: a rank without a sample of its own in this step
    counts = batch.targets_1 > 0
    total = F.cross_entropy(scores.float(), batch.losses.argmin(1), reduction="sum") * counts
    picked = batch.losses.gather(1, scores.argmax(1, keepdim=True))[:, 0]
    regret = picked - batch.losses.amin(1)
    sums = {"ce_1": total.detach(), "accuracy": (regret == 0).sum() * counts, "regret": regret.sum() * counts}
    return total / max(1, totals["targets_1"]), sums


def load_experts(options):
    """-> chains of payloads, a shared base being one object. UserError: 2 too few, 3 a missing file, 4 a gate, other
    vocabularies."""
    if len(options["experts"]) < 2:
        raise UserError("选择门至少要有两个候选模型：请用 --experts 列出模型或适配器的 .pkl。")
    known, chains = {}, []
    paths = [found_start(options, "gate", path, "候选模型", "请检查 experts，或先训练它。") for path in options["experts"]]
    for path in paths:
        chains.append(load_chain(path, known))
        if chains[-1][-1]["kind"] == "gate":
            raise UserError(f"{path} 本身是选择门，不能作候选模型。", 4)
        if chains[-1][-1]["vocab_hash"] != chains[0][-1]["vocab_hash"]:
            raise UserError(f"候选模型 {path} 的词表和 {paths[0]} 的不同，不能放在同一个选择门后面。", 4)
    return chains


def build_experts(paths, chains):
    shared = {}
    try:
        return [build(chain, shared) for chain in chains]
    except ValueError as error:
        raise UserError(f"候选模型 {'、'.join(paths)} 里有一个和它的底座对不上：{error}", 4) from None


def expert_names(paths):
    """Short names for pictures and messages: the folder of a named run, else the file's own name, never twice the
    same."""
    folders, files = [Path(p).parent.name for p in paths], [Path(p).stem for p in paths]
    return next((names for names in (folders, files) if len(set(names)) == len(names)),
                [f"{i} {n}" for i, n in enumerate(files)])


def build_stage(options):
    device = prepare_machine(options)
    for key in ("init_from", "replay_share"):
        if options[key]:
            raise UserError(f"门从零开始，只学挑选：请去掉 {key}。")
    paths = options["experts"]
    chains = load_experts(options)
    vocab = open_vocab(options, chains[0][0])
    hashes = [weights_hash(chain[-1]["weights"]) for chain in chains]
    split = divided(options, lambda paths: cached(options, vocab, paths), answered)
    resume.seed_everything(options["seed"])
    turn = vocab.dialogue.turn if vocab.dialogue else {
        "start": vocab.id("User"), "ends": [vocab.id(name) for name in ("User", "Assistant", "System", "<|im_end|>")]}
    gate = Gate(len(vocab), len(paths), options["gate_hidden"], turn)
    experts = build_experts(paths, chains)
    tables = {cache.name: parallel.main_first(lambda: expert_losses(experts, hashes, cache, options, device))
              for cache in (split.cache, split.held_cache)}
    train, held = training_and_held(split, lambda cache, documents, shuffle: TurnData(
        cache, documents, tables[cache.name], turn, options, shuffle))
    adapter = {"type": "gate", "vocab_size": len(vocab), "hidden": options["gate_hidden"], "turn": turn,
               "experts": [{"path": path_from(options, p), "hash": h} for p, h in zip(paths, hashes)]}
    starts = {start_name(p): h for p, h in zip(paths, hashes)}
    described = about("gate", vocab, chains[0][0]["config"], starts, "gate", adapter)
    same = identity(vocab, split.cache, 专家="+".join(h[:16] for h in hashes))
    return Stage("gate", options, gate, train, held, described, same, gate_loss, notes=split.notes(), batch_names=True)


@torch.no_grad()
def gate_report(gate, data):
    """How well `gate` chooses on `data` (a TurnData): accuracy, mean losses and regrets in nats, confusion (X, X), best
    x picked."""
    documents = [int(d) for d in data.documents]
    losses = torch.stack([torch.from_numpy(data.losses[d]) for d in documents])
    device, was_training = gate.embed.weight.device, gate.training
    gate.eval()
    picks = torch.cat(
        [gate(*padded(data.turns(documents[i:i + 256]), device)).argmax(1).cpu()
         for i in range(0, len(documents), 256)])
    gate.train(was_training)
    best, oracle, count = losses.argmin(1), losses.amin(1).mean(), losses.shape[1]
    picked = losses.gather(1, picks[:, None])[:, 0]
    regret = float(picked.mean() - oracle)
    single = float(losses.mean(0).min() - oracle)
    return {"samples": len(documents), "accuracy": float((picked == losses.amin(1)).float().mean()), "regret": regret,
            "regret_best_single": single, "regret_random": float(losses.mean() - oracle),
            "regret_share": regret / single if single > 0 else 0.0, "oracle_loss": float(oracle),
            "confusion": torch.bincount(best * count + picks, minlength=count * count).view(count, count).tolist()}


def gate_train(config, **parameters):
    """Train on the options of the stage `gate`, `parameters` on top. Returns the last metrics and, under "gate", the
    report."""
    return start(build_stage, {**config, **parameters}, told)


def told(stage, metrics):
    """Say how well the gate chooses -> metrics, the report among them."""
    report = gate_report(stage.model, stage.held.get("held", stage.train))
    names = expert_names(stage.options["experts"])
    picture = draw_confusion(report["confusion"], names,
                             Path(stage.options["out_dir"], stage.options["name"] or "", "gate_confusion.png"))
    print(f"门在 {report['samples']} 个样本上：准确率 {report['accuracy']:.1%}；比逐样本最优多 {report['regret']:.4f} nats，"
          f"只用最好的一个候选模型多 {report['regret_best_single']:.4f}，随机选多 {report['regret_random']:.4f}。混淆矩阵：{picture}",
          file=sys.stderr)
    return {**metrics, "gate": {**report, "experts": names, "picture": str(picture)}}
