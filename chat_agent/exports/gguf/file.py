"""A .gguf file for llama.cpp and Ollama."""

from pathlib import Path

import torch
from tqdm import tqdm

from chat_agent.exports.chat_template import gguf_template
from chat_agent.exports.families import GGUF, dense_layers, family, has_experts
from chat_agent.exports.folder import check_replace, whole_file
from chat_agent.exports.gguf.tensors import to_gguf
from chat_agent.exports.hf.tokenizer import BPE, bpe_model, pieces
from chat_agent.exports.hf.weights import SECOND_HEAD
from chat_agent.exports.gguf.modelfile import check_place, write_modelfile
from chat_agent.exports.source import need
from tools.checkpoint import acts_of
from tools.errors import UserError
from tools.template import COLON
from tools.vocab import FIRST_BYTE, FIRST_WORD

ARCHITECTURES = {"deepseek_v2": "deepseek2", "deepseek_v3": "deepseek2", "llama": "llama",
                 "qwen3": "qwen3"}
PRECISIONS = ("f32", "f16", "q8_0")
# llama.cpp's Viterbi rounds score * 1e4 to an integer: there our integers come back as they were
SCORE_UNIT = 1e4
# … as long as a float32 holds them finely enough and none is worse than its unknown character
SCORE_LIMIT = 8_000_000
# the router stays in float32, as llama.cpp's own converter keeps it
WHOLE = ("ffn_gate_inp.weight", "exp_probs_b.bias")


def write_gguf(source, output, precision):
    """Write the file and a Modelfile beside it. Returns (path, names of tensors that kept float16 under q8_0).

    precision: f32, f16 or q8_0, for matrices; norms and router are float32. UserError 2 when the model cannot be
    expressed.
    """
    gguf = need("gguf", "导出 GGUF ")
    architecture = ARCHITECTURES[family(source.config, GGUF)]
    path = Path(output)
    path = path if path.suffix == ".gguf" else path / f"TinySeek-{precision}.gguf"
    check_place(path)
    check_replace(path, b"GGUF", b"general.name", b"TinySeek")
    check_replace(side_file(path), SECOND_HEAD.encode())
    save_file = need("safetensors.torch", "保存第二个预测头").save_file if SECOND_HEAD in source.weights else None
    tensors = to_gguf(source.config, source.weights)
    kept = []
    with whole_file(path) as temporary:
        writer = gguf.GGUFWriter(temporary, architecture)
        _describe(gguf, writer, source, architecture, precision)
        _tokens(gguf, writer, source)
        for name, tensor in tqdm(tensors.items(), desc="写 GGUF", delay=2):
            kind = _kind(name, tensor, precision)
            if (precision, kind) == ("q8_0", "f16"):
                kept.append(name)
            _add(gguf, writer, name, tensor, kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    write_modelfile(path, source)
    if save_file:
        with whole_file(side_file(path)) as temporary:
            save_file({SECOND_HEAD: source.weights[SECOND_HEAD].clone()}, temporary, {"format": "pt"})
    return path, kept


def side_file(path):
    return path.with_name(f"{path.stem}.second_head.safetensors")


def _kind(name, tensor, precision):
    if tensor.dim() == 1 or name.endswith(WHOLE):
        return "f32"
    if precision == "q8_0" and tensor.shape[-1] % 32:       # blocks of 32 along a row
        return "f16"
    return precision


def _add(gguf, writer, name, tensor, kind):
    data = tensor.float().contiguous().numpy()
    if kind == "f16" and torch.isinf(tensor.half()).any():
        raise UserError(f"权重 {name} 超出了 f16 的范围，请改用 --precision f32。", 2)
    if kind == "q8_0":
        quantised = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(data, quantised), raw_dtype=quantised)
    else:
        writer.add_tensor(name, data.astype({"f32": "float32", "f16": "float16"}[kind], copy=False))


