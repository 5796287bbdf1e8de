"""Laws of the house: what may import what, how large things are, what is never written."""

import ast
import re
import subprocess
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tools.config_manager import ROOT

ROOMS = ("model", "tools", "train_agent", "chat_agent")
ARROWS = {"model": set(), "tools": set(), "train_agent": {"model", "tools"}, "chat_agent": {"model", "tools"}}
# Rooms of the trainers that look at nothing above them, and what all others may use of the top.
LOW = ("train_agent/trainers/hardware",)
FLAT = {"tools": 16, "train_agent/trainers": 22, "model": 14}           # files directly in a folder, at most
SPINE = ("train_agent/trainers/loop.py", "train_agent/trainers/stage.py", "train_agent/trainers/dataset.py",
         "train_agent/trainers/losses.py", "train_agent/trainers/data/packing.py",
         "train_agent/trainers/data/token_cache.py", "model/tiny_seek.py", "model/attention.py", "model/moe.py",
         "model/layers.py", "model/segments.py")
WIDTH, LENGTH, SPINE_LINES, TEST_LINES = 120, 40, 2300, 400
WIDE_YET = ("tests/test_serve_", "tests/test_report_browser", "tests/test_export_", "tests/test_keeping",
            "tests/test_token_cache")
# (JavaScript inside of strings, and names that cannot be shorter)


def files(*endings):
    """Every file of the project with such a name, relative."""
    found = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    names = found.stdout.split() if found.returncode == 0 else [str(p.relative_to(ROOT)) for p in ROOT.rglob("*")]
    return sorted(n for n in names if n.endswith(endings) and (ROOT / n).is_file())


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def product():
    return [n for n in files(".py") if n.split("/")[0] in ROOMS or n == "run.py"]


def module_of(name):
    return name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def outside_functions(tree):
    """The statements that run when a module is imported."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node)
                    if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))]


def imports(name, known, nodes=outside_functions):
    """Modules of ours that a file names in its import statements."""
    named = set()
    for node in nodes(ast.parse(text(name))):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            named |= (whole & known) or {node.module}
    return {one for one in named if one in known}


@pytest.fixture(scope="module")
def modules():
    return {module_of(name): name for name in product()}


def test_arrows_go_one_way(modules):
    for module, name in modules.items():
        room = module.split(".")[0]
        if room in ARROWS:
            used = {other.split(".")[0] for other in imports(name, set(modules), ast.walk)} - {room}
            assert used <= ARROWS[room], (name, used)


def test_low_rooms_use_nothing_above_them(modules):
    for module, name in modules.items():
        if name.startswith(LOW):
            room = str(Path(name).parent).replace("/", ".")
            used = {one for one in imports(name, set(modules), ast.walk) if one.split(".")[0] == "train_agent"}
            assert all(one.startswith(room) for one in used), (name, used)


def test_no_import_goes_in_a_circle(modules):
    uses = {module: imports(name, set(modules)) for module, name in modules.items()}
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("folder", FLAT)
def test_few_files_lie_directly_in_a_folder(folder):
    here = [n for n in files(".py") if str(Path(n).parent) == folder]
    assert len(here) <= FLAT[folder], here


def test_the_spine_is_short():
    lines = {name: text(name).count("\n") for name in SPINE}
    assert sum(lines.values()) <= SPINE_LINES, lines


def test_no_line_is_wide():
    wide = [f"{name}:{number}" for name in files(".py", ".js") if not name.startswith(WIDE_YET)
            for number, line in enumerate(text(name).split("\n"), 1) if len(line) > WIDTH]
    assert wide == []


def test_no_file_of_tests_is_long():
    lines = {name: text(name).count("\n") for name in files(".py") if name.startswith("tests/")}
    assert {name: count for name, count in lines.items() if count > TEST_LINES} == {}


def test_no_function_is_long():
    long = [(name, node.name) for name in files(".py") if not name.startswith("tests/")
            for node in ast.walk(ast.parse(text(name))) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and node.end_lineno - node.lineno + 1 > LENGTH]
    assert long == []


NEVER = {"weights_only=False": r"weights_only\s*=\s*False", "bare except": r"^\s*except\s*:",
         "eval": r"(?<![\w.])eval\(", "shell": r"shell\s*=\s*True"}


@pytest.mark.parametrize("what", NEVER)
def test_is_never_written(what):
    found = [f"{name}:{number}" for name in product()
             for number, line in enumerate(text(name).split("\n"), 1) if re.search(NEVER[what], line)]
    assert found == []


def test_only_the_loop_goes_backward():
    names = [n for n in product() if n.startswith("train_agent/") and re.search(r"\.backward\(\)", text(n))]
    assert names == ["train_agent/trainers/loop.py"]
