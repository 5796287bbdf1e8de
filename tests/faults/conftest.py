"""Whole runs for the fault tests: imported once, forked for every run."""
import pytest


@pytest.fixture(scope="module")
def zygote():
    from whole_runs import Zygote                       # here: not every platform of the other tests can fork
    with Zygote() as one:
        yield one


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from whole_runs import World
    return World(tmp_path_factory.mktemp("runs"))