def _describe(gguf, w, source, architecture, precision):
    c = source.config
    types = gguf.LlamaFileType
    w.add_type("model")
    w.add_name("TinySeek")
    w.add_file_type({"f32": types.ALL_F32, "f16": types.MOSTLY_F16, "q8_0": types.MOSTLY_Q8_0}[precision])
    if precision == "q8_0":
        w.add_quantization_version(gguf.GGML_QUANT_VERSION)
    w.add_vocab_size(c.vocab_size)
    w.add_context_length(source.context)
    w.add_embedding_length(c.d_model)
    w.add_block_count(c.n_layer)
    w.add_feed_forward_length(c.dense_width)
    w.add_head_count(c.n_head)
    w.add_layer_norm_rms_eps(c.norm_eps)
    w.add_rope_freq_base(c.ro_theta)
    w.add_rope_dimension_count(c.rotary_width)
    if architecture in ("llama", "qwen3"):
        w.add_head_count_kv(c.kv_heads)
        w.add_key_length(c.d_h)
        w.add_value_length(c.d_h)
    else:
        _describe_deepseek(gguf, w, c)


def _describe_deepseek(gguf, w, c):
    w.add_head_count_kv(1)                          # in llama.cpp all heads share one latent as key and value
    w.add_q_lora_rank(c.query_latent)
    w.add_kv_lora_rank(c.d_c)
    w.add_key_length(c.d_c + c.d_r)
    w.add_value_length(c.d_c)
    w.add_key_length_mla(c.d_h + c.d_r)
    w.add_value_length_mla(c.d_h)
    w.add_leading_dense_block_count(dense_layers(c))
    w.add_expert_feed_forward_length(c.hidden)
    w.add_expert_shared_count(c.shared_experts)
    if has_experts(c):
        sigmoid = c.router == "sigmoid"
        w.add_expert_count(c.other_experts)
        w.add_expert_used_count(c.keep)
        w.add_expert_weights_scale(c.routed_scaling)
        w.add_expert_weights_norm(sigmoid)
        w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if sigmoid else gguf.ExpertGatingFuncType.SOFTMAX)


def _tokens(gguf, w, source):
    """PLaMo-2's tokenizer is the one of llama.cpp that does what our words do: a Viterbi search over scores, with byte
    fallback. Our own BPE cuts where Qwen2's does."""
    vocab, size, kinds = source.vocab, source.config.vocab_size, gguf.TokenType
    if vocab.token_kind == BPE:
        model = bpe_model(vocab, size)
        names = sorted(model["vocab"], key=model["vocab"].get)
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("qwen2")
        w.add_token_merges([" ".join(pair) for pair in model["merges"]])
        byte, special = kinds.NORMAL, {vocab.id(COLON): kinds.USER_DEFINED}
    else:
        if min(vocab.scores, default=0) <= -SCORE_LIMIT:
            raise UserError("词表里有分数低得出奇的词，llama.cpp 的分词器放不下。请用默认方式重建词表后再训练。", 2)
        names, scores = zip(*pieces(vocab, size))
        w.add_tokenizer_model("plamo2")
        w.add_tokenizer_pre("default")
        w.add_token_scores([score / SCORE_UNIT for score in scores])
        byte, special = kinds.BYTE, {vocab.id("[UNK]"): kinds.UNKNOWN}
        w.add_unk_token_id(vocab.id("[UNK]"))
    types = [kinds.CONTROL] * FIRST_BYTE + [byte] * 256 + \
        [kinds.NORMAL] * (len(vocab) - FIRST_WORD) + [kinds.CONTROL] * (size - len(vocab))
    w.add_token_list([name.encode() for name in names])
    w.add_token_types([special.get(i, kind) for i, kind in enumerate(types)])
    w.add_bos_token_id(vocab.id("<|im_end|>"))
    w.add_eos_token_id(vocab.id("<|im_end|>"))
    w.add_pad_token_id(vocab.id("[PAD]"))
    w.add_add_bos_token(False)                      # the template writes it; this tokenizer would not add it anyway
    w.add_add_eos_token(False)
    w.add_chat_template(gguf_template(acts_of([source.payload])))
