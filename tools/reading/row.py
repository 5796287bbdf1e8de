"""What a line of data becomes: a Row, or Bad with its reason; and what of it no model will see."""
import re
from dataclasses import dataclass, field

SURROGATE = re.compile("[\ud800-\udfff]")
MARKS = "首尾的特殊标记"      # these names are ours, all others are the data's own field names
THOUGHT = "<think>"
UNANSWERED = "末尾没有回答的话"
REJECTED = "rejected（偏好对齐才学）"
ABOUT = set("""
id idx index uid uuid source origin score scores lang language langdetect category type kind task tag tags
topic topics domain url date time timestamp license dataset data_source split model num_turns num_utter
datatype uniquekey titleukey metadata meta label labels ability task_type answer_from human_verified
copyright source_type type_keyword input_len output_len author authors topic star keywords created_at
updated_at version hash md5 sha256 conversation_id rating quality difficulty level subject year strains
rhythmic file filename 文件名 ground_truth_label eval_score safety
""".split())
ABOUT_ENDS = tuple("_id _ids _score _scores _len _length _count _url _time _date _type _source _tags _model _name "
                   "_safety _rating _index".split())


class Bad(Exception):
    """A line that cannot be used; the message says why, in Chinese."""


@dataclass
class Row:
    """kind "text": texts. "dialogue": messages as tools/template.py renders them. "preference": messages (the prompt),
    chosen, rejected. line counts from 1.

    A reply may carry "thinking", "calls" and "weight": 0 (context, nothing to learn).
    dropped: {field or reason: characters} of what the row said and no model will see.
    """
    kind: str
    texts: list = field(default_factory=list)
    messages: list = field(default_factory=list)
    chosen: str = None
    rejected: str = None
    file: str = None
    line: int = None
    dropped: dict = field(default_factory=dict)


def is_about(name):
    """Whether a field of this name says something about the row (id, source, score) and is no part of what it says."""
    name = name.lower()
    return name in ABOUT or name.endswith(ABOUT_ENDS) or name.startswith(("num_", "score_", "is_", "has_"))


class Source:
    """One JSON object being read. Shapes take strings out of it; what nobody took is `left`."""

    def __init__(self, fields, whole=None):
        """fields: what the shapes see; whole: the object as it stood in the file, where --columns renamed some."""
        self.fields, self.whole = fields, fields if whole is None else whole
        self.taken, self.dropped, self.conversations, self.known = set(), {}, [], set()

    def __contains__(self, name):
        return name in self.fields

    def get(self, name):
        return self.fields.get(name)

    def take(self, text):
        """Register a string as used. -> it"""
        self.taken.add(text)
        return text

    def enter(self, turns, container=None):
        """turns: a list whose turns' fields are accounted for one by one; container: what holds it, if not itself."""
        known = id(turns if container is None else container)
        if known not in self.known:
            self.known.add(known)
            self.conversations.append(turns)

    def state(self):
        return set(self.taken), dict(self.dropped), list(self.conversations), set(self.known)

    def back_to(self, state):
        """Forget what an attempt took that came to nothing."""
        self.taken, self.dropped, self.conversations, self.known = state

    def drop(self, name, text):
        if text.strip():
            self.dropped[name] = self.dropped.get(name, 0) + len(text)

    def left(self):
        """{field: characters} of everything that was neither taken nor dropped by name before."""
        for name, value in self.whole.items():
            if not isinstance(value, (str, list, dict)):
                self.dropped.setdefault(name[:40], 0)
            elif id(value) not in self.known:
                self._count(name, value)
        for conversation in self.conversations:
            for turn in conversation:
                for name, value in turn.items() if isinstance(turn, dict) else ():
                    self._count(name, value)
        return self.dropped

    def _count(self, name, value):
        if isinstance(value, str):
            if value not in self.taken and value.strip() not in ("", "[]", "{}", "null"):
                self.drop(name[:40], value)
        elif isinstance(value, (list, dict)):
            for one in value.values() if isinstance(value, dict) else value:
                self._count(name, one)
