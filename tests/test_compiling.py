"""torch.compile changes speed alone; here with the backend that needs no compiler."""
import pytest
import torch
from torch._dynamo.utils import counters

import toy
from tools.errors import UserError
from toy import toy_model
from train_agent.trainers.hardware import compiling

CPU = torch.device("cpu")


@pytest.fixture
def traced(monkeypatch):
    """Parts are traced and run by torch itself, whatever compilers this machine has."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    monkeypatch.setattr(compiling, "has_compiler", lambda device: True)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def step(model, rows, length):
    """Loss and gradients on a batch of that size."""
    ids = torch.randint(16, model.config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(rows))
    loss = model(ids, labels_1=ids.roll(-1, 1), labels_2=ids.roll(-2, 1)).total_loss
    return [loss, *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]


@pytest.mark.parametrize("changes", [{}, {"use_moe": False, "activation": "relu2"}], ids=str)
def test_compiled_is_plain_and_no_batch_compiles_anew(traced, changes):
    plain, compiled = toy_model(**changes), toy_model(**changes)
    compiled.load_state_dict(plain.state_dict())
    compiling.compile_parts(compiled, {"compile": "yes"}, CPU, 10)
    assert list(compiled.state_dict()) == list(plain.state_dict()), "a checkpoint looks the same"
    graphs = []
    for rows, length in ((2, 7), (3, 9), (5, 8), (4, 31), (2, 7)):
        for one, other in zip(step(compiled, rows, length), step(plain, rows, length)):
            if one is not None:
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0 and graphs[1] == graphs[-1], f"graphs after each batch: {graphs}"


def test_auto_asks_whether_it_pays(monkeypatch):
    cuda = torch.device("cuda")
    monkeypatch.setattr(compiling, "has_compiler", lambda device: True)
    assert not compiling.pays(CPU, 10 ** 6) and not compiling.pays(cuda, compiling.EARNS - 1) and compiling.pays(cuda,
        compiling.EARNS)
    monkeypatch.setattr(compiling, "has_compiler", lambda device: False)
    assert not compiling.pays(cuda, compiling.EARNS)
    with pytest.raises(UserError) as error:
        compiling.compile_parts(toy_model(), {"compile": "yes"}, CPU, 10)
    assert error.value.code == 2 and "g++" in str(error.value)


def test_a_compiled_run_stops_and_resumes_bit_for_bit(traced, options):
    whole, chosen = (options(compile="yes", max_steps=4, name=name) for name in ("whole", "halved"))
    assert toy.train(chosen, stop_after=2).step == 2
    ends = [toy.train(one).model for one in (whole, chosen)]
    assert counters["stats"]["unique_graphs"] > 0 and toy.same_tensors(ends[0].state_dict(), ends[1].state_dict())
