"""Rotary positions in a config.json: `rope_parameters`, or the older `rope_theta` and `rope_scaling`."""

import math

THETA = 10000.0
CONSTANTS = {"low_freq_factor": 1, "high_freq_factor": 4, "beta_fast": 32, "beta_slow": 1, "truncate": True,
             "partial_rotary_factor": 1}         # what the same kinds could say otherwise, and we do not compute


def rope_keys(c):
    """What a config.json says about the rotary positions of a ModelConfig, in both ways of writing it."""
    said = {"rope_type": "default"}
    if c.rope_scaling != "none":
        said = {"rope_type": c.rope_scaling, "factor": c.rope_factor}
    if c.rope_scaling in ("llama3", "yarn"):
        said["original_max_position_embeddings"] = c.rope_original
    if c.rope_scaling == "llama3":
        said |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if c.rope_scaling == "yarn":
        said |= _sharpness(c)
    older = {} if c.rope_scaling == "none" else {"rope_scaling": dict(said)}
    return {"rope_theta": c.ro_theta, "rope_parameters": {**said, "rope_theta": c.ro_theta}, **older}


def _sharpness(c):
    if c.attention == "gqa":
        return {"attention_factor": math.sqrt(c.sharpness)}
    grown = (math.sqrt(c.sharpness) - 1) / (0.1 * math.log(c.rope_factor)) if c.rope_factor > 1 else 1.0
    return {"mscale": grown, "mscale_all_dim": grown}           # DeepSeek's way: only both together are a plain factor


def read_rope(found):
    """config.json -> the keys of ModelConfig. ValueError names what cannot be computed here."""
    older, newer = found.get("rope_scaling") or {}, found.get("rope_parameters") or {}
    for name, value in (("rope_scaling", older), ("rope_parameters", newer)):
        if not isinstance(value, dict):
            raise ValueError(f"{name}={value!r} 不对")
    said, kind = {**older, **newer}, _kind(newer or older)
    if older and _kind(older) != kind:                          # two readers would make two models of it
        raise ValueError(f"rope_scaling={_kind(older)!r}, rope_parameters={kind!r}")
    keys = {"ro_theta": said.get("rope_theta", found.get("rope_theta", THETA))}
    wrong = [name for name, value in CONSTANTS.items() if said.get(name) not in (None, value)]
    if kind not in ("default", "linear", "llama3", "yarn"):
        wrong = [kind]
    if wrong:
        raise ValueError(f"rope {wrong[0]}={said.get(wrong[0], kind)!r}")
    if kind == "default":
        return keys
    keys |= {"rope_scaling": kind, "rope_factor": float(said["factor"])}
    if kind != "linear":
        keys["rope_original"] = said.get("original_max_position_embeddings") or found["max_position_embeddings"]
    if kind == "yarn":
        keys["rope_attention"] = _attention(said, keys["rope_factor"], "kv_lora_rank" in found)
    return keys


def _kind(said):
    return said.get("rope_type") or said.get("type") or "default"


def _attention(said, factor, latent):
    """The factor on queries and keys, None where it is YaRN's own."""
    def grown(scale):
        return 0.1 * scale * math.log(factor) + 1 if factor > 1 else 1.0
    mscale, every = said.get("mscale"), said.get("mscale_all_dim")
    if latent:
        if not mscale or mscale != every or said.get("attention_factor") not in (None, 1):
            raise ValueError(f"rope mscale={mscale!r}, mscale_all_dim={every!r}")
        return grown(every)
    if said.get("attention_factor") is not None:
        return said["attention_factor"]
    return grown(mscale) / grown(every) if mscale and every else None
