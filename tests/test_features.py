"""Every promised feature has a test that carries its id in the name: test_L2_lexp_is_zero_when_balanced proves L2."""
import ast
import re
from functools import lru_cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared" / "features.md"
FEATURES = """
L1 L2 L3 L4 L5 L6 L7 L8 O1 O2 O3 O4 O5 O6 S1 S2 S3 S4 S5 S6 P1 P2 P3 P4 C1 C2 C3 C5 C6 C7 C8 C9 E1 E2 E3 E4 E5
E6 E8 D1 D2 D3 D5 D6 D7 D8 D9 D10 D11 D13 A1 A2 A3 A4 A5 A6 A7 T1 T2 T3 T4 T5 T7 T9 T10 T11 M1 M2 M3 X1 X2 X3
Q1 Q2 Q3 W1 W2 W3 W4 B1 B2 B3 B4 B5 B6 B7 R1 R2""".split()
NOT_BUILT_YET = "".split()      # promised; one that is built moves up


@lru_cache
def proofs():
    """{feature id: [file::test]} of everything that pytest would collect here."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for feature in re.findall(r"(?<=_)[A-Z]\d+(?=_)", node.name):
                    found.setdefault(feature, []).append(f"{path.relative_to(TESTS)}::{node.name}")
    return found


def never_run(name):
    """Whether a test is skipped or expected to fail whatever happens."""
    path, _, function = name.partition("::")
    for node in ast.walk(ast.parse((TESTS / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == function:
            return any(ast.unparse(mark).startswith(("pytest.mark.skip(", "pytest.mark.xfail"))
                       for mark in node.decorator_list)


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_has_a_test(feature):
    tests = proofs().get(feature, [])
    assert tests, f"no test carries {feature} in its name"
    assert not all(map(never_run, tests)), f"{feature} is proved by tests that do not run: {tests}"


def test_no_test_claims_a_feature_that_is_not_promised():
    # parts of what is not built may be there
    assert sorted(set(proofs()) - set(FEATURES) - set(NOT_BUILT_YET)) == []
    assert not set(FEATURES) & set(NOT_BUILT_YET)


def test_the_list_is_the_document():
    if not SHARED.exists():
        pytest.skip("the document of features lies outside the project")
    rows = re.findall(r"^\| ([A-Z]\d+) \|", SHARED.read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == sorted(FEATURES + NOT_BUILT_YET)
