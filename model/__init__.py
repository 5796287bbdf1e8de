"""The network: tensors in, tensors out. Nothing here reads files, prints, or knows about text."""

from model.config import ModelConfig
from model.tiny_seek import ModelOutput, TinySeek

__all__ = ["ModelConfig", "ModelOutput", "TinySeek"]
