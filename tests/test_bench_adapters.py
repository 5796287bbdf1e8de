"""What the adapter bench counts: items of shopping lists, paired answers, folds, names."""
import numpy as np

from bench.adapt import paired
from bench.adapters import item_f1, pooled, table_items


def test_items_of_a_list():
    assert table_items("|牛奶|两盒|常温|苹果|三斤|没有|") == {("牛奶", "两盒", "常温"): 1, ("苹果", "三斤", "没有"): 1}
    assert table_items("| 牛奶 |两盒|常温|", cells=2) == {("牛奶", "两盒"): 1}
    assert table_items("|牛奶|两盒|") == {} and table_items("好的") == {} and table_items("") == {}
    assert table_items("|盐|一袋|没有|盐|一袋|没有|") == {("盐", "一袋", "没有"): 2}


def test_item_f1():
    right = ["|牛奶|两盒|常温|苹果|三斤|没有|", "|盐|一袋|没有|"]
    assert item_f1(right, right) == 1.0
    assert item_f1(right, ["", "您好"]) == 0.0
    half = ["|牛奶|两盒|冰|苹果|三斤|没有|", "|盐|一袋|没有|糖|一袋|没有|"]
    assert item_f1(right, half) == round(2 * 2 / (3 + 4), 4) and item_f1(right, half,
        cells=2) == round(2 * 3 / (3 + 4), 4)
    assert item_f1(["|盐|一袋|没有|"], ["|盐|一袋|没有|" * 2]) == round(2 / 3, 4), "saying it twice does not help"


def test_paired_marks():
    before, after = np.array([True] * 90 + [False] * 10), np.array([True] * 87 + [False] * 3 + [True] + [False] * 9)
    found = paired(before, after)
    assert (found["n"], found["before"], found["after"], found["fall"], found["lost"], found["gained"]) == (100, 90.0,
        88.0, 2.0, 3, 1)
    assert abs(found["margin"] - 196 * (4 - 4 / 100) ** 0.5 / 100) < 0.01
    assert paired(before, before)["fall"] == paired(before, before)["margin"] == 0


def test_folds_are_added_up_and_the_worst_is_shown():
    parts = [{"cpu_seconds": c, "seconds": c, "asked": 30, "renamed": r, "fall": f, "general": [0.1, g]}
             for c, r, f, g in ((20, 30, 0.5, 0.2), (25, 27, 1.5, 0.3))]
    found = pooled(parts)
    assert (found["asked"], found["renamed"], found["cpu_seconds"], found["fall"], found["mean_fall"],
            found["general"]) == (60, 57, 25, 1.5, 1.0, [0.1, 0.3])
