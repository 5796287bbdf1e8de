"""Conversations of another family as ids: one walk over its literals (tools/words/probing.py) and the contents makes
ids and supervision.

Between two special tokens all is one text: a literal and the content behind it are cut into tokens together, as the
family's own tokenizer does with the string that its chat template makes.
"""
import re

import numpy as np

from tools.errors import UserError


def acting(message):
    """Whether a turn offers, calls or answers for tools, for which no other family's literals are known here."""
    return message["role"] in ("tool", "tools") or bool(message.get("calls"))


class Dialogue:
    """about: what `probing.probed` gives; vocab: the ForeignVocab."""

    def __init__(self, about, vocab):
        self.about, self.vocab, self.between = about, vocab, about["between"]
        ids = {name: vocab.id(name) for name in self._names()}
        self.marks = re.compile("(" + "|".join(map(re.escape, sorted(ids, key=len, reverse=True))) + ")")
        self.ids, self.begin, self.end = ids, ids[about["begin"]], ids[about["end"]]

    def _names(self):
        """Special tokens that literals hold, and those around a text."""
        literals = "".join([*self.between.values(), self.about["off"] or ""])
        known = self.vocab._whole.get_added_tokens_decoder().values()
        return {token.content for token in known if token.content in literals} | {self.about["begin"],
            self.about["end"]}

    @property
    def stops(self):
        """Ids that end a reply: what stands behind replies, the end of a text, and whatever opens a turn."""
        after = "".join(v for k, v in self.between.items() if k.startswith(("assistant|", "final|")))
        return tuple(sorted({self.end, *(self.ids[hit] for hit in self.marks.findall(after))}))

    @property
    def openings(self):
        """Ids with which a document may begin."""
        starts = [self.marks.match(v) for k, v in self.between.items() if k.startswith("|")]
        return {self.begin, *(self.ids[hit[0]] for hit in starts if hit)}

    @property
    def turn(self):
        """Where a gate finds the last user turn, see model/gate.py: special tokens, and what opens a reply from its
        first special token on, white space that may join a content left out."""
        opening = self.between.get("user|!", "")
        mark = self.marks.search(opening)
        reply = self._walk([(opening[mark.start():].rstrip(), True, False, 0, False)])[0].tolist() if mark else []
        return {"start": self.begin, "marks": sorted(self.ids.values()), "reply": reply}

    @property
    def cost(self):
        """Ids of a turn beside its contents, at most; the first literal may hold a whole system text."""
        return max(len(literal) for key, literal in self.between.items() if not key.startswith("|"))

    def document(self, text):
        """-> (ids int32 (T,), supervised bool (T,)) of a text: begin, text, end; everything but the first is
        learned."""
        body = self.vocab.encode_pieces([(text, False)])[0][0]
        ids = np.concatenate([[self.begin], body, [self.end]]).astype(np.int32)
        return ids, np.arange(len(ids)) > 0

    def render(self, messages, max_len=None):
        """The messages up to the last reply -> (ids, supervised). At max_len a turn of somebody else that does not fit
        is dropped, a reply is cut."""
        last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
        messages = self._regular(messages[:last + 1])
        ids, learn, owner, body = self._walk(self._pieces(messages, ""))
        if max_len is not None and len(ids) > max_len:
            kept = max_len
            cut = owner[max_len]
            if messages[cut]["role"] != "assistant" or not body[:max_len][owner[:max_len] == cut].any():
                replies = [i for i, m in enumerate(messages[:cut]) if m["role"] == "assistant"]
                kept = int((owner <= replies[-1]).sum()) if replies else 1
            ids, learn = ids[:kept], learn[:kept]
        return ids, learn

    def prompt(self, messages, thinking="auto"):
        """All turns, then what opens a reply. -> list of ids"""
        return self._walk(self._pieces(self._regular(messages), "!", thinking == "off"))[0].tolist()

    def _regular(self, messages):
        """Conversations as every family knows them: perhaps a system, then user and assistant in turns. Neighbours of
        one role become one, a system in between speaks as a user, a reply without a question gets an empty one."""
        made = []
        for message in messages:
            role, content = message["role"], message["content"]
            if acting(message):
                raise UserError("这个底座还不能用工具：对话里有工具的调用和结果。请去掉它们。", 2)
            if role == "system" and (made or "|system" not in self.between):
                role = "user"
            if made and made[-1]["role"] == role:
                made[-1] = {**made[-1], "content": made[-1]["content"] + "\n\n" + content}
                continue
            if role == "assistant" and (not made or made[-1]["role"] == "system"):
                made.append({"role": "user", "content": ""})
            made.append({**message, "role": role})
        return made

    def _pieces(self, messages, after, off=False):
        """[(string, whether a literal, learned, number of the turn, whether part of what a reply says)]"""
        keys, pieces, count = ["", *(m["role"] for m in messages)], [], len(messages)
        if messages and messages[-1]["role"] == "assistant" and not after:
            keys[-1] = "final"
        keys.append(after)
        learned = [m["role"] == "assistant" and m.get("weight") != 0 for m in messages]
        for i, (before, now) in enumerate(zip(keys, keys[1:])):
            literal = self._literal(before, now)
            if now == "!" and off and self.about["off"] is not None:
                literal = self.about["off"]
            head, begun = 0, self.between.get(f"{before}|!")
            if i and messages[i - 1]["role"] == "assistant":                    # its end, the first mark included
                mark = self.marks.search(literal)
                head = mark.end() if mark else 0
                pieces.append((literal[:head], True, learned[i - 1], i - 1, True))
            start = len(literal)
            if i < count and learned[i] and begun is not None and literal.startswith(begun):
                start = max(head, len(begun))                                   # what the family's reply begins with
            turn = min(i, count - 1)
            pieces += [(literal[head:start], True, False, turn, False), (literal[start:], True, True, turn, True)]
            if i < count:
                content = messages[i]["content"]
                content = self._stripped(content, f"{before}|{now}", f"{now}|{keys[i + 2]}")
                pieces.append((content, False, learned[i], i, messages[i]["role"] == "assistant"))
        return pieces

    def _stripped(self, content, before, after):
        """A content without the white space that the family's template takes off it."""
        strip = self.about["strip"]
        left, right = strip.get(before, ("", ""))[1], strip.get(after, ("", ""))[0]
        content = content.lstrip(left.replace("all", "") or None) if left else content
        return content.rstrip(right.replace("all", "") or None) if right else content

    def _literal(self, before, after):
        """What stands between two contents; for neighbours that no template was asked about, what is nearest."""
        for name in (f"{before}|{after}", f"{before.replace('final', 'assistant')}|{after}",
                     f"{before}|{after.replace('final', 'assistant')}", f"user|{after}"):
            if name in self.between:
                return self.between[name]
        return ""

    def _walk(self, pieces):
        """-> ids (T,), supervised (T,), number of the turn (T,), whether part of what a reply says (T,)."""
        chunks, order, text, flags = [], [], "", []

        def close():
            nonlocal text, flags
            if text:
                chunks.append((text, not order))
                order.append(np.array(flags))
            text, flags = "", []
        for string, literal, *flag in pieces:
            for part in self.marks.split(string) if literal else [string]:
                if literal and part in self.ids:
                    close()
                    order.append((self.ids[part], flag))
                else:
                    text, flags = text + part, flags + [flag] * len(part)
        close()
        encoded, made = iter(self.vocab.encode_pieces(chunks)), []
        for one in order:
            if isinstance(one, tuple):
                made.append((np.array([one[0]]), np.array([one[1]])))
            else:
                ids, starts = next(encoded)
                made.append((ids, one[np.minimum(starts, len(one) - 1)]))
        ids, flags = (np.concatenate([pair[k] for pair in made]) for k in (0, 1))
        learn, owner, body = flags.T
        return ids.astype(np.int32), learn.astype(bool), owner, body.astype(bool)
