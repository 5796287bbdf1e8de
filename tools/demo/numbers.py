"""The tasks about numbers and the calendar: sums, differences, comparisons, weekdays, dates.

Every task has `draw(rng) -> slots`, `split(slots) -> "train" | "eval" | None` (None: in neither), `ask(rng, slots,
style)
-> (question, answer)` and `tell(rng, slots) -> sentence of the pre-training text`. Long calculations are answered with
their steps, in digits order: a tiny model has no room to carry in its head.
"""
from tools.demo import forms
from tools.demo.hold import chinese, clean, counted, held, held_pair, split
from tools.demo.noise import FREE, KITS, PLAIN, ask, digits, dress, fill, in_digits, pick, spelled, week_word

MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)      # a common year
WEEK = "一二三四五六日"


def sum_steps(a, b):
    """37 + 48 -> [(7, 8, None, 15), (3, 4, 1, 8)]: ones, then tens, ... with the carry (None when there is none)."""
    steps, carry = [], None
    while a or b or not steps:
        total = a % 10 + b % 10 + (carry or 0)
        steps.append((a % 10, b % 10, carry, total))
        carry, a, b = (1 if total > 9 else None), a // 10, b // 10
    return steps


def difference_steps(a, b):
    """85 - 37 -> [(15, False, 7, 8), (8, True, 3, 4)]: digit (with what was lent), was one lent below?, digit, rest; a
    >= b."""
    steps, lent = [], False
    while a or not steps:
        x, y = a % 10, b % 10
        borrow = x - lent < y
        steps.append((x + 10 * borrow, lent, y, x + 10 * borrow - lent - y))
        lent, a, b = borrow, a // 10, b // 10
    return steps


class Pair:
    """Shared by the tasks on two numbers, mostly from 10..99; only such pairs are held out."""
    most = 999

    def draw(self, rng):
        size = rng.random()
        if size < 0.72:
            return rng.randint(10, 99), rng.randint(10, 99)
        if size < 0.82:
            return rng.randint(0, 9), rng.randint(0, 9)
        top = 99 if size < 0.92 else self.most
        pair = [rng.randint(1, top), rng.randint(1, rng.choice((9, 99, top)))]
        rng.shuffle(pair)
        return tuple(pair)

    def numbers(self, a, b):
        """Every number that a row about (a, b) mentions."""
        return a, b

    def split(self, slots):
        if held_pair(*slots):
            return "eval"
        return "train" if clean(*self.numbers(*slots)) else None

    def ask(self, rng, slots, style=PLAIN):
        a, b = (digits(rng, n, style) for n in slots)
        return ask(rng, self.forms, style, a=a, b=b), self.work(*slots)


class Sum(Pair):
    title = "两位数加法"
    forms = forms.SUM

    def numbers(self, a, b):
        return a, b, *(total for *_, total in sum_steps(a, b)), a + b

    def work(self, a, b):
        return "，".join(f"{x}+{y}{'+1' if carry else ''}={total}"
                        for x, y, carry, total in sum_steps(a, b)) + f"，得{a + b}"

    def tell(self, rng, slots):
        a, b = slots
        return rng.choice(["{a}+{b}：", "{a}加{b}：", "算{a}+{b}："]).format(a=a, b=b) + self.work(a, b) + "。"


class Difference(Pair):
    title = "两位数减法"
    forms = forms.DIFFERENCE

    def draw(self, rng):
        return tuple(sorted(super().draw(rng), reverse=True))

    def numbers(self, a, b):
        return a, b, a - b, *(x for x, *_ in difference_steps(a, b) if x >= 10)

    def work(self, a, b):
        return "，".join(f"{x}{'-1' if lent else ''}-{y}={rest}"
                        for x, lent, y, rest in difference_steps(a, b)) + f"，得{a - b}"

    def tell(self, rng, slots):
        a, b = slots
        return rng.choice(["{a}-{b}：", "{a}减{b}：", "算{a}-{b}："]).format(a=a, b=b) + self.work(a, b) + "。"


class ChineseSum(Sum):
    title = "汉字数字加法"
    forms = forms.CHINESE_SUM
    most = 99

    def work(self, a, b):
        steps = "，".join(f"{chinese(x)}加{chinese(y)}{'加一' if carry else ''}得{chinese(total)}"
                         for x, y, carry, total in sum_steps(a, b))
        return f"{steps}，{chinese(a + b)}"

    def ask(self, rng, slots, style=PLAIN):
        a, b = map(chinese, slots)
        return ask(rng, self.forms, style, a=a, b=b), self.work(*slots)

    def tell(self, rng, slots):
        a, b = map(chinese, slots)
        return rng.choice(["{a}加{b}：", "算算{a}加{b}："]).format(a=a, b=b) + self.work(*slots) + "。"


class Compare(Pair):
    title = "数字比大小"

    def show(self, rng, n, style=PLAIN):
        return digits(rng, n, style)

    def split(self, slots):
        return None if slots[0] == slots[1] else super().split(slots)

    def ask(self, rng, slots, style=PLAIN):
        pick, ways, word = rng.choice(((max, forms.BIGGER, "大"), (min, forms.SMALLER, "小")))
        shown = {name: self.show(rng, n, style) for name, n in zip("ab", slots)}
        right = self.show(rng, pick(slots))
        if style == FREE and rng.random() < 0.08:                       # 57比34大吗？ -> 是，57大
            question = fill(rng, rng.choice(forms.IS_BIGGER).replace("大", word), style, **shown)
            return question, f"{'是' if pick(slots) == slots[0] else '不是'}，{right}{word}"
        return ask(rng, ways, style, **shown), right

    def tell(self, rng, slots):
        a, b, high, low = (self.show(rng, n) for n in (*slots, max(slots), min(slots)))
        form = rng.choice(["{a}和{b}，大的是{high}，小的是{low}。", "{a}和{b}，小的是{low}，大的是{high}。",
                           "{a}和{b}哪个大，是{high}。", "{a}和{b}哪个小，是{low}。"])
        return form.format(a=a, b=b, high=high, low=low)


