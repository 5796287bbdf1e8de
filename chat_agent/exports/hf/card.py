"""README.md of an exported folder: what the model is, how it was trained, how to talk to it."""

from chat_agent.exports.families import dense_layers, has_experts
from chat_agent.exports.hf.weights import SECOND_HEAD
from tools.config.stages import trained_by

CARD = """---
language:
- zh
library_name: transformers
pipeline_tag: text-generation
---

# TinySeek 小寻

用 TinySeek 训练的中文小模型，以 transformers 自带的 `{architecture}` 结构保存，加载时不需要 `trust_remote_code`。

## 模型

{shape}

## 训练

{training}

## 使用

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("这个文件夹")
model = AutoModelForCausalLM.from_pretrained("这个文件夹")
inputs = tokenizer.apply_chat_template([{{"role": "user", "content": "你好"}}], add_generation_prompt=True,
                                       return_tensors="pt", return_dict=True)
reply = model.generate(**inputs, max_new_tokens=100, do_sample=False)
print(tokenizer.decode(reply[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

## 须知

{notes}
"""


def model_card(source, config, dtype):
    """source: Source; config: its config.json as a dict. -> Markdown"""
    return CARD.format(architecture=config["architectures"][0], shape=_table("项", "值", _shape(source, dtype)),
                       training=_table("指标", "值", _training(source.payload)),
                       notes="\n".join(f"- {n}" for n in _notes(source)))


def _table(left, right, rows):
    return "\n".join([f"| {left} | {right} |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def _shape(source, dtype):
    c = source.config
    tied = {"fc1.weight"} if c.tie_embedding else set()
    count = sum(t.numel() for n, t in source.weights.items() if n not in {SECOND_HEAD, *tied})
    rows = [("参数量（不含第二个预测头）", f"{count:,}"), ("精度", dtype),
            ("词表", f"{len(source.vocab):,} 项（{source.vocab.token_kind}）"),
            ("层数", c.n_layer), ("宽度", c.d_model), ("注意力", f"{c.attention.upper()}，{c.n_head} 头"),
            ("训练时的最大长度", source.context)]
    if has_experts(c):
        rows.append(("专家", f"每层 {c.other_experts} 个路由专家取 {c.keep}，另有 {c.shared_experts} 个共享专家"
                             + (f"；前 {dense_layers(c)} 层稠密" if dense_layers(c) else "")))
    return rows


def _training(payload):
    """Stage, step, and every number that the checkpoint carries."""
    about = "（续写文本，还不会对话）" if payload["stage"] == "Pre" else ""
    rows = [("阶段", trained_by(payload["stage"]) + about), ("优化步数", payload["step"])]
    for name, value in payload["metrics"].items():
        rows.append(
            (name, f"{value:.6g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")))
    return rows


def _notes(source):
    yield "对话由特殊词元隔开：`<|im_end|><|User|>：…<|Assistant|>：…<|im_end|>`，`apply_chat_template` 会写好。续写文本时请以 `<|im_end|>` 开头。"
    yield "消息里写的 `<|User|>`、`<|im_end|>` 经过对话模板仍是普通文字，伪造不了角色和结束。"
    yield "直接用 `tokenizer(文本)` 时这些写法会成为特殊词元；处理不可信的文本请加 `split_special_tokens=True`。"
    yield "接着训练：`return_assistant_tokens_mask=True`（TRL 的 `assistant_only_loss`）标出的正是本项目学习的词元。"
    if SECOND_HEAD in source.weights:
        yield "模型还有预测后第二个词的头，现成的结构放不下它，单独存于 `second_head.safetensors`，不影响正常使用。"
    yield "`tinyseek.json` 记着训练配置（含数据路径），只在用 `export.py --from hf` 带回时用到，公开前可以删去。"
