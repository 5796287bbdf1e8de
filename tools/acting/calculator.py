"""An exact calculator: whole numbers, decimals and fractions, with a parser of its own and bounded sizes."""
import re
from fractions import Fraction

LONGEST = 300                   # characters of an expression
BITS = 4096                     # of a number
PLAIN = dict(zip(map(ord, "（）＋－−×＊÷／＾．，％　０１２３４５６７８９"), "()+--**//^.,% 0123456789"))
PART = re.compile(r"\s*(\d[\d,]*\.?\d*|\.\d+|\*\*|//|[-+*/^%()])")


class Wrong(ValueError):
    """What cannot be calculated; the message is for people and for the model."""


def calculate(expression):
    """ "12.5×(3+4)" -> "87.5". Wrong for what is no expression, or too large."""
    if len(expression) > LONGEST:
        raise Wrong(f"算式太长，最多 {LONGEST} 个字符")
    try:
        return written(_Parser(_parts(expression.translate(PLAIN).rstrip("=？?。 "))).whole())
    except ZeroDivisionError:
        raise Wrong("不能除以 0") from None
    except RecursionError:
        raise Wrong("括号套得太深") from None


def _parts(text):
    parts, at = [], 0
    text = text.rstrip()
    while at < len(text):
        found = PART.match(text, at)
        if not found:
            raise Wrong(f"看不懂算式里的 {text[at:at + 8].strip()}")
        parts.append(found[1].replace("**", "^"))
        at = found.end()
    return parts


def bounded(value):
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > BITS:
        raise Wrong("数太大了")
    return value


def written(value):
    """Exact where there are few enough decimals, else rounded to 12 digits."""
    if value.denominator == 1:
        return str(value.numerator)
    rest, places = value.denominator, 0
    for prime in (2, 5):
        count = 0
        while rest % prime == 0:
            rest, count = rest // prime, count + 1
        places = max(places, count)
    if rest == 1 and places <= 30:
        digits = str(abs(value.numerator) * 10 ** places // value.denominator).rjust(places + 1, "0")
        return ("-" if value < 0 else "") + f"{digits[:-places]}.{digits[-places:]}"
    try:
        return f"约 {float(value):.12g}"
    except OverflowError:
        return f"约 {value.numerator // value.denominator}"


class _Parser:
    """sum := product {+|- product}; product := signed {*|/|//|% signed}; signed := [-] power; power := unit [^ signed]
    """

    def __init__(self, parts):
        self.parts, self.at = parts, 0

    def whole(self):
        value = self.sum()
        if self.at < len(self.parts):
            raise Wrong(f"看不懂算式里的 {self.parts[self.at]}")
        return value

    def next(self, *wanted):
        """Take the next part if it is one of these."""
        if self.at < len(self.parts) and self.parts[self.at] in wanted:
            self.at += 1
            return self.parts[self.at - 1]
        return None

    def sum(self):
        value = self.product()
        while sign := self.next("+", "-"):
            other = self.product()
            value = bounded(value + other if sign == "+" else value - other)
        return value

    def product(self):
        value = self.signed()
        while sign := self.next("*", "/", "//", "%"):
            other = self.signed()
            value = bounded(value * other if sign == "*" else value / other if sign == "/"
                            else Fraction(value // other) if sign == "//" else value % other)
        return value

    def signed(self):
        minus = False
        while sign := self.next("+", "-"):
            minus ^= sign == "-"
        value = self.power()
        return -value if minus else value

    def power(self):
        value = self.unit()
        if not self.next("^"):
            return value
        up = self.signed()
        size = max(value.numerator.bit_length(), value.denominator.bit_length())
        if up.denominator != 1:
            raise Wrong("次方只能是整数")
        if abs(up) * size > BITS:
            raise Wrong("数太大了")
        return bounded(value ** int(up))

    def unit(self):
        if self.next("("):
            value = self.sum()
            if not self.next(")"):
                raise Wrong("少了右括号")
        elif self.at < len(self.parts) and self.parts[self.at][0] in ".0123456789":
            value = bounded(Fraction(self.parts[self.at].replace(",", "").rstrip(".") or "0"))
            self.at += 1
        else:
            raise Wrong("算式不完整" if self.at >= len(self.parts) else f"看不懂算式里的 {self.parts[self.at]}")
        return value / 100 if self._percent() else value

    def _percent(self):
        """A % that is followed by no number: 15%."""
        after = self.parts[self.at + 1] if self.at + 1 < len(self.parts) else ")"
        return after in (")", "+", "-", "*", "/", "//", "^") and bool(self.next("%"))
