"""What is held out does not depend on order, seed or process, and is about as much as asked for."""
from tools.demo.hold import chinese, clean, counted, held, held_pair, held_string
from tools.demo.names import held_name


def test_chinese_numerals():
    wanted = "零 十 二十 三十七 一百 一百零五 一百一十 一百一十九 一百九十八".split()
    assert [chinese(n) for n in (0, 10, 20, 37, 100, 105, 110, 119, 198)] == wanted
    assert len({chinese(n) for n in range(200)}) == 200 and (counted(2), counted(12)) == ("两", "十二")


def test_shares():
    assert 0.08 < sum(held("x", str(i), 0.1) for i in range(5000)) / 5000 < 0.12
    assert not held("x", "a", 0.0) and held("x", "a", 1.0)


def test_pairs_ignore_order_and_spare_the_calendar():
    pairs = [(a, b) for a in range(1, 120) for b in range(a, 120) if held_pair(a, b)]
    assert 100 <= len(pairs) <= 200 and all(held_pair(b, a) for a, b in pairs)
    assert all(10 <= a and b <= 99 and not (b <= 40 and b - a <= 9) for a, b in pairs)
    a, b = pairs[0]
    assert not clean(b, 5, a) and clean(a, 5)


def test_strings_ignore_direction_and_names_share_their_beginning():
    assert all(held_string(s) == held_string(s[::-1]) for s in ("天地", "山水火", "日月星云"))
    names = [a + b + c for a in "王李张刘陈杨" for b in "明芳静丽强伟" for c in "华英玉兰凤洁"]
    assert all(held_name(n) for n in names if held_name(n[:2])
               or held_name(n[1:])), "a held-out name is in no training name"
    assert 0.02 < sum(map(held_name, names)) / len(names) < 0.2 and held_name("Alice") == held_name("ALIna")
