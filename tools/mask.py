"""Marking spans of ids: who may be learned from is decided by spans between two role ids."""
import numpy as np


def mask_from_id_to_id(ids, start_id=9, end_id=10):
    """Mark each span from a start (included) to the next end (excluded).

    ids: list, numpy array or CPU tensor, shape (T,) or (B, T); rows are independent. Returns bool of the same shape.
    A start without a later end marks nothing. With the default ids (User, Assistant):
    [1, 9, 50, 10, 60, 1, 9, 70] -> [F, T, T, F, F, F, F, F].
    """
    ids = np.asarray(ids)
    if ids.ndim not in (1, 2):
        raise ValueError(f"ids must have 1 or 2 dimensions, got {ids.ndim}")
    if ids.shape[-1] == 0:
        return np.zeros(ids.shape, dtype=bool)
    where = np.broadcast_to(np.arange(ids.shape[-1]), ids.shape)
    last_start = np.maximum.accumulate(np.where(ids == start_id, where, -1), axis=-1)
    last_end = np.maximum.accumulate(np.where(ids == end_id, where, -1), axis=-1)
    return (last_start > last_end) & (where < last_end[..., -1:])


def last_reply(supervised):
    """supervised (T,) bool -> (T,) bool of the last reply alone: the run of targets that ends the document."""
    places = np.flatnonzero(supervised)
    if not len(places):
        return supervised
    breaks = np.flatnonzero(np.diff(places) > 1)
    only = np.zeros_like(supervised)
    only[places[breaks[-1] + 1 if len(breaks) else 0:]] = True
    return only
