import hashlib
import os
import zipfile

import pytest
import torch

from tools.checkpoint import (CheckpointError, best_name, cast_weights, checkpoint_name, final_name, load_chain,
                              name_pattern,
                              read_checkpoint, read_torch, weights_hash, write_torch)
from tools.errors import UserError
from tools.saving.archive import MARK, read_json, verify_torch, write_json
from tools.saving.atomic import write_temporary
from toy_checkpoint import seal, same, toy_payload, toy_state


def refused(code, call, *arguments):
    with pytest.raises(CheckpointError) as caught:
        call(*arguments)
    assert caught.value.code == code
    return str(caught.value)


def test_C1_names():
    assert checkpoint_name("Pre", 0, 1) == "TinySeek_Pre0_1.pkl"
    assert checkpoint_name("SFT", 2, 3, step=500) == "TinySeek_SFT2_3_s500.pkl"
    assert checkpoint_name("gate", 0, 1, batch=20) == "TinySeek_gate0_1_20.pkl"
    assert (best_name("DPO"), final_name("Lora")) == ("TinySeek_DPO_best.pkl", "TinySeek_Lora_final.pkl")
    names = [checkpoint_name("Pre", 0, 1), checkpoint_name("Pre", 10, 1, 5, 7), best_name("Pre"), final_name("Pre"),
             "TinySeek_Pre0_1.state"]
    assert all(name_pattern("Pre").fullmatch(n) for n in names)
    assert not any(name_pattern("Pre").fullmatch(n)
                   for n in ("TinySeek_Prefix0_1.pkl", ".tmp-TinySeek_Pre0_1.pkl-1-ab", "TinySeek_Pre_mine.pkl"))


@pytest.mark.parametrize("numbers", [0, 10, 700_000])  # 2.8 MB: larger than the write buffer
def test_C8_round_trip_and_plain_torch_load(tmp_path, numbers):
    path = tmp_path / "a.pkl"
    digest = write_torch(path, toy_payload(3, numbers=numbers))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == verify_torch(path)
    assert os.listdir(tmp_path) == ["a.pkl"]
    plain = torch.load(path, weights_only=True)
    ours = read_checkpoint(path, digest)
    for payload in (plain, ours):
        assert same(payload, None, 3) if numbers else payload["weights"]["embed"].shape == (0,)
        assert {**payload, "weights": 0} == {**toy_payload(3), "weights": 0}
        assert payload["weights"]["half"].dtype == torch.bfloat16
    with zipfile.ZipFile(path) as archive:  # an ordinary zip file with an ordinary comment
        assert archive.testzip() is None and archive.comment.startswith(MARK)


def test_same_content_gives_same_bytes(tmp_path):
    assert write_torch(tmp_path / "a", toy_payload(1)) == write_torch(tmp_path / "b", toy_payload(1))


def test_an_old_file_is_replaced_whole(tmp_path):
    for step in (1, 2):
        write_torch(tmp_path / "a.pkl", toy_payload(step))
    assert same(read_checkpoint(tmp_path / "a.pkl"), None, 2)


def test_what_cannot_be_saved_leaves_nothing(tmp_path):
    with pytest.raises(Exception):
        write_torch(tmp_path / "a.pkl", {"f": lambda: 0})
    with pytest.raises(UserError) as caught:
        write_torch(tmp_path / "absent" / "a.pkl", toy_payload())
    assert caught.value.code == 2 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), UserError("no rows")],
                         ids=lambda e: type(e).__name__)
def test_what_ends_a_write_is_told_as_it_is(tmp_path, error):
    def fill(handle):
        os.write(handle, b"half")
        raise error
    with pytest.raises(type(error)) as caught:
        write_temporary(tmp_path / "a.pkl", fill)
    assert caught.value is error and os.listdir(tmp_path) == []


def test_files_of_others_are_refused(tmp_path):
    plain = tmp_path / "plain.pkl"
    torch.save(toy_payload(), plain)
    assert "校验码" in refused(3, read_checkpoint, plain)
    refused(3, read_checkpoint, tmp_path / "absent.pkl")
    refused(3, read_checkpoint, tmp_path)
    (tmp_path / "empty.pkl").touch()
    refused(3, read_checkpoint, tmp_path / "empty.pkl")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.pkl")  # must not wait for a writer
        refused(3, read_checkpoint, tmp_path / "pipe.pkl")


def test_good_files_of_another_kind_are_code_4(tmp_path):
    for wrong in (toy_state(), [1, 2], torch.ones(2), toy_payload(format=99), toy_payload(kind="song"),
                  toy_payload(weights={"a": 1})):
        write_torch(tmp_path / "a.pkl", wrong)
        refused(4, read_checkpoint, tmp_path / "a.pkl")
    assert "weights" in refused(4, read_torch, tmp_path / "a.pkl", ("weightsX", "format"))


