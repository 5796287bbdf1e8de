"""Everything beside the weights that a run needs to go on as if it had never stopped."""

import random

import numpy as np
import torch

from train_agent.trainers import parallel


def random_states():
    """torch, CUDA, numpy and Python generators as plain tensors and lists."""
    kind, keys, place, has_gauss, cached = np.random.get_state()
    version, internal, gauss = random.getstate()
    return {"torch": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(place), int(has_gauss), float(cached)],
            "python": [version, list(internal), gauss]}


def restore_random_states(states):
    torch.set_rng_state(states["torch"])
    if states["cuda"] and len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))


def surroundings(device):
    """What has to be the same for a resumed run to be bit-identical."""
    return {"torch": str(torch.__version__), "device": device.type, "threads": torch.get_num_threads(),
            "ranks": parallel.world()}


def unlike(before, device):
    """Why a run that was saved in these surroundings and goes on here may differ from one never stopped; None where it
    may not."""
    changed = [f"{k} {before[k]} → {v}" for k, v in surroundings(device).items() if before[k] != v]
    if changed:
        return f"续训环境变了（{'，'.join(changed)}），结果不再逐位相同。"
    return None if device.type == "cpu" else "显卡上求和的次序不固定，接着训的结果和没断过的只是近似相同。"


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
