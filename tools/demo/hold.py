"""What is held out: decided by the content alone, so that every row, whatever its wording or seed, agrees."""
import hashlib
from functools import lru_cache

DIGITS = "零一二三四五六七八九"
CALENDAR_TOP, CALENDAR_STEP = 40, 9      # the sums that working out a date needs stay in training


@lru_cache(maxsize=None)
def held(what, content, share):
    """True for about `share` of all contents of this kind; content: a string. The same on every machine and for every
    seed."""
    digest = hashlib.sha256(f"{what}|{content}".encode("utf-8")).digest()
    return int.from_bytes(digest[:6], "big") < share * 2 ** 48


def held_pair(a, b):
    """Is {a, b}, in either order, in digits or in words, kept out of every training row? Only pairs from 10..99 are."""
    low, high = min(a, b), max(a, b)
    if low < 10 or high > 99 or (high <= CALENDAR_TOP and high - low <= CALENDAR_STEP):
        return False
    return held("pair", f"{low},{high}", 0.035)


def clean(*numbers):
    """No two of these numbers are a held-out pair: results and steps count as well as operands."""
    return not any(held_pair(a, b) for i, a in enumerate(numbers) for b in numbers[i + 1:])


def held_dish(dish):
    """Only dishes of two words are; a plain one is in many of them."""
    return len(dish) >= 4 and held("dish", dish, 0.1)


def held_place(place):
    """Only a corner of a city is; a city is told of elsewhere, too."""
    return len(place) >= 4 and held("place", place, 0.1)


def held_string(string):
    """A puzzle's string, forwards or backwards."""
    return held("string", min(string, string[::-1]), 0.06)


def split(is_held):
    return "eval" if is_held else "train"


def chinese(n):
    """0..199 in Chinese numerals: 37 -> 三十七, 105 -> 一百零五, 110 -> 一百一十."""
    if n < 10:
        return DIGITS[n]
    if n < 20:
        return "十" + (DIGITS[n % 10] if n % 10 else "")
    if n < 100:
        return DIGITS[n // 10] + "十" + (DIGITS[n % 10] if n % 10 else "")
    rest = n - 100
    if not rest:
        return "一百"
    return "一百" + ("零" + DIGITS[rest] if rest < 10 else ("一" if rest < 20 else "") + chinese(rest))


def counted(n):
    """A number before a measure word: 2 -> 两, else as `chinese`."""
    return "两" if n == 2 else chinese(n)
