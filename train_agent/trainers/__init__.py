"""The trainers. `from train_agent.trainers import Trainer, create_dataloader` works; each name is imported when it is
asked for, so that the token cache's worker processes start without torch."""
from importlib import import_module

_HOME = {"Trainer": "trainer", "TrainingConfig": "trainer", "TextDataset": "data.for_own_loops",
         "create_dataloader": "data.for_own_loops",
         "get_cosine_schedule_with_warmup": "schedules", "compute_router_auxiliary_loss": "losses"}
__all__ = list(_HOME)


def __getattr__(name):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
