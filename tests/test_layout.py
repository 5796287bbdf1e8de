"""The arrangement of packed documents for attention: nothing is lost, nothing is mixed, little is padded."""
import numpy as np
import pytest
import torch

from model.segments import GRAIN, Segments, from_slots, to_slots

LENGTHS = [[5], [3, 3, 3], [7, 1, 1, 4, 30, 29, 2], [1] * 9 + [8], [64, 2, 50, 51, 13, 12, 12]]


def tokens(lengths):
    """(N, 2): number of the document, place in it."""
    return torch.tensor([[d, i] for d, length in enumerate(lengths) for i in range(length)], dtype=torch.float64)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_each_document_lies_in_one_line_from_its_start(lengths):
    layout, x = Segments.from_lengths(lengths), tokens(lengths)
    slots, base, seen = to_slots(x, layout), 0, []
    for documents, longest in layout.shapes:
        for line in slots[base:base + documents * longest].view(documents, longest, 2):
            number = int(line[0, 0])
            seen.append(number)
            assert lengths[number] <= longest
            assert line[:lengths[number]].tolist() == [[number, i] for i in range(lengths[number])]
        base += documents * longest
    assert base == len(slots) and sorted(seen) == list(range(len(lengths)))


@pytest.mark.parametrize("lengths", LENGTHS)
def test_there_and_back_is_the_identity_and_so_is_its_gradient(lengths):
    layout, x = Segments.from_lengths(lengths), tokens(lengths).requires_grad_()
    there = to_slots(x, layout)
    back = from_slots(there, layout)
    assert torch.equal(back, x)
    weight = torch.randn(back.shape, dtype=torch.float64)
    slot_gradient, gradient = torch.autograd.grad((back * weight).sum(), [there, x])
    assert torch.equal(gradient, weight)
    assert int((slot_gradient != 0).any(-1).sum()) == len(x)            # slots of padding get nothing


def test_equal_lengths_need_no_arrangement():
    layout, x = Segments.from_lengths([4, 4, 4]), torch.randn(12, 2)
    assert layout.shapes == [(3, 4)] and layout.gather is None
    assert to_slots(x, layout) is x and from_slots(x, layout) is x
    assert Segments.dense(3, 4).shapes == [(3, 4)]


def test_padding_stays_small():
    rng = np.random.default_rng(0)
    for spread in (0.3, 1.0):
        lengths = np.clip(rng.lognormal(4, spread, 300), 1, 512).astype(int)
        layout = Segments.from_lengths(lengths)
        slots = sum(documents * longest for documents, longest in layout.shapes)
        assert slots < 1.25 * lengths.sum() and len(layout.shapes) < 30


def test_to_another_device_keeps_the_shapes():
    layout = Segments.from_lengths([9, 1]).to("meta")
    assert layout.shapes == [(1, 16), (1, 8)] and layout.longest == 9 and layout.gather.device.type == "meta"


def test_lengths_of_buckets_recur():
    """Batches of documents of any lengths make few shapes; how long the longest document is, is still known."""
    layouts = [Segments.from_lengths([first, 2 * first]) for first in range(1, 129)]
    assert {length % GRAIN for layout in layouts for _, length in layout.shapes} == {0}
    assert len({shape for layout in layouts for shape in layout.shapes}) < 50
    assert [layout.longest for layout in layouts] == list(range(2, 257, 2))
