"""Every command that README.md, README_en.md and docs/ tell people to type is run here, at toy size, in a folder with a
space and Chinese in its name. What cannot be run says why: see NOT_HERE. Words and numbers of the pages:
test_wording.py.
"""
import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import toy

from tools.config.keys import KEYS, STAGES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "README_en.md", "CONTRIBUTING.md", "CHANGELOG.md")),
         *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/course").glob("*.md"))]
SHAPE = dict(n_layer=2, n_head=2, d_model=32, d_c=16, d_q=24, d_r=8, hidden=24, other_experts=4, shared_experts=1,
             keep=2, vocab_size=500)
QUIET = dict(max_len=40, batch_size=2, max_steps=2, max_epochs=2, eval_steps=None, save_steps=None, logging_steps=1,
             n_of_samples=None,
             scheduler="constant", warmup_steps=0)
DATA = {"pre": "my_text.jsonl", "sft": "my_chat.jsonl", "dpo": "my_preference.jsonl", "rl": "my_questions.jsonl"}
# Beginning of a command -> why it is not run.
NOT_HERE = {"python -m pip": "需要联网", "python -m pytest": "就是这些测试自己", "ollama": "需要 Ollama", "llama-cli": "需要 llama.cpp",
            "curl": "需要一个正在运行的服务，tests/test_serve.py 里有", "python -c": "只打印一个值", "git clone": "需要联网",
            "cd ": "换文件夹", "python -m venv": "不改变什么", "source ": "shell 的命令",
            "python tools/get_data.py lccc": "需要联网或镜像，tests/test_get_data.py 里有",
            "python bench/real_chat.py": "几分钟，tests/test_real_chat.py 里有", "python bench/everyday.py": "同上",
            "bash bench/gpu.sh": "需要显卡，tests/test_gpu_bench.py 里有 CPU 上的",
            "python chat_agent/answer.py --api": "需要一个正在运行的服务，tests/test_answer.py 里有",
            "python chat_agent/export.py --from hf Qwen": "需要下载好的模型，tests/test_bases.py 里有小的",
            "python chat_agent/chat.py --model base.pkl": "要上一行的模型，tests/test_base_stages.py 里有小的",
            "python train_agent/lora_train.py --pretraining_model_path base.pkl": "同上",
            "python docs/course/": "tests/test_course.py 里有",
            "python bench/reinforce": "要一个半熟的模型和半小时处理器时间",
            "python chat_agent/chat.py --model out/TinySeek_SFT_final.pkl --tools": "需要学过工具的模型，tests/test_tools.py 里有",
            "python train_agent/rl_train.py --tools": "同上，tests/test_agentic.py 里有",
            "python train_agent/sft_train.py --json_data_path my_chat.jsonl tool_data": "要先写出 tool_data，"
            "tests/test_tool_tasks.py 里有",
            "python bench/results_page.py": "改写本项目的文件，tests/test_results_page.py 里有"}
# Script -> what makes its command small, in place of what the command says about it.
TOY = {"run.py": {"--quick": None}, "bench/quality_per_minute.py": {"--max_steps": "2", "--quick": None},
       "chat_agent/evaluate.py": {"--every": "50"},
       "chat_agent/answer.py": {"--keep_cut": None, "--max_new_tokens": "3"},
       "bench/course_shape.py": {"--quick": None, "--out": "bench_course_shape"},
       "bench/preference.py": {"--quick": None, "--out": "bench_preference", "--base_steps": "4"},
       "bench/yarn.py": {"--factor": "1"},
       "bench/distil.py": {"--quick": None, "--out": "bench_distil"},
       "bench/adapters.py": {"--quick": None}}
# the same as run.py, and minutes of it
SLOW = ("run.py --minutes", "run.py --with", "run.py --quick", "train_speed.py", "distil.py")


