"""The Modelfile with which Ollama takes a GGUF: `ollama create 名字 -f Modelfile`."""

from chat_agent.exports.folder import whole_file
from chat_agent.load import talk_of
from tools.errors import UserError
from tools.template import COLON, END

FIRST_LINE = "# TinySeek 导出，用法：ollama create tinyseek -f Modelfile && ollama run tinyseek"
WARNING = "# Ollama 把模板当文字填写：消息里写的 <|User|>、<|im_end|> 会被当成标记。要接收不可信的消息，请改用 chat_agent/serve.py。"
TURNS = (
    '{{ range .Messages }}{{ if eq .Role "system" }}<|System|>@{{ .Content }}'
    '{{ else if eq .Role "user" }}<|User|>@{{ .Content }}{{ else if eq .Role "tool" }}<|Tool|>@{{ .Content }}'
    '{{ else if eq .Role "assistant" }}<|Assistant|>@{{ .Content }}' + END + '{{ end }}{{ end }}<|Assistant|>@')


def check_place(path):
    """UserError 2 if a Modelfile that is not ours lies beside the .gguf at `path`: it is never overwritten."""
    place = path.with_name("Modelfile")
    if place.exists() and not place.read_text(encoding="utf-8", errors="replace").startswith(FIRST_LINE):
        raise UserError(f"{place} 已存在且不是本程序写的，不会覆盖。请用 --output 换一个文件夹。", 2)


# Ollama's words; the others are ours
NAMES = {"max_new_tokens": "num_predict", "repetition_penalty": "repeat_penalty"}
UNKNOWN = ("no_repeat_ngram",)                          # and what it cannot do


def parameters(payload):
    """The checkpoint's sampling defaults as Ollama spells them: all of them, since its own differ."""
    table = talk_of(payload)["sampling"]
    return [f"PARAMETER {NAMES.get(name, name)} {value:g}" for name, value in table.items() if name not in UNKNOWN]


def write_modelfile(path, source):
    """Beside the .gguf at `path`."""
    lines = [FIRST_LINE, WARNING, f"FROM ./{path.name}", f'TEMPLATE """{END}{TURNS.replace("@", COLON)}"""',
             f"PARAMETER num_ctx {source.context}", *parameters(source.payload)]
    with whole_file(path.with_name("Modelfile")) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
