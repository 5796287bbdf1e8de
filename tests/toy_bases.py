"""Folders of other families at toy size: random weights, norms and biases included, and tokenizers trained on a few
sentences."""
import json
from functools import lru_cache
from itertools import chain

import torch

import toy
from bench.lively import random_texts

CHATML = """{%- for message in messages -%}
{%- if loop.first and message['role'] != 'system' -%}
{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' -}}
{%- endif -%}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""
LLAMA2 = ("{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
          "{% set system = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
          "{% set system = false %}{% endif %}{% for message in loop_messages %}"
          "{% if loop.index0 == 0 and system != false %}"
          "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message['content'] %}{% else %}"
          "{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
          "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
          "{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}")
LLAMA3 = ("{{- bos_token }}{%- for message in messages %}"
          "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim "
          "+ '<|eot_id|>' }}"
          "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
          "{%- endif %}")
QWEN3 = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\n' -}}
{%- if message['role'] == 'assistant' and loop.last -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}
{{- message['content'] + '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}
{%- if enable_thinking is defined and enable_thinking is false -%}
{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}{%- endif -%}"""
# kind of tokenizer, special tokens, begin, end, template
SPOKEN = {
    "chatml": ("bytes", ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None, "<|im_end|>", CHATML),
    "qwen3": ("bytes", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"], None, "<|im_end|>",
              QWEN3),
    "llama2": ("pieces", ["<unk>", "<s>", "</s>"], "<s>", "</s>", LLAMA2),
    "llama3": (
        "bytes", ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
               "<|begin_of_text|>", "<|eot_id|>", LLAMA3),
    "plain": ("unigram", ["<unk>", "<s>", "</s>"], "<s>", "</s>", None),
    "bert": ("wordpiece", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[CLS]", "[SEP]", None),
}


def texts():
    rows = toy.text_rows(60) + toy.dialogue_rows(20)
    return [json.dumps(row, ensure_ascii=False) for row in rows] + random_texts(40)


@lru_cache(None)
def tokenizer(kind, special):
    """A trained Tokenizer of the package."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    special, size = list(special), 420
    if kind == "bytes":
        made = Tokenizer(models.BPE())
        made.normalizer = normalizers.NFC()
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=special)
    else:
        unigram = kind == "unigram"
        made = Tokenizer(models.Unigram() if unigram else models.BPE(byte_fallback=True, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if unigram else "always")
        made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        byte = [f"<0x{b:02X}>" for b in range(256)]
        trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>") if unigram else \
            trainers.BpeTrainer(vocab_size=size + 256, special_tokens=special + byte)
    made.train_from_iterator(texts(), trainer)
    if kind == "pieces":                                    # the bytes are no special tokens, only the others are
        found = json.loads(made.to_str())
        found["added_tokens"] = [t for t in found["added_tokens"] if not t["content"].startswith("<0x")]
        made = Tokenizer.from_str(json.dumps(found))
    return made


def write_tokenizer(folder, name):
    kind, special, begin, end, template = SPOKEN[name]
    folder.mkdir(parents=True, exist_ok=True)
    made = tokenizer(kind, tuple(special))
    made.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end,
             "clean_up_tokenization_spaces": False, **({"chat_template": template} if template else {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")
    return made.get_vocab_size()


DENSE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
             max_position_embeddings=64)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0}
LLAMA_31 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "rope_theta": 500000.0,
            "original_max_position_embeddings": 16}
LATENT = dict(DENSE, num_key_value_heads=4, q_lora_rank=12, kv_lora_rank=16, qk_nope_head_dim=6, qk_rope_head_dim=4,
              v_head_dim=6, head_dim=4, moe_intermediate_size=12, n_routed_experts=6, n_shared_experts=1,
              num_experts_per_tok=2, first_k_dense_replace=1, routed_scaling_factor=1.5, n_group=1, topk_group=1)
# name: class of the configuration, how it talks, what its configuration says
BASES = {
    "llama2": ("LlamaConfig", "llama2", dict(DENSE, rms_norm_eps=1e-5)),
    "llama3": ("LlamaConfig", "llama3",
               dict(DENSE, num_key_value_heads=2, rope_parameters=LLAMA_31, tie_word_embeddings=True)),
    "llama_biased": ("LlamaConfig", "plain", dict(DENSE, attention_bias=True, mlp_bias=True, num_key_value_heads=1,
                                                 rope_parameters={"rope_type": "linear", "factor": 2.0,
                                                                  "rope_theta": 1e4})),
    "mistral": ("MistralConfig", "llama2", dict(DENSE, num_key_value_heads=2, head_dim=12, sliding_window=7)),
    "qwen2": (
        "Qwen2Config", "chatml", dict(DENSE, num_key_value_heads=2, tie_word_embeddings=True,
                                      use_sliding_window=False)),
    "qwen2_yarn": ("Qwen2Config", "chatml", dict(DENSE, num_key_value_heads=2, rope_parameters=YARN)),
    "qwen3": ("Qwen3Config", "qwen3", dict(DENSE, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True)),
    "minimind": ("Qwen3Config", "chatml", dict(DENSE, num_key_value_heads=2, head_dim=8, rms_norm_eps=1e-5)),
    "gpt2": ("GPT2Config", "bert", dict(n_embd=32, n_layer=2, n_head=4, n_positions=64)),
    "gpt2_bytes": ("GPT2Config", "chatml",
                   dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, activation_function="gelu",
                                               tie_word_embeddings=False)),
    "deepseek_v2": ("DeepseekV2Config", "chatml", dict(LATENT, topk_method="greedy", norm_topk_prob=False)),
    "deepseek_v3": ("DeepseekV3Config", "chatml", dict(LATENT, norm_topk_prob=True, rope_parameters=dict(
        YARN, mscale=0.707, mscale_all_dim=0.707))),
}


def base_folder(folder, name, dtype=torch.float32, **save):
    """A folder as others publish it -> the model of transformers."""
    import transformers
    kind, talk, shape = BASES[name]
    size = write_tokenizer(folder, talk)
    config = getattr(transformers, kind)(**{**shape, "vocab_size": size + 5, "pad_token_id": None, "bos_token_id": 1,
                                            "eos_token_id": 2})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    for key, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_floating_point() and "inv_freq" not in key:
            with torch.no_grad():
                tensor.copy_(torch.randn_like(tensor) * (0.1 if tensor.ndim > 1 or "bias" in key else 0.2)
                             + (1 if "norm" in key and key.endswith("weight") or ".ln_" in key and "weight" in key
                                else 0))
    model.save_pretrained(folder, **save)
    return model