def typed():
    """Every command of the pages: lines of bash blocks, and `python …` in running text -> {words: page}."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M) for line in block.splitlines()]
        lines += re.findall(r"`((?:python|torchrun) [^`]*\.py[^`]*)`",
                            re.sub(r"^```.*?^```", "", text, flags=re.S | re.M))
        for line in lines:
            words, command = shlex.split(line, comments=True), []
            for word in [*words, "&&"]:
                if word != "&&":
                    command.append(word)
                elif command:
                    found.setdefault(tuple(command), page.name)
                    command = []
    return found


COMMANDS = typed()


def cases():
    for words in COMMANDS:
        line = " ".join(words)
        yield pytest.param(words, id=line[:90], marks=[pytest.mark.slow] if any(word in line for word in SLOW) else [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Data, configuration and checkpoints of somebody who has followed the pages so far."""
    folder = tmp_path_factory.mktemp("readme") / "我的 模型"
    folder.mkdir()
    for name in ("my_text.jsonl", "your_text.jsonl", "你的文本.jsonl"):
        toy.write_rows(folder / name, toy.text_rows(250))
    for name in ("my_chat.jsonl", "more_chat.jsonl", "my chat 对话.jsonl"):
        toy.write_rows(folder / name, toy.dialogue_rows(60))
    pairs = [{"prompt": f"{thing}呢？", "chosen": f"{thing}很好看。", "rejected": "不见了。"} for thing in toy.THINGS * 3]
    toy.write_rows(folder / "my_preference.jsonl", pairs)
    toy.write_rows(folder / "my_questions.jsonl", [{"prompt": f"{thing}呢？", "answer": "3"} for thing in toy.THINGS])
    turns = [[message["content"] for message in row["conversations"][:2]] for row in toy.dialogue_rows(60)]
    table = "客户,客服,人设\n" + "".join(f'"{asked}","{said}",{said[:4]}\n' for asked, said in turns)
    (folder / "客服.csv").write_bytes(table.encode("gbk"))
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests/stranger.jsonl", folder / "tests")
    novel = [{"正文": row["text"]} for row in toy.text_rows(50)]
    (folder / "小说.json").write_text(json.dumps(novel, ensure_ascii=False, indent=2), encoding="utf-8")
    stages = {stage: {**QUIET, "json_data_path": DATA.get(stage, "my_chat.jsonl")}
              for stage in ("pre", "sft", "lora", "prefix", "memory", "gate", "dpo", "rl")}
    stages["rl"] |= {"max_new_tokens": 8, "group_size": 2}
    presets = json.loads((ROOT / "model_config.json").read_text(encoding="utf-8"))["presets"]
    config = {**SHAPE, "token_kind": "char", "device": "cpu", "mixed_precision": "no", "threads": 1, "out_dir": "out",
              "log_dir": "logs",
              "log_file": "log.txt", "cache_dir": "out/cache", "vocab_trg_path": "out/vocab.json", **stages,
              "presets": {name: {} for name in presets}}
    (folder / "model_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for script in ("pre_train", "sft_train", "lora_train"):
            run(("python", f"train_agent/{script}.py"), patch)
        run("python chat_agent/export.py --model out/TinySeek_SFT_final.pkl --to hf --output exported".split(), patch)
    for name, source in (("a", "SFT"), ("b", "Lora")):
        shutil.copy(folder / f"out/TinySeek_{source}_final.pkl", folder / f"out/{name}.pkl")
        shutil.copy(folder / f"out/TinySeek_{source}_final.pkl", folder / f"{name}.pkl")
    shutil.copytree(folder / "out", folder / "lora")
    for name in ("my", "role"):
        shutil.copytree(folder / "lora", folder / "out" / name)
    return folder


def run(words, patch):
    """Call what `python script …` or `torchrun … script …` calls, with the toy configuration of the current folder."""
    at = next(i for i, word in enumerate(words) if word.endswith(".py"))
    script, given = words[at], list(words[at + 1:])
    main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
    if script != "tools/plot.py":
        given = smaller(given, TOY.get(script, {})) + ["--config", "model_config.json"]
    # whoever chats leaves at once
    patch.setattr("builtins.input", lambda *_: (_ for _ in ()).throw(EOFError))
    patch.setattr("train_agent.trainers.trying.find_batch.MOST", 4)
    try:
        code = main(given)
    except SystemExit as end:
        code = end.code
    assert code in (None, 0), f"{' '.join(words)} ended with {code}"


def smaller(given, options):
    """The words of a command with some options set to other values."""
    for option, value in options.items():
        if option in given:
            at = given.index(option)
            given = given[:at] + given[at + (1 if value is None else 2):]
        given = [*given, option] + ([] if value is None else [value])
    return given


@pytest.mark.parametrize("words", list(cases()))
def test_T1_a_command_of_the_pages_runs(words, trained, tmp_path, monkeypatch, capsys):
    line = " ".join(words)
    reason = next((why for start, why in NOT_HERE.items() if line.startswith(start)), None)
    if reason:
        if "-r" in words:
            assert (ROOT / words[words.index("-r") + 1]).exists()
        pytest.skip(reason)
    if "export.py" in line:
        pytest.importorskip("gguf" if "gguf" in line else "safetensors")
    if "serve.py" in line:
        server = pytest.importorskip("chat_agent.server.run")
        monkeypatch.setattr(server, "serve", lambda *_: None)                               # everything up to listening
        monkeypatch.setattr("chat_agent.serve.print", lambda *_, **__: None, raising=False)
    home = shutil.copytree(trained, tmp_path / "我的 模型")
    monkeypatch.chdir(home)
    if "serve.py" in line:
        words = [*words[:-1], "0"] if "--port" in words else [*words, "--port", "0"]
        main = importlib.import_module("chat_agent.serve").main
        assert main([*words[2:], "--config", "model_config.json"]) == 143
        return
    run(words, monkeypatch)


def test_the_pages_hold_commands_of_every_kind():
    lines = [" ".join(words) for words in COMMANDS]
    for script in ("run.py", "pre_train.py", "sft_train.py", "lora_train.py", "prefix_train.py", "memory_train.py",
                   "train_gate.py", "dpo_train.py",
                   "chat.py", "serve.py", "evaluate.py", "export.py", "answer.py", "plot.py", "check_data.py"):
        assert any(script in line for line in lines), f"no page tells how to run {script}"


def test_both_readmes_are_short():
    for page in PAGES[:2]:
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 120, page.name


def test_links_between_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_pages_name_only_keys_that_exist():
    known = set(KEYS) | {"config", "preset"}
    sources = "".join(p.read_text(encoding="utf-8") for folder in ("chat_agent", "tools", "bench")
                      for p in (ROOT / folder).rglob("*.py"))
    sources += "".join((ROOT / name).read_text(encoding="utf-8") for name in ("run.py", "docs/course/course.py"))
    for page in PAGES:
        for option in set(
                re.findall(r"(?<![\w-])--([a-z_.]+)\b",
                           re.sub("python -m pip[^`\n]*", "", page.read_text(encoding="utf-8")))):
            stage, _, key = option.rpartition(".")
            fine = (key in known and (not stage or stage in STAGES)) or f'"--{option}"' in sources or option in (
                "nproc_per_node", "nnodes", "node_rank", "master_addr", "dist")
            assert fine, f"{page.name}: --{option} does not exist"
