"""What a check-up judges rows for: each stage learns other parts of a row, and cuts it elsewhere."""
from dataclasses import dataclass

import numpy as np

from tools import formats
from tools.config.keys import STAGE_TITLES
from tools.mask import last_reply
from tools.reading.questions import parse_question

STAGE_OF_KIND = {"text": "pre", "dialogue": "sft", "preference": "dpo"}
LOOKED_AT = 100         # rows by which a file's stage is told


@dataclass(frozen=True)
class Aim:
    """stage: as in the configuration; None = every row by its own kind. whole: all is learned, nothing is cut."""
    stage: str = None
    whole: bool = False
    max_len: int = 512
    thinking: str = "auto"

    @property
    def title(self):
        return STAGE_TITLES[self.stage] if self.stage else "各行按自己的格式"


def aim_of(stage, options):
    """The Aim of a stage with these resolved options."""
    return Aim(stage, options["training_mode"] == "pretraining" and stage not in ("dpo", "gate"), options["max_len"],
               options["thinking"])


def natural_stage(path, text_field=None):
    """The stage that most of the file's first rows are made for; pre where none can be read."""
    counts = dict.fromkeys(STAGE_OF_KIND.values(), 0)
    for number, row in enumerate(formats.read_rows(path, text_field, formats.BadLines())):
        counts[STAGE_OF_KIND[row.kind]] += 1
        if number >= LOOKED_AT:
            break
    return max(counts, key=counts.get)


def read(raw, text_field, plain, aim):
    """A line's bytes -> the Row as the stage takes it, or why it cannot use it (Chinese str)."""
    if aim.stage != "rl" or isinstance(raw, formats.Unreadable):
        return taken(formats.parse_line(raw, text_field, plain), aim)
    found = parse_question(raw, text_field)
    return found if isinstance(found, str) else found[0]


def taken(row, aim):
    """The Row as the stage takes it, or why it cannot use it (Chinese str). row: what parse_line gave."""
    if isinstance(row, str) or aim.stage is None:
        return row
    return (formats.not_a_pair(row) or row) if aim.stage == "dpo" else formats.as_dialogue(row)


def learned_part(learned, kind, aim):
    """learned (T,) bool as rendered -> (T,) bool of what this stage would learn of the document if nothing were cut."""
    if aim.whole:
        return np.arange(len(learned)) > 0
    return last_reply(learned) if (aim.stage or STAGE_OF_KIND[kind]) == "dpo" else learned


def is_cut(kind, aim):
    """Whether a document longer than max_len loses its end. A text learned as text goes on in the next row."""
    return not aim.whole and aim.stage != "gate" and (aim.stage is not None or kind != "text")


def why_nothing(documents, kind, aim):
    """The kind of fault for which a row teaches this stage nothing, or None. documents: [(ids, learned)]."""
    if not documents:
        return "no_words_for_tools"
    if aim.stage == "gate":
        return None if kind == "dialogue" and any(one.argmax() > 1 for _, one in documents if one.any()) else "no_turn"
    if not is_cut(kind, aim):
        return None
    seen = [learned_part(one, kind, aim)[1:aim.max_len + 1].any() for _, one in documents]
    return None if (all if kind == "preference" else any)(seen) else "answer_lost"
