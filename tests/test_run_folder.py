import os
import shutil

import numpy as np
import pytest
import torch

from tools.checkpoint import (CheckpointError, best_name, checkpoint_name, final_name,
                              read_checkpoint, read_pair, write_torch)
from tools.errors import UserError
from tools.saving.run_folder import RunFolder, check_limit, fingerprint
from toy_checkpoint import same, toy_payload, toy_state


class Folder(RunFolder):
    """Collects its warnings."""

    def __init__(self, path, label="Pre", **more):
        self.said = []
        super().__init__(path, label, warn=self.said.append, **more)

    def put(self, step, stem=None, state=True, **kind):
        stem = stem or checkpoint_name(self.label, 0, 1, step=step)
        return self.save(stem, toy_payload(step, self.label), toy_state(step) if state else None, **kind)


@pytest.fixture
def folder(tmp_path):
    folder = Folder(tmp_path / "out").lock()
    yield folder
    folder.unlock()


def names(folder):
    return {n for n in os.listdir(folder.path) if n.startswith("TinySeek")}


def pkls(folder):
    return {n for n in names(folder) if n.endswith(".pkl")}


def flip(path, where=0.5):
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * where)] ^= 1
    path.write_bytes(raw)


def code_of(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return caught.value.code


def test_C2_save_lists_and_resumes(folder):
    assert folder.newest_good() is None
    for step in (90, 100):  # 100 is newer than 90, whatever the alphabet says
        path = folder.put(step)
    assert path.name == "TinySeek_Pre0_1_s100.pkl"
    assert names(folder) == {f"TinySeek_Pre0_1_s{s}.{e}" for s in (90, 100) for e in ("pkl", "state")}
    payload, state = folder.newest_good()
    assert same(payload, state, 100) and "pkl_sha256" not in state
    last = folder.entries()[-1]
    assert last["step"] == 100 and last["config"] == fingerprint(
        {"seed": 3}) and last["files"][path.name]["size"] == path.stat().st_size
    assert not folder.said and not [n for n in os.listdir(folder.path) if n.startswith(".tmp-")]


def test_C5_prune_keeps_the_newest_and_never_best_or_final(folder):
    folder.put(1, best_name("Pre"), state=False, best=True)
    for step in range(2, 12):
        folder.put(step)
        folder.prune(3)
        assert pkls(folder) == {f"TinySeek_Pre0_1_s{s}.pkl"
                                for s in range(max(2, step - 2), step + 1)} | {best_name("Pre")}
    folder.put(12, final_name("Pre"), final=True)
    folder.prune(1)
    assert names(folder) == {"TinySeek_Pre0_1_s11.pkl", "TinySeek_Pre0_1_s11.state", "TinySeek_Pre_best.pkl",
                             "TinySeek_Pre_final.pkl", "TinySeek_Pre_final.state"}
    folder.prune(None)
    assert len(pkls(folder)) == 3 and not folder.said


@pytest.mark.parametrize("limit", [0, -1, 2.0, True, "3"])
def test_C5_limit_must_be_positive(limit):
    assert code_of(check_limit, limit) == 2


def test_C6_best_is_replaced_whole(folder):
    for step in (1, 2, 3):
        folder.put(step, best_name("Pre"), best=True)
        assert same(*folder.newest_good(), step)
    # without a state this time: the old one may not stay beside it
    folder.put(4, best_name("Pre"), state=False, best=True)
    assert names(folder) == {"TinySeek_Pre_best.pkl"} and len(folder.entries()) == 1


def test_C8_payload_carries_what_is_needed(folder):
    payload = read_checkpoint(folder.put(1))
    assert payload["run"] == {"seed": 3} and payload["metrics"] == {"loss": 1.5} and payload["vocab_hash"] == "ab"


@pytest.mark.parametrize("suffix", ["pkl", "state"])
@pytest.mark.parametrize(
    "harm", [flip, os.remove, lambda p: os.truncate(p, 500), lambda p: write_torch(p, toy_payload(9))])
def test_falls_back_to_the_next_older_good_one(folder, suffix, harm):
    for step in (1, 2, 3):
        folder.put(step)
    harm(folder.path / f"TinySeek_Pre0_1_s3.{suffix}")
    assert same(*folder.newest_good(), 2) and len(folder.said) == 1
    folder.put(3)  # the run comes by again: the damaged name becomes good
    assert same(*folder.newest_good(), 3)


def test_a_damaged_newer_one_does_not_push_out_good_ones(folder):
    for step in (10, 20):
        folder.put(step)
    flip(folder.path / "TinySeek_Pre0_1_s20.pkl")
    folder.newest_good()
    folder.put(15)
    folder.prune(2)
    assert pkls(folder) == {"TinySeek_Pre0_1_s10.pkl", "TinySeek_Pre0_1_s15.pkl"}
    assert same(*folder.newest_good(), 15)


def test_no_fresh_start_over_damaged_checkpoints(folder):
    folder.put(1)
    folder.put(2)
    flip(folder.path / "TinySeek_Pre0_1_s1.pkl")
    flip(folder.path / "TinySeek_Pre0_1_s2.state", 0.9)
    assert code_of(folder.newest_good) == 3
    os.remove(folder.manifest.path)
    assert code_of(folder.newest_good) == 3
    folder.manifest.path.write_text("{}")
    assert code_of(folder.newest_good) == 3


def test_logs_locks_and_leftovers_are_not_checkpoints(folder):
    for name in ("log.txt", ".lock", ".tmp-TinySeek_Pre0_1.pkl-1-ab", "TinySeek_SFT0_1.pkl",
                 "TinySeek_Pre0_1_s7.state", "x.pkl"):
        (folder.path / name).write_text("anything")
    assert folder.newest_good() is None


def test_unlisted_files_are_ignored_with_a_warning(folder):
    folder.put(1)
    write_torch(folder.path / "TinySeek_Pre0_1_s2.pkl", toy_payload(2))
    assert same(*folder.newest_good(), 1) and "s2.pkl" in folder.said[0]
    folder.put(2)
    assert same(*folder.newest_good(), 2)


def test_lone_good_weights_are_offered_without_a_state(folder):
    write_torch(folder.path / final_name("Pre"), toy_payload(5))
    payload, state = folder.newest_good()
    assert state is None and same(payload, None, 5)
    flip(folder.path / final_name("Pre"))
    assert code_of(folder.newest_good) == 3


@pytest.mark.parametrize(
    "harm", [os.remove, flip, lambda p: p.write_text("{}"), lambda p: p.write_text('{"sha256": "x"}')])
def test_a_lost_manifest_is_rebuilt_from_pairs_that_prove_themselves(folder, harm):
    for step in (9, 10, 11):
        folder.put(step)
    folder.put(11, final_name("Pre"), final=True)
    harm(folder.manifest.path)
    flip(folder.path / "TinySeek_Pre0_1_s10.pkl")
    assert same(*folder.newest_good(), 11) and folder.said
    folder.unlock()
    again = Folder(folder.path).lock()
    assert [e["stem"][-5:] for e in again.entries()] == ["_1_s9", "1_s11", "final"]
    again.put(12)
    again.prune(1)
    # s10 is nobody's
    assert pkls(again) == {"TinySeek_Pre0_1_s12.pkl", "TinySeek_Pre0_1_s10.pkl", "TinySeek_Pre_final.pkl"}
    again.unlock()


def test_a_state_of_another_save_is_refused(folder):
    folder.put(1)
    folder.put(2)
    os.remove(folder.manifest.path)
    shutil.copy(folder.path / "TinySeek_Pre0_1_s1.state", folder.path / "TinySeek_Pre0_1_s2.state")
    assert same(*folder.newest_good(), 1)


def test_a_checkpoint_named_by_the_user(folder):
    first, second = folder.put(1), folder.put(2)
    assert same(*read_pair(first), 1) and same(*read_pair(second), 2)
    shutil.copy(first.with_suffix(".state"), second.with_suffix(".state"))
    assert code_of(read_pair, second) == 3
    os.remove(second.with_suffix(".state"))
    assert read_pair(second)[1] is None


def test_X3_backup_moves_and_never_deletes(folder):
    for step in (1, 2):
        folder.put(step)
    other = Folder(folder.path, "SFT")
    other.put(1)
    before = {n: (folder.path / n).read_bytes() for n in names(folder) if "Pre" in n}
    target = folder.backup()
    assert target.parent == folder.path and target.name.startswith("backup_")
    assert {n: (target / n).read_bytes() for n in os.listdir(target) if n.startswith("Tiny")} == before
    assert same(*Folder(target).newest_good(), 2)  # the moved list still holds
    assert folder.newest_good() is None and same(*other.newest_good(), 1)
    assert folder.backup() is None
    folder.put(7)
    assert folder.backup() != target


def test_non_finite_weights_are_never_saved(folder):
    folder.put(1)
    for value in (float("nan"), float("inf")):
        bad = toy_payload(2)
        bad["weights"]["half"][1] = value
        assert code_of(folder.save, "TinySeek_Pre0_1_s2", bad, {}) == 5
    assert pkls(folder) == {"TinySeek_Pre0_1_s1.pkl"}


def test_a_state_that_could_not_be_loaded_again_is_refused_at_once(folder):
    folder.put(1, best_name("Pre"), best=True)
    for value in (np.arange(3), b"bytes", np.float32(2)):
        with pytest.raises(CheckpointError):
            folder.save(best_name("Pre"), toy_payload(2), {"random": value}, best=True)
    assert same(*folder.newest_good(), 1) and not [n for n in os.listdir(folder.path) if n.startswith(".tmp-")]


def test_optimizer_and_random_states_survive(folder):
    layer = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "torch": torch.get_rng_state(), "seen": {1, 2}, "best": 1.5,
             "none": None,
             "scaler": torch.amp.GradScaler("cpu", enabled=False).state_dict()}
    folder.save("TinySeek_Pre0_1", toy_payload(), state)
    loaded = folder.newest_good()[1]
    assert torch.equal(loaded["torch"], state["torch"]) and loaded["seen"] == {1, 2} and loaded["best"] == 1.5
    moments = [s["optimizer"]["state"][0]["exp_avg"] for s in (loaded, state)]
    assert torch.equal(*moments) and loaded["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]


def test_one_owner_per_folder(folder, tmp_path):
    assert code_of(Folder(folder.path, "SFT").lock) == 6
    with Folder(tmp_path / "out", name="X") as named:  # --name X: a folder of its own
        assert named.path == tmp_path / "out" / "X"
    folder.unlock()
    with Folder(folder.path):
        assert code_of(folder.lock) == 6
    folder.lock()


def test_stale_temporary_files_go_at_lock_time(folder):
    dead = folder.path / ".tmp-TinySeek_Pre0_1.pkl-999999999-ab"
    live = folder.path / f".tmp-x.pkl-{os.getppid()}-ab"  # its writer still runs
    for path in (dead, live):
        path.touch()
    folder.unlock()
    folder.lock()
    assert not dead.exists() and live.exists()
