"""Is something wrong? Two questions that a healthy training answers with no."""

import torch

from train_agent.trainers import parallel
from train_agent.trainers.hardware import sharding
from train_agent.trainers.trying.dry_loop import Rehearsal

LEARNED = 0.05          # of the first loss: below it one batch counts as learned by heart
NUDGE = 0.02            # what an all-zero tensor is filled with to see whether it was what stopped a gradient


def overfit_one_batch(stage, steps=None, say=print):
    """`--overfit_one_batch N`: learn one micro-batch by heart on a copy of the model -> {"first", "last", "share",
    "steps"}.

    Constant learning rate, no dropout, no noise. A model, loss and optimizer that work bring the loss near zero.
    """
    steps = steps or stage.options["overfit_one_batch"]
    with Rehearsal(stage, scheduler="constant", warmup_steps=0, warmup_index=-1) as loop:
        loop.model.eval()                                  # what it learns by heart must not flicker
        batch = next(loop.groups())[:1]
        losses = []
        for _ in range(steps):
            loop.optimize(batch, 1)
            losses.append(loop.metrics["loss"])
            if say and parallel.is_main() and (len(losses) & (len(losses) - 1) == 0 or len(losses) == steps):
                say(f"第 {len(losses):>5} 步  损失 {losses[-1]:.4f}  梯度范数 {loop.metrics['grad_norm']:.3g}")
    share = losses[-1] / losses[0]
    if say and parallel.is_main():
        verdict = "正常：模型学得会" if share < LEARNED else "还没学会：多给些步数或大一点的 init_lr；若仍不降，请检查数据、损失和 --check_gradients"
        say(f"同一批 {steps} 步，损失降到最初的 {share:.1%}。{verdict}。模型没有改变。")
    return {"first": losses[0], "last": losses[-1], "share": share, "steps": steps}


class Gradients(Rehearsal):
    """One step that is not taken: its gradients stay in `found` {name: full tensor or None}."""

    def may_step(self, group):
        self.found = {n: None if p.grad is None else sharding.whole(p.grad).clone()
                      for n, p in self.model.named_parameters()}
        return False

    def once(self):
        self.optimize(next(self.groups()), 1)
        return self.found, self.sums.get("load")


def check_gradients(stage, say=print):
    """`--check_gradients`: every tensor without a gradient, and why -> {name: reason in Chinese}; WRONG where there is
    no excuse."""
    with Gradients(stage) as loop:
        found, load = loop.once()
    with Gradients(stage) as loop:
        with torch.no_grad():
            # a zero on the path (LoRA's B at the start) hides what lies before it
            for parameter in loop.model.parameters():
                if not sharding.whole(parameter).any():
                    parameter.add_(NUDGE)
        nudged = loop.once()[0]
    learning = {n for n, p in stage.model.named_parameters() if p.requires_grad}
    reasons = {}
    for name, gradient in found.items():
        if name not in learning:
            reasons[name] = FROZEN
        elif gradient is None or not gradient.any():
            reasons[name] = BEHIND_ZERO if nudged[name] is not None and nudged[name].any() else WRONG
        elif load is not None and gradient.ndim == 3 and len(gradient) == load.shape[-1]:
            idle = [i for i, one in enumerate(gradient) if not one.any()]
            if idle:
                reasons[name] = f"{UNROUTED} {idle}"
    if say and parallel.is_main():
        _tell(found, reasons, say)
    return reasons


FROZEN, BEHIND_ZERO, UNROUTED = "冻结，不学习", "起步时被置零的另一半挡住，第一步之后就有", "这一步没有词元选到的专家"
WRONG = "没有梯度，请检查"


def _tell(found, reasons, say):
    frozen = sum(r == FROZEN for r in reasons.values())
    for name, reason in reasons.items():
        if reason != FROZEN:
            say(f"  {name}：{reason}")
    wrong = sum(r == WRONG for r in reasons.values())
    say(f"{len(found)} 个张量：{len(found) - len(reasons)} 个梯度正常，{frozen} 个冻结，{wrong} 个应有而没有梯度。模型没有改变。")
