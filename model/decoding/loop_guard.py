"""Notices that a reply has begun to go round in circles."""

LONGEST = 64      # ids of a cycle
ROUNDS = 4        # times that a cycle is seen before it counts as one
LEAST = 32        # ids that all rounds together have at least: "哈哈哈哈" is a reply, not a loop


class LoopGuard:
    """Takes the ids of one reply in order; `add` says whether the reply ends in a cycle now.

    A cycle of c <= 64 ids counts once it has been repeated without a change over max(4 * c, 32) ids.
    """

    def __init__(self):
        self.ids = []
        self.same = [0] * (LONGEST + 1)   # same[c]: for how many ids in a row each id has equalled the one c before

    def add(self, new):
        ids, same, looping = self.ids, self.same, False
        for cycle in range(1, min(LONGEST, len(ids)) + 1):
            if ids[-cycle] == new:
                same[cycle] += 1
                if same[cycle] + cycle >= max(ROUNDS * cycle, LEAST):
                    looping = True
            else:
                same[cycle] = 0
        ids.append(new)
        return looping
