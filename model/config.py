"""The shape of a model. One frozen dataclass; every field is a key of model_config.json."""

import math
from dataclasses import asdict, dataclass, fields

# Also the choices of tools/config/keys.py, which may not import this; a test holds them equal.
CHOICES = {
    "activation": ("swiglu", "geglu", "gelu", "gelu_tanh", "relu", "relu2"),
    "norm": ("rms", "layer"),
    "position": ("rope", "alibi", "learned"),
    "attention": ("mla", "gqa"),
    "router": ("softmax", "sigmoid"),
    "moe_loss": ("lexp", "aux"),
    "bias": ("none", "qkv", "all"),
    "rope_scaling": ("none", "linear", "llama3", "yarn"),
}


@dataclass(frozen=True)
class ModelConfig:
    vocab_size: int
    n_layer: int = 4
    pad_idx: int = 0
    n_head: int = 8
    d_model: int = 256
    d_c: int = 64                    # width of the shared key/value latent (the decode cache)
    d_q: int | None = None           # width of the query latent, None = 2 * d_c
    d_r: int = 16                    # rotary dimensions per head, decoupled from the content ones
    hidden: int = 256                # hidden width of one expert
    other_experts: int = 8           # routed experts
    shared_experts: int = 2          # experts that see every token
    keep: int = 2                    # routed experts per token
    ro_theta: float = 10000.0
    dropout: float = 0.0
    alpha: float = 0.01              # weight of the routing loss
    routed_scaling: float = 1.0
    activation: str = "swiglu"
    norm: str = "rms"
    position: str = "rope"
    attention: str = "mla"
    n_kv_head: int | None = None     # gqa only, None = n_head
    head_dim: int | None = None      # content dimensions per head, None = d_model / n_head
    bias: str = "none"               # gqa only: of queries, keys and values (qkv), or of every projection of the blocks
    rope_scaling: str = "none"       # how rotary positions are stretched beyond the length that was trained
    rope_factor: float = 1.0         # by how much
    rope_original: int | None = None     # llama3 and yarn: the length that was trained
    rope_attention: float | None = None  # queries and keys grow by it, None = what yarn says, 1 elsewhere
    sliding_window: int | None = None
    use_moe: bool = True
    use_fc2: bool = True
    fc2_every: int = 1               # head 2 learns from every so manieth position
    fc2_gradient: float = 1.0        # share of head 2's gradient that reaches the trunk
    fc2_token: bool = False          # head 2 also reads the next token, which is chosen when it drafts the one after
    n_dense_layer: int = 0           # the first layers that stay dense in a MoE model
    dense_hidden: int | None = None  # None = as many active parameters as a MoE layer
    tie_embedding: bool = False
    router: str = "softmax"
    router_noise: float = 0.0
    router_bias_rate: float = 0.001  # sigmoid only: by how much a step moves the balancing bias
    gradient_checkpointing: bool = False
    moe_loss: str = "lexp"
    router_z_loss: float = 0.0
    max_position: int | None = None  # learned positions only
    qk_norm: bool = False            # gqa only: queries and keys of every head are normalised before they turn
    # longest n-gram whose counts are mixed into head 1, 0 = none (model/kernels/ngram_head.py)
    counted: int = 0
    init_std: float = 0.02
    norm_eps: float = 1e-6           # what DeepSeek-V2's latent norms are built with

    def __post_init__(self):
        for key, allowed in CHOICES.items():
            if getattr(self, key) not in allowed:
                raise ValueError(f"{key} must be one of {', '.join(allowed)}, not {getattr(self, key)!r}")
        if self.head_dim is None and self.d_model % self.n_head:
            raise ValueError(f"n_head {self.n_head} does not divide d_model {self.d_model}")
        if self.attention == "gqa" and self.n_head % self.kv_heads:
            raise ValueError(f"n_kv_head {self.kv_heads} does not divide n_head {self.n_head}")
        if self.position == "rope" and self.rotary_width % 2:
            raise ValueError(f"rotary width {self.rotary_width} must be even")
        self._check_bias_and_scaling()
        if self.use_moe and not 1 <= self.keep <= self.other_experts:
            raise ValueError(f"keep {self.keep} must lie between 1 and other_experts {self.other_experts}")
        if self.use_moe and self.shared_experts < 1:
            raise ValueError("shared_experts must be at least 1")
        if self.qk_norm and self.attention != "gqa":
            raise ValueError("qk_norm belongs to attention 'gqa'; 'mla' normalises its latents already")
        if self.counted and not (2 <= self.counted and self.vocab_size ** (self.counted - 1) < 2 ** 63):
            raise ValueError(f"counted {self.counted} must be 0 or at least 2, "
                             f"and small enough for a vocabulary of {self.vocab_size}")
        if self.counted and self.use_fc2:
            raise ValueError("counted needs use_fc2 false: there are no counts for the second next token")
        if self.position == "learned" and not self.max_position:
            raise ValueError("position 'learned' needs max_position")

    def _check_bias_and_scaling(self):
        if self.bias != "none" and self.attention != "gqa":
            raise ValueError("bias belongs to attention 'gqa'")
        if self.bias == "all" and self.use_moe:
            raise ValueError("bias 'all' needs use_moe false: experts have none")
        if self.rope_scaling != "none" and self.position != "rope":
            raise ValueError("rope_scaling belongs to position 'rope'")
        if self.rope_scaling in ("llama3", "yarn") and not self.rope_original:
            raise ValueError(f"rope_scaling '{self.rope_scaling}' needs rope_original, the length that was trained")

    @classmethod
    def from_dict(cls, values):
        """Build from a dict of exactly these keys. An unknown key raises ValueError."""
        unknown = set(values) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown model keys: {', '.join(sorted(unknown))}")
        return cls(**values)

    def to_dict(self):
        return asdict(self)

    @property
    def d_h(self):
        """Content dimensions per head, also the width of a head's value."""
        return self.head_dim or self.d_model // self.n_head

    @property
    def query_latent(self):
        return self.d_q or 2 * self.d_c

    @property
    def kv_heads(self):
        return self.n_kv_head or self.n_head

    @property
    def rotary_width(self):
        return self.d_r if self.attention == "mla" else self.d_h

    @property
    def rope(self):
        """What `layers.rotary_tables` needs beside the positions."""
        return self.rotary_width, self.ro_theta, (self.rope_scaling, self.rope_factor, self.rope_original)

    @property
    def sharpness(self):
        """Factor on the attention scores (YaRN, arXiv:2309.00071, section 3.4)."""
        usual = 0.1 * math.log(self.rope_factor) + 1 if self.rope_scaling == "yarn" else 1.0
        return (self.rope_attention or usual) ** 2

    @property
    def dense_width(self):
        return self.dense_hidden or self.hidden * (self.keep + self.shared_experts)

    def is_moe_layer(self, index):
        return self.use_moe and index >= self.n_dense_layer


MODEL_KEYS = tuple(f.name for f in fields(ModelConfig))
