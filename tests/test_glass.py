"""Looking into a reply: probabilities over the API as OpenAI gives them, and what the glass box tells of each token."""
import json

import pytest
import torch

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")

import toy_export
from chat_agent.load import load
from chat_agent.server.errors import ApiError
from chat_agent.server.glass import cut, inside
from chat_agent.server.limits import Limits
from chat_agent.server.models import Models, Served
from model.decoding.glass import look_inside
from model.generate import generate
from model.sampling import Sampling
from tools.template import render_prompt
from toy_server import SMALL, serving, write_model

ASK = {"model": "one", "messages": [{"role": "user", "content": "你好"}], "temperature": 0.9, "max_tokens": 24,
       "seed": 3, "frequency_penalty": 1.3, "top_p": 0.9}
SHAPES = {"mla": {}, "dense start": {"n_dense_layer": 1}, "gqa": {"attention": "gqa", "n_kv_head": 1},
          "alibi": {"position": "alibi"}, "window": {"sliding_window": 5}, "one head": {"use_fc2": False},
          "known token": {"fc2_token": True}, "counted": {"counted": 3, "use_fc2": False},
          "learned": {"position": "learned", "max_position": 64, "use_moe": False}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glass")
    path = write_model(folder / "one.pkl")
    with serving(folder, models={"one": path}) as running:
        running.model, running.vocab, _ = load(path)
        yield running
        assert "Traceback" not in running.said()


@pytest.fixture(scope="module")
def client(server):
    openai = pytest.importorskip("openai", reason="openai 没有装")
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", timeout=300, max_retries=0) as one:
        yield one


def own_logprobs(server, text, ids):
    """The model's log-softmax at each of the reply's ids (R, V)."""
    prompt = render_prompt([{"role": "user", "content": text}], server.vocab)
    logits = server.model(torch.tensor([[*prompt, *ids]])).logits_1[0]
    return logits.log_softmax(-1)[len(prompt) - 1:-1]


def check_entries(server, entries, ids, rivals):
    own, vocab = own_logprobs(server, "你好", ids), server.vocab
    assert len(entries) == len(ids)
    for entry, one, row in zip(entries, ids, own):
        assert abs(entry.logprob - row[one].item()) < 1e-4 and bytes(entry.bytes) == vocab.decode_bytes([one])
        best = row.topk(rivals)
        assert [t.logprob for t in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
        raw = [bytes(t.bytes or b"") for t in entry.top_logprobs]
        assert raw == [vocab.decode_bytes([i]) for i in best.indices.tolist()]


def test_logprobs_are_the_models_own_whatever_temperature_and_penalties_do(server, client):
    answer = client.chat.completions.create(**ASK, logprobs=True, top_logprobs=5,
                                            extra_body={"return_token_ids": True})
    choice = answer.choices[0]
    check_entries(server, choice.logprobs.content, choice.token_ids, 5)
    said = b"".join(bytes(entry.bytes) for entry in choice.logprobs.content).decode("utf-8", "replace")
    assert said == choice.message.content
    bare = client.chat.completions.create(**ASK, logprobs=True).choices[0].logprobs
    assert [e.top_logprobs for e in bare.content] == [[]] * len(choice.token_ids) and bare.refusal is None
    assert client.chat.completions.create(**ASK).choices[0].logprobs is None


def test_streamed_logprobs_come_with_their_text(server, client):
    chunks = list(client.chat.completions.create(**ASK, logprobs=True, top_logprobs=2, stream=True,
                                                 extra_body={"return_token_ids": True}))
    entries = [entry for c in chunks if c.choices[0].logprobs for entry in c.choices[0].logprobs.content]
    check_entries(server, entries, chunks[-1].choices[0].token_ids, 2)
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert b"".join(bytes(e.bytes) for e in entries).decode("utf-8", "replace") == text
    assert sum(bool(c.choices[0].logprobs) for c in chunks) > 1


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_end_where_a_stop_string_cuts_the_text(client, stream):
    text = client.chat.completions.create(**ASK).choices[0].message.content
    cut_at = text[len(text) // 2]
    answer = client.chat.completions.create(**ASK, logprobs=True, stop=[cut_at], stream=stream)
    parts = list(answer) if stream else [answer]
    entries = [entry for c in parts if c.choices[0].logprobs for entry in c.choices[0].logprobs.content]
    said = b"".join(bytes(e.bytes) for e in entries).decode("utf-8", "replace")
    kept = text[:text.index(cut_at)]
    assert said.startswith(kept) and len(entries) <= len(text) and cut_at not in said[:len(kept)]


def test_wrong_logprobs_are_refused_by_name(client):
    import openai
    for wrong, name in [({"top_logprobs": 3}, "top_logprobs"), ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
                        ({"logprobs": "yes"}, "logprobs")]:
        with pytest.raises(openai.BadRequestError) as found:
            client.chat.completions.create(**{**ASK, **wrong})
        assert found.value.param == name


# ---------------------------------------------------------------- one pass that keeps everything

@pytest.mark.parametrize("shape", SHAPES)
def test_the_glass_box_sees_what_the_model_does(shape):
    vocab = toy_export.toy_vocab(600, "char")
    model = toy_export.toy_payload(vocab, **{**SMALL, **SHAPES[shape]})[1].requires_grad_(False).eval()
    prompt = render_prompt([{"role": "user", "content": "今天吃什么？"}], vocab)
    reply = generate(model, prompt, 12, temperature=1.0, seed=1)
    whole, last = model(torch.tensor([[*prompt, *reply]])), len(prompt) - 1
    for layer in range(model.config.n_layer):
        seen = look_inside(model, prompt, reply, layer, 1)
        assert torch.allclose(seen.logits_1, whole.logits_1[0, last:-1], atol=1e-5)
        if model.config.use_fc2:
            assert torch.allclose(seen.logits_2, whole.logits_2[0, last:-2], atol=1e-5)
        assert torch.allclose(seen.attention.sum(-1), torch.ones(len(reply)), atol=1e-5)
        later = torch.arange(len(prompt) + len(reply)) > torch.arange(last, last + len(reply))[:, None]
        assert not seen.attention[later].any()
    loads = [r.load for r in whole.routings]
    chosen = [layer for layer in seen.experts if layer]
    assert len(chosen) == len(loads) and all(len(layer[0]) == len(reply) for layer in chosen)


def test_attention_is_what_the_head_reads_with():
    vocab = toy_export.toy_vocab(600, "char")
    model = toy_export.toy_payload(vocab, **SMALL)[1].requires_grad_(False).eval()
    ids = [1, 9, *vocab.encode("今天天气很好"), 10, *vocab.encode("是的")]
    block, read = model.blocks[0], {}
    block.attention.out.register_forward_hook(lambda _, args, out: read.update(mixed=args[0]))
    seen = [look_inside(model, ids[:-2], ids[-2:], 0, head).attention for head in range(2)]
    x = model.embedded(torch.tensor(ids), torch.arange(len(ids)))
    tables = model.tables(torch.arange(len(ids)))
    values = block.attention.expand(*block.attention.latents(block.attention_norm(x), tables))[1]    # (T, H, d_h)
    mixed = torch.cat([one @ values[:, head] for head, one in enumerate(seen)], -1)
    assert torch.allclose(mixed, read["mixed"][len(ids) - 3:-1], atol=1e-5)


# ---------------------------------------------------------------- over HTTP

def body(server, **more):
    status, answer, _ = server.call("/v1/chat/completions", {**ASK, "return_token_ids": True})
    assert status == 200
    return {"request": ASK, "token_ids": answer["choices"][0]["token_ids"], **more}


def test_the_glass_box_tells_of_each_token(server):
    asked = body(server, layer=0, head=1)
    status, seen, _ = server.call("/glass", asked)
    ids, own = asked["token_ids"], own_logprobs(server, "你好", asked["token_ids"]).exp()
    how = Sampling(temperature=0.9, frequency_penalty=1.3, top_p=0.9)
    assert status == 200 and [t["id"] for t in seen["tokens"]] == ids
    for i, (token, row) in enumerate(zip(seen["tokens"], own)):
        assert token["p"] == pytest.approx(row[ids[i]].item(), rel=1e-2, abs=1e-4)
        rivals = [r["p"] for r in token["rivals"]]
        assert len(rivals) == 5 and rivals == sorted(rivals, reverse=True)
        after = how.probabilities(how.allowed(row.log()[None].clone(), [ids[:i]]))[0]
        assert token["chance"] == pytest.approx(after[ids[i]].item(), rel=1e-2, abs=1e-4)
        assert token["rank"] == 1 + int((row > row[ids[i]]).sum())
        assert len(token["attention"]) == len(seen["prompt"]) + i
        assert sum(token["attention"]) == pytest.approx(1, abs=0.01)
        assert [len(layer) for layer in token["experts"]] == [SMALL["keep"]] * SMALL["n_layer"]
    assert seen["tokens"][0]["guess"] is None
    for one, token in zip(ids[1:], seen["tokens"][1:]):
        assert token["guess"]["right"] == (token["guess"]["text"] == token["text"]) and 0 < token["guess"]["p"] <= 1
    assert (seen["layers"], seen["heads"], seen["experts"], seen["layer"], seen["head"]) == (2, 2, 4, 0, 1)


@pytest.mark.parametrize("wrong", [
    {"token_ids": []}, {"token_ids": [1.5]}, {"token_ids": [10 ** 9]}, {"token_ids": [-1]}, {"token_ids": "x"},
    {"request": 3}, {"request": {"messages": []}}, {"layer": 2}, {"layer": -1}, {"head": True}, {"head": "x"},
    {"token_ids": None, "reply": "\ud800"}, {"token_ids": None, "reply": ""}])
def test_the_glass_box_refuses_what_is_no_reply(server, wrong):
    status, answer, _ = server.call("/glass", {"request": ASK, "token_ids": [300, 301], **wrong})
    assert status == 400 and answer["error"]["message"], answer


def test_a_reply_without_ids_is_cut_again(server):
    status, seen, _ = server.call("/glass", {"request": {"messages": ASK["messages"]}, "reply": "天好"})
    assert status == 200 and "".join(t["text"] for t in seen["tokens"]) == "天好"


def test_a_text_is_shown_as_it_is_cut(server):
    status, answer, _ = server.call("/tokenize", {"model": "one", "content": "天\n好𠮷"})
    ids = server.vocab.encode("天\n好𠮷")
    assert status == 200 and [t["id"] for t in answer["tokens"]] == ids
    assert answer["tokens"][0]["piece"] == server.vocab.decode(ids[:1]) and "<0xF0>" in [
        t["piece"] for t in answer["tokens"]]
    for wrong in ({"content": 3}, {}, {"content": "长" * 20_001}):
        assert server.call("/tokenize", wrong)[0] == 400


def test_the_glass_box_reads_long_replies_up_to_the_last_position():
    vocab = toy_export.toy_vocab(600, "char")
    shape = {"position": "learned", "max_position": 40, "use_moe": False}
    model = toy_export.toy_payload(vocab, **{**SMALL, **shape})[1].requires_grad_(False).eval()
    models = Models([Served("one", model, vocab, 40)])
    raw = json.dumps({"request": {"messages": ASK["messages"]}, "token_ids": [300] * 200}).encode()
    seen = inside(raw, models, Limits())
    assert len(seen["prompt"]) + len(seen["tokens"]) == 40 and seen["experts"] == 0
    with pytest.raises(ApiError):
        cut(b'{"content": "\\ud800"}', models, Limits())