class ChineseCompare(Compare):
    title = "汉字数字比大小"
    most = 199

    def show(self, rng, n, style=PLAIN):
        return chinese(n)


class Weekday:
    """Slots: (earlier day 0..6, days between, forward?). A fact and its mirror image are held out together."""
    title = "星期推算"
    most = 50

    def draw(self, rng):
        return rng.randrange(7), rng.randint(1, self.most), rng.random() < 0.5

    def split(self, slots):
        return split(held("weekday", f"{slots[0]},{slots[1]}", 0.16))

    def work(self, slots):
        """Take off whole weeks, then name the days one by one: what a person does with fingers."""
        early, n, forward = slots
        weeks, rest = divmod(n, 7)
        start, step = (early, 1) if forward else (early + n, -1)
        path = "".join(WEEK[(start + step * i) % 7] for i in range(1, rest + 1))
        whole = (f"{counted(n)}天是{counted(weeks)}周零{counted(rest)}天，" if rest
                 else f"{counted(n)}天正好{counted(weeks)}周，") if weeks else ""
        return whole + (path + "，" if rest else "") + "星期" + WEEK[(start + step * rest) % 7]

    def words(self, rng, slots, style=PLAIN):
        """The known day and how the distance is said."""
        early, n, forward = slots
        start = WEEK[early if forward else (early + n) % 7]
        near = {(1, True): "明天", (2, True): "后天", (1, False): "昨天", (2, False): "前天"}
        if (n, forward) in near and rng.random() < 0.5:
            return start, near[n, forward]
        if style != PLAIN and n == 7 and rng.random() < 0.5:
            return start, rng.choice(("一周", "一个星期")) + ("后" if forward else "前")
        when = pick(rng, forms.LATER if forward else forms.EARLIER, style)
        return start, when.format(n=spelled(rng, n, style, counted))

    def ask(self, rng, slots, style=PLAIN):
        start, when = self.words(rng, slots, style)
        form = pick(rng, forms.WEEKDAY, style)
        if style != PLAIN:
            form = dress(rng, form, KITS[style])
        return week_word(rng, form.format(s=start, w=when), style), self.work(slots)

    def tell(self, rng, slots):
        start, when = self.words(rng, slots)
        return rng.choice(["今天星期{s}，{w}：", "今天是星期{s}，{w}："]).format(s=start, w=when) + self.work(slots) + "。"


class Date:
    """Slots: (month, day, n, forward?) of the earlier day in a common year; the later one is n = 1..9 days on."""
    title = "日期推算"

    def draw(self, rng):
        month = rng.randint(1, 12)
        last = MONTH_DAYS[month - 1]
        # month ends are the hard part
        day = rng.randint(last - 8, last) if rng.random() < 0.3 else rng.randint(1, last)
        return month, day, rng.randint(1, 9), rng.random() < 0.5

    def split(self, slots):
        return split(held("date", "{},{},{}".format(*slots[:3]), 0.05))

    def later(self, month, day, n):
        last = MONTH_DAYS[month - 1]
        return (month, day + n) if day + n <= last else (month % 12 + 1, day + n - last)

    def work(self, slots):
        month, day, n, forward = slots
        last, (month2, day2) = MONTH_DAYS[month - 1], self.later(month, day, n)
        if forward and month2 == month:
            return f"{month}月{last}天，{day}+{n}={day2}，{month}月{day2}日"
        if forward:
            return f"{month}月{last}天，{day}+{n}={day + n}，{day + n}-{last}={day2}，{month2}月{day2}日"
        if month2 == month:
            return f"{day2}-{n}={day}，{month}月{day}日"
        return f"{month}月{last}天，{day2}+{last}={day2 + last}，{day2 + last}-{n}={day}，{month}月{day}日"

    def words(self, rng, slots, style=PLAIN):
        month, day, n, forward = slots
        first, last = (month, day), self.later(month, day, n)
        written = self.written(rng, *(first if forward else last), style)
        if month == 2 and last[0] == 3:
            written = "平年" + written
        if n == 1 and rng.random() < 0.5:
            return written, "的后一天" if forward else "的前一天"
        when = pick(rng, forms.DATE_LATER if forward else forms.DATE_EARLIER, style)
        return written, when.format(n=in_digits(rng, n, style))

    def written(self, rng, month, day, style):
        """3月28日; in other styles also 三月二十八日 and 3月28号."""
        show = chinese if style != PLAIN and rng.random() < 0.25 else lambda n: digits(rng, n, style)
        return f"{show(month)}月{show(day)}{'号' if style != PLAIN and rng.random() < 0.4 else '日'}"

    def ask(self, rng, slots, style=PLAIN):
        written, when = self.words(rng, slots, style)
        return ask(rng, forms.DATE, style, d=written, w=when), self.work(slots)

    def tell(self, rng, slots):
        written, when = self.words(rng, slots)
        return f"{written}{when}：{self.work(slots)}。"


NUMBER_TASKS = {"sum": Sum(), "difference": Difference(), "chinese_sum": ChineseSum(), "compare": Compare(),
                "chinese_compare": ChineseCompare(), "weekday": Weekday(), "date": Date()}
