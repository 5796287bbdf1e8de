"""The task that turns a request into a table: shopping lists. Goods that are not the shop's are copied as they are
said."""
from tools.demo import forms, words
from tools.demo.hold import counted, held, split
from tools.demo.names import EVERYDAY, rare_word
from tools.demo.noise import FREE, PLAIN, ask, pick, spelled


class Shopping:
    """Slots: (item, ...), an item = (goods, number, specification or None). A request is held out when all its items
    are."""
    title = "购物清单"

    def item(self, rng):
        good = rng.choice(sorted(words.GOODS))
        return good, rng.randint(1, 10), rng.choice(words.GOODS[good][1]) if rng.random() < 0.55 else None

    def is_held(self, item):
        return held("goods", "{},{},{}".format(*item), 0.06)

    def draw(self, rng, part="train"):
        """1-3 different goods, all of them held out or none."""
        items, wanted = {}, rng.choice((1, 1, 2, 2, 3))
        while len(items) < wanted:
            item = self.item(rng)
            if self.is_held(item) == (part == "eval"):
                items[item[0]] = item
        return tuple(items.values())

    def split(self, slots):
        return split(self.is_held(slots[0]))

    def measured(self, rng, slots, style=PLAIN):
        """Slots -> [(goods, number, unit, specification), ...]; beyond the plain style some goods are none of the
        shop's: they are copied."""
        found = {}
        for good, n, spec in slots:
            unit = words.GOODS[good][0]
            if style == FREE and rng.random() < 0.1:
                unit = rng.choice(words.UNITS)
            if style != PLAIN and rng.random() < 0.3:
                good, unit = self.wild(rng, style)
                spec = spec if rng.random() < 0.4 else None
            found[good] = good, n, unit, spec
        return list(found.values())

    def wild(self, rng, style):
        # a name that does not exist: nothing but copying helps
        if style == FREE and rng.random() < 0.6:
            name = rare_word(rng) if rng.random() < 0.2 else "".join(
                rng.sample(words.CHARACTERS + EVERYDAY, rng.choice((1, 2, 2, 3, 3))))
            return (name if name not in words.HELD_GOODS else "山水"), rng.choice(words.UNITS)
        return rng.choice(sorted((words.WILD_GOODS if style == FREE else words.HELD_GOODS).items()))

    def request(self, rng, items, style=PLAIN):
        spoken, number_first = [], rng.random() < 0.65
        for good, n, unit, spec in items:
            amount = spelled(rng, n, style, counted, 0.35) + unit
            if style != PLAIN and spec and rng.random() < 0.3:       # 红色的铅笔三支, 三支红色铅笔
                spec_good = spec + rng.choice(("的", "")) + good
                spoken.append(amount + spec_good if number_first else spec_good + amount)
            else:
                spoken.append(amount + (f"{spec}的" if spec else "") + good if number_first
                              else good + amount + (f"要{spec}的" if spec else ""))
        if len(spoken) == 1:
            return spoken[0]
        if style == PLAIN:
            return "，".join(spoken[:-1]) + ("和" if number_first else "，还有") + spoken[-1]
        between = "，" if rng.random() < 0.5 else pick(rng, forms.JOINS, style)
        return between.join(spoken[:-1]) + pick(rng, forms.JOINS, style) + spoken[-1]

    def table(self, items):
        return "|" + "".join(f"{good}|{counted(n)}{unit}|{spec or '没有'}|" for good, n, unit, spec in items)

    def ask(self, rng, slots, style=PLAIN):
        items = self.measured(rng, slots, style)
        return ask(rng, forms.BUY, style, x=self.request(rng, items, style)), self.table(items)

    def tell(self, rng, slots):
        who, items = rng.choice(words.RELATIVES), self.measured(rng, slots)
        return f"{who}要{self.request(rng, items)}，记成{self.table(items)}。"