def test_bombs_are_refused(tmp_path):
    """Small files that would fill the memory: an endless tensor, a huge bytearray, a compressed archive."""
    path = tmp_path / "bomb.pkl"
    write_torch(path, toy_payload(weights={"a": torch.zeros(1).expand(10**12)}))
    assert "大小" in refused(3, read_checkpoint, path)

    class Huge:
        def __reduce__(self):
            return bytearray, (10**13,)
    write_torch(path, toy_payload(metrics={"a": Huge()}))
    assert "bytearray" in refused(3, read_checkpoint, path)
    torch.save(toy_payload(numbers=10**6), tmp_path / "flat.pkl")
    with zipfile.ZipFile(tmp_path / "flat.pkl") as flat, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in flat.namelist():
            packed.writestr(name, flat.read(name))
    seal(path)
    assert "结构" in refused(3, read_checkpoint, path)


def test_a_sealed_foreign_file_is_judged_by_its_content(tmp_path):
    """The digest proves that nothing changed, not who wrote it."""
    torch.save(toy_payload(5), tmp_path / "a.pkl")
    seal(tmp_path / "a.pkl")
    assert same(read_checkpoint(tmp_path / "a.pkl"), None, 5)


def test_weights_hash_law():
    weights = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(True),
               "d": torch.zeros(0)}
    base = weights_hash(weights)
    assert base == weights_hash(dict(reversed(weights.items()))) == weights_hash(
        {**weights, "b": weights["b"].t().contiguous().t()})
    changed = [{**weights, "b": weights["b"].reshape(3, 2)}, {**weights, "b": weights["b"].double()},
               {**weights, "c": torch.tensor(False)},
               {**weights, "b": weights["b"] + 1e-6}, {**weights, "e": torch.zeros(0)},
               {**weights, "a": weights["a"].view(torch.float16)},
               {("x" if k == "b" else k): v for k, v in weights.items()}]
    assert base not in {weights_hash(w) for w in changed} and len({weights_hash(w) for w in changed}) == len(changed)


def test_P3_save_precision_leaves_integers_alone():
    weights = {"w": torch.tensor([1.0, 2.5]), "i": torch.tensor([70_000]), "b": torch.tensor([True])}
    for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)):
        cast = cast_weights(weights, name)
        assert cast["w"].dtype == dtype and cast["i"].dtype == torch.int64 and cast["b"].dtype == torch.bool
        assert cast["i"] == 70_000 and cast["w"].tolist() == [1.0, 2.5]
    for wrong in (lambda: cast_weights(weights, "fp8"), lambda: cast_weights({"w": torch.tensor(1e6)}, "fp16")):
        with pytest.raises(UserError):
            wrong()


def adapter_on(base, path, step=0):
    return toy_payload(step, stage="Lora", kind="adapter",
                       base={"path": str(path), "hash": weights_hash(base["weights"])})


def test_chain_finds_its_base(tmp_path):
    base = toy_payload(1)
    out = tmp_path / "out"
    (out / "X").mkdir(parents=True)
    places = {"as stored": (tmp_path / "b.pkl", tmp_path / "b.pkl"), "relative": (out / "X" / "b.pkl", "b.pkl"),
              "moved beside": (out / "X" / "b.pkl", "/gone/b.pkl"), "in out": (out / "b.pkl", r"D:\gone\b.pkl"),
              "renamed": (out / "other.pkl", "/gone/b.pkl"), "renamed beside": (out / "X" / "o.pkl", "b.pkl")}
    for case, (where, stored) in places.items():
        write_torch(where, base)
        write_torch(out / "X" / "a.pkl", adapter_on(base, stored, 2))
        assert [p["step"] for p in load_chain(out / "X" / "a.pkl")] == [1, 2], case
        where.unlink()
    assert "b.pkl" in refused(3, load_chain, out / "X" / "a.pkl")


def test_chain_of_three_and_of_one(tmp_path):
    base = toy_payload(1)
    lora = adapter_on(base, "b.pkl", 2)
    write_torch(tmp_path / "b.pkl", base)
    write_torch(tmp_path / "l.pkl", lora)
    write_torch(tmp_path / "m.pkl", adapter_on(lora, "l.pkl", 3))
    assert [p["step"] for p in load_chain(tmp_path / "m.pkl")] == [1, 2, 3]
    assert len(load_chain(tmp_path / "b.pkl")) == 1


def test_chain_refuses_another_or_a_damaged_base(tmp_path):
    write_torch(tmp_path / "a.pkl", adapter_on(toy_payload(1), "b.pkl"))
    write_torch(tmp_path / "b.pkl", toy_payload(2))
    assert "底座" in refused(4, load_chain, tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(b"PK" * 300)
    refused(3, load_chain, tmp_path / "a.pkl")
    write_torch(tmp_path / "c.pkl", toy_payload(1))  # the right one under another name wins over the wrong one
    assert same(load_chain(tmp_path / "a.pkl")[0], None, 1)
    write_torch(tmp_path / "a.pkl", toy_payload(base={"path": 3}))
    refused(4, load_chain, tmp_path / "a.pkl")


def test_json_round_trip(tmp_path):
    path, body = tmp_path / "m.json", {"名": [1, 2.5, None, True], "空": {}}
    write_json(path, body)
    assert read_json(path) == body and os.listdir(tmp_path) == ["m.json"]
    path.write_text(path.read_text(encoding="utf-8").replace("2.5", "2.6"), encoding="utf-8")
    refused(3, read_json, path)
    refused(3, read_json, tmp_path / "absent.json")
