"""What the loop and the data need of a stage's flat options; what each means says tools/config/keys.py."""

from dataclasses import dataclass, fields


class Picked:
    """A dataclass whose fields are keys of the configuration."""

    @classmethod
    def of(cls, options):
        """From a flat dict, of which the rest plays no part; a key that it lacks has its default, if it has one."""
        return cls(**{field.name: options[field.name] for field in fields(cls) if field.name in options})


@dataclass(frozen=True)
class LoopOptions(Picked):
    # learning rate
    init_lr: float
    min_lr: float
    decay: float
    scheduler: str
    warmup_index: int
    warmup_steps: int
    keep_temp_index: int
    min_lr_ratio: float
    # steps
    accumulation_steps: int
    max_steps: int | None
    max_norm: float
    mixed_precision: str
    seed: int
    # cadences, in steps (save_frq: in chunks), and what happens then
    logging_steps: int | str | None
    eval_steps: int | str | None
    save_steps: int | None
    save_frq: int | None
    save_best_model: bool
    early_stopping: bool
    early_stopping_patience: int
    early_stopping_threshold: float
    forget_limit: float | None
    # places
    device: str
    log_file: str
    log_dir: str
    tracker: str


@dataclass(frozen=True)
class DataOptions(Picked):
    max_len: int
    batch_size: int
    seed: int
    max_epochs: int
    n_of_samples: int | None
    n_of_samplings: int | None
    fc2_every: int = 1                  # data sets that are not ours have no second head
