"""The tasks about numbers and the calendar: sums, differences, comparisons, weekdays, dates.

Every task has `draw(rng) -> slots`, `split(slots) -> "train" | "eval" | None` (None: in neither), `ask(rng, slots) -> (question, answer)`
and `tell(rng, slots) -> sentence of the pre-training text`. Long calculations are answered with their steps, in digits order: a tiny
model has no room to carry in its head.
"""
from tools.demo.hold import chinese, clean, counted, held, held_pair, split

MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)      # a common year
WEEK = "一二三四五六日"


def sum_steps(a, b):
    """37 + 48 -> [(7, 8, None, 15), (3, 4, 1, 8)]: ones, then tens with the carry (None when there is none)."""
    ones, carry = a % 10 + b % 10, (1 if a % 10 + b % 10 > 9 else None)
    return [(a % 10, b % 10, None, ones), (a // 10, b // 10, carry, a // 10 + b // 10 + (carry or 0))]


class Pair:
    """Shared by the tasks on two numbers from 10..99."""

    def draw(self, rng):
        return rng.randint(10, 99), rng.randint(10, 99)

    def numbers(self, a, b):
        """Every number that a row about (a, b) mentions."""
        return a, b

    def split(self, slots):
        if held_pair(*slots):
            return "eval"
        return "train" if clean(*self.numbers(*slots)) else None


class Sum(Pair):
    title = "两位数加法"
    asks = ["{a}+{b}=？", "{a}加{b}等于多少？", "请算{a}+{b}", "{a}与{b}的和是多少？", "有{a}个，又放进{b}个，一共几个？"]

    def numbers(self, a, b):
        (_, _, _, ones), (_, _, _, tens) = sum_steps(a, b)
        return a, b, ones, tens, a + b

    def work(self, a, b):
        (x, y, _, ones), (p, q, carry, tens) = sum_steps(a, b)
        return f"{x}+{y}={ones}，{p}+{q}{'+1' if carry else ''}={tens}，得{a + b}"

    def ask(self, rng, slots):
        a, b = slots
        return rng.choice(self.asks).format(a=a, b=b), self.work(a, b)

    def tell(self, rng, slots):
        a, b = slots
        return rng.choice(["{a}+{b}：", "{a}加{b}：", "算{a}+{b}："]).format(a=a, b=b) + self.work(a, b) + "。"


class Difference(Pair):
    title = "两位数减法"
    asks = ["{a}-{b}=？", "{a}减{b}等于多少？", "请算{a}-{b}", "{a}比{b}多多少？", "有{a}个，拿走{b}个，还剩几个？"]

    def draw(self, rng):
        return tuple(sorted(super().draw(rng), reverse=True))

    def numbers(self, a, b):
        return (a, b, a - b) + ((a % 10 + 10,) if a % 10 < b % 10 else ())

    def work(self, a, b):
        borrow = a % 10 < b % 10
        x, y, p, q = a % 10 + 10 * borrow, b % 10, a // 10, b // 10
        return f"{x}-{y}={x - y}，{p}{'-1' if borrow else ''}-{q}={p - borrow - q}，得{a - b}"

    def ask(self, rng, slots):
        a, b = slots
        return rng.choice(self.asks).format(a=a, b=b), self.work(a, b)

    def tell(self, rng, slots):
        a, b = slots
        return rng.choice(["{a}-{b}：", "{a}减{b}：", "算{a}-{b}："]).format(a=a, b=b) + self.work(a, b) + "。"


class ChineseSum(Sum):
    title = "汉字数字加法"
    asks = ["{a}加{b}等于多少？", "{a}加{b}是几？", "算算{a}加{b}", "{a}和{b}相加得多少？"]

    def work(self, a, b):
        (x, y, _, ones), (p, q, carry, tens) = sum_steps(a, b)
        words = [chinese(n) for n in (x, y, ones, p, q, tens, a + b)]
        return "{}加{}得{}，{}加{}{}得{}，{}".format(*words[:5], "加一" if carry else "", *words[5:])

    def ask(self, rng, slots):
        a, b = map(chinese, slots)
        return rng.choice(self.asks).format(a=a, b=b), self.work(*slots)

    def tell(self, rng, slots):
        a, b = map(chinese, slots)
        return rng.choice(["{a}加{b}：", "算算{a}加{b}："]).format(a=a, b=b) + self.work(*slots) + "。"


class Compare(Pair):
    title = "数字比大小"
    asks = [("{a}和{b}哪个大？", max), ("{a}和{b}哪个小？", min), ("{a}与{b}比，大的是多少？", max), ("{a}与{b}比，小的是多少？", min)]
    show = staticmethod(str)

    def split(self, slots):
        return None if slots[0] == slots[1] else super().split(slots)

    def ask(self, rng, slots):
        a, b = map(self.show, slots)
        question, pick = rng.choice(self.asks)
        return question.format(a=a, b=b), self.show(pick(slots))

    def tell(self, rng, slots):
        a, b, high, low = map(self.show, (*slots, max(slots), min(slots)))
        form = rng.choice(["{a}和{b}，大的是{high}，小的是{low}。", "{a}和{b}，小的是{low}，大的是{high}。",
                           "{a}和{b}哪个大，是{high}。", "{a}和{b}哪个小，是{low}。"])
        return form.format(a=a, b=b, high=high, low=low)


class ChineseCompare(Compare):
    title = "汉字数字比大小"
    show = staticmethod(chinese)


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
        whole = (f"{counted(n)}天是{counted(weeks)}周零{counted(rest)}天，" if rest else f"{counted(n)}天正好{counted(weeks)}周，") if weeks else ""
        return whole + (path + "，" if rest else "") + "星期" + WEEK[(start + step * rest) % 7]

    def words(self, rng, slots):
        """The known day and how the distance is said."""
        early, n, forward = slots
        start = WEEK[early if forward else (early + n) % 7]
        near = {(1, True): "明天", (2, True): "后天", (1, False): "昨天", (2, False): "前天"}
        if (n, forward) in near and rng.random() < 0.5:
            return start, near[n, forward]
        return start, f"{counted(n)}天{'后' if forward else '前'}"

    def ask(self, rng, slots):
        start, when = self.words(rng, slots)
        form = rng.choice(["今天星期{s}，{w}是星期几？", "今天是星期{s}，{w}星期几？", "如果今天星期{s}，那么{w}是星期几？"])
        return form.format(s=start, w=when), self.work(slots)

    def tell(self, rng, slots):
        start, when = self.words(rng, slots)
        return rng.choice(["今天星期{s}，{w}：", "今天是星期{s}，{w}："]).format(s=start, w=when) + self.work(slots) + "。"


class Date:
    """Slots: (month, day, n, forward?) of the earlier day in a common year; the later one is n = 1..9 days on."""
    title = "日期推算"

    def draw(self, rng):
        month = rng.randint(1, 12)
        last = MONTH_DAYS[month - 1]
        day = rng.randint(last - 8, last) if rng.random() < 0.3 else rng.randint(1, last)     # month ends are the hard part
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

    def words(self, rng, slots):
        month, day, n, forward = slots
        month2, day2 = self.later(month, day, n)
        start = f"{month}月{day}日" if forward else f"{month2}月{day2}日"
        if month == 2 and month2 == 3:
            start = "平年" + start
        if n == 1 and rng.random() < 0.5:
            return start, "的后一天" if forward else "的前一天"
        return start, rng.choice(["的{n}天后", "再过{n}天"] if forward else ["的{n}天前", "往前{n}天"]).format(n=n)

    def ask(self, rng, slots):
        start, when = self.words(rng, slots)
        return start + when + rng.choice(["是几月几日？", "是哪一天？"]), self.work(slots)

    def tell(self, rng, slots):
        start, when = self.words(rng, slots)
        return f"{start}{when}：{self.work(slots)}。"


NUMBER_TASKS = {"sum": Sum(), "difference": Difference(), "chinese_sum": ChineseSum(), "compare": Compare(),
                "chinese_compare": ChineseCompare(), "weekday": Weekday(), "date": Date()}
