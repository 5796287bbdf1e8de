"""The shared command line: keys, own options, Chinese help and messages, exit codes."""
import json
import os
import random
import subprocess
import sys
import textwrap

import pytest

from tools import cli
from tools.cli import parse
from tools.config.aliases import FOREIGN_NAMES
from tools.config.keys import KEYS, stage_keys
from tools.config_manager import ROOT
from tools.errors import UserError

EXTRA = [("--minutes", {"type": float, "help": "总时长（分钟）"}), ("--quick", {"action": "store_true", "help": "冒烟"}),
         ("-p", "--prompt", {"help": "一句话"}), ("--model", {"action": "append", "help": "检查点"}),
         ("--max_new_tokens", {"type": int, "default": 64}), ("--task", {"choices": ["bpc", "mcq"]})]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(words, stage="pre", **keywords):
    return parse(words.split() if isinstance(words, str) else words, "说明", stage=stage, extra=EXTRA, **keywords)


def refused(words, *said, **keywords):
    with pytest.raises(UserError) as caught:
        run(words, **keywords)
    assert caught.value.code == 2 and any("\u4e00" <= c <= "\u9fff" for c in str(caught.value))
    for one in said:
        assert one in str(caught.value), str(caught.value)


# ---------------------------------------------------------------- configuration keys

@pytest.mark.parametrize("words, key, expected", [
    ("--batch_size 4", "batch_size", 4), ("--batch_size=4", "batch_size", 4), ("--batch-size 4", "batch_size", 4),
    ("--pre.batch_size 4", "batch_size", 4),
    ("--pre.batch-size=4", "batch_size", 4), ("--last_index -1", "last_index", -1),
    ("--init_lr 1e-4", "init_lr", 1e-4), ("--lr 1e-4", "init_lr", 1e-4),
    ("--dry_run", "dry_run", True), ("--dry_run --quick", "dry_run", True), ("--use_moe false", "use_moe", False),
    ("--use_moe=no", "use_moe", False),
    ("--use_alibi", "position", "alibi"), ("--use_geglu true", "activation", "geglu"),
    ("--log_to_wandb false", "tracker", "none"),
    ("--tie_word_embeddings", "tie_embedding", True), ("--max_steps none", "max_steps", None),
    ("--resume none", "resume", "none"),
    ("--name 实验", "name", "实验"), ("--text_field a b --quick", "text_field", ["a", "b"]),
    ("--num_gpus 1", "batch_size", 8),
    ("--hidden_size 384", "d_model", 384), ("--seed 3 --seed 3", "seed", 3),
])
def test_T7_any_key_on_the_command_line(words, key, expected):
    assert run(words)[0].stage()[key] == expected


def test_T1_every_key_of_every_stage_is_accepted():
    for stage in ("pre", "sft", "lora", "prefix", "memory", "gate", "dpo"):
        manager, _ = parse([], stage=stage)
        for name in (name for name in manager.stage() if name in KEYS):
            value = manager.stage()[name]
            if value is None:
                text = ["none"]
            elif isinstance(value, list):
                text = value or ["none"]
            else:
                text = [str(value).lower() if isinstance(value, bool) else str(value)]
            again, _ = parse([f"--{name}", *text], stage=stage)
            found = again.stage()[name]
            assert found == value or [found] == value, name


def test_paths_and_shell_expanded_lists_count_from_the_current_folder(tmp_path):
    stage = run("--json_data_path a.jsonl b.jsonl --out_dir o --quick")[0].stage()
    assert stage["json_data_path"] == [str(tmp_path / "a.jsonl"),
                                       str(tmp_path / "b.jsonl")] and stage["out_dir"] == str(tmp_path / "o")
    (tmp_path / "x,y.jsonl").write_text("")
    assert run("--json_data_path x,y.jsonl")[0].stage()["json_data_path"] == str(tmp_path / "x,y.jsonl")
    assert run("--json_data_path a,b")[0].stage()["json_data_path"] == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_T2_config_and_preset(tmp_path):
    (tmp_path / "c.json").write_text('{"n_layer": 3, "presets": {"p": {"n_layer": 6, "batch_size": 2}}}')
    assert run("--config c.json")[0].config["n_layer"] == 3
    manager, options = run("--config c.json --preset p --batch_size 5")
    assert (manager.config["n_layer"], manager.stage()["batch_size"]) == (6, 5)
    assert options.preset == "p" and options.config == "c.json" and options.overrides == {"batch_size": "5"}
    assert run("--preset moe")[0].config["other_experts"] == 16
    refused("--config no.json", "no.json")
    refused("--preset mo", "moe")
    refused("--config", "缺少值")


def test_without_config_the_projects_own_file_is_read(tmp_path):
    (tmp_path / "model_config.json").write_text('{"n_layer": 77}')
    manager, _ = run([])
    assert manager.path == str(ROOT / "model_config.json") and manager.config["n_layer"] != 77


@pytest.mark.parametrize("words, said", [
    ("--batchsize 4", "--batch_size"), ("--pre.batch_siz 4", "--pre.batch_size"), ("--promt x", "--prompt"),
    ("--max-new-token 3", "--max_new_tokens"),
    ("--pree.batch_size 4", "--pree.batch_size"), ("-q", "-q"), ("--batch_size", "缺少值"),
    ("--batch_size --quick", "缺少值"), ("extra words", "多余"),
    ("--batch_size 4 --batch_size 5", "两次"), ("--lr 1 --init_lr 2", "同一件事"), ("--minutes x", "--minutes"),
    ("--minutes nan", "--minutes"), ("--minutes=-inf", "--minutes"), ("--minutes 1e999", "--minutes"),
    ("--minutes", "缺少值"),
    ("--prompt --quick", "缺少值"), ("--prompt --batch_size 4", "缺少值"), ("--task x", "bpc"), ("--quick=1", "--quick"),
    ("--shuffle", "seed"),
    ("--shuffle=1", "seed"), ("--memory_lr 1", "memory"), ("--batch_size 4 5", "多余"), ("--n_head 7", "d_model"),
    ("--=3", "--help"),
])
def test_mistakes_on_the_command_line(words, said):
    refused(words, said)


# ---------------------------------------------------------------- own options

def test_own_options_win_and_take_any_text():
    _, options = run("--prompt --minus --minutes 2.5 --model a --model b --max-new-tokens 9 --quick")
    assert (options.prompt, options.minutes, options.model, options.max_new_tokens, options.quick) == ("--minus", 2.5,
        ["a", "b"], 9, True)
    assert run(["-p", "-5 + 3"])[1].prompt == "-5 + 3"
    assert run(["--prompt", "a=b c"])[1].prompt == "a=b c" and run(["--prompt=--x=y"])[1].prompt == "--x=y"
    assert run(["--prompt", ""])[1].prompt == ""
    manager, options = parse(["--seed", "5"], extra=[("--seed", {"type": int})], stage="pre")
    assert options.seed == 5 and manager.stage()["seed"] == 0


def test_positional_words_and_missing_ones():
    extra = [("files", {"nargs": "+", "help": "文件"})]
    assert parse(["a", "--max_len", "64", "b", "-"], extra=extra)[1].files == ["a", "b", "-"]
    with pytest.raises(UserError, match="缺少参数：files"):
        parse([], extra=extra)


def test_only_run_keys_refuses_what_the_checkpoint_decides():
    for name in ("--n_layer", "--hidden_size", "--use_alibi", "--dropout", "--hidden_act"):
        refused([name, "1"], "模型结构来自检查点", name, stage=None, only_run_keys=True)
    manager, options = run("--device cpu --threads 2 --preset moe --model m.pkl", stage=None, only_run_keys=True)
    assert manager.config["device"] == "cpu" and manager.config["threads"] == 2 and options.model == ["m.pkl"]


def test_no_command_line_ends_in_another_exception():
    rng = random.Random(0)
    names = [*KEYS, *FOREIGN_NAMES, "sft.batch_size", "x.y", "minutes", "prompt", "task", "model", "config", "preset",
             "", "."]
    values = ["", "1", "-1", "x", "none", "true", "[", "1e-4", "a,b", "--", "-", "=", "\udcff", "实验", "~", "tiny"]
    for _ in range(400):
        words = []
        for _ in range(rng.randrange(4)):
            name = rng.choice(["--", "--", "--", "-", ""]) + rng.choice(names)
            words += rng.choice([[name], [name, rng.choice(values)], [f"{name}={rng.choice(values)}"]])
        try:
            run(words, stage=rng.choice([None, "pre", "memory"]), only_run_keys=rng.random() < 0.3)
        except UserError as error:
            assert error.code == 2


# ---------------------------------------------------------------- help

def help_of(capsys, words, **keywords):
    with pytest.raises(SystemExit) as caught:
        run(words, **keywords)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_T7_help_lists_every_key_of_the_stage_in_chinese(capsys):
    text = help_of(capsys, "--help", stage="lora")
    for name in [*stage_keys("lora"), "n_layer", "device", "minutes", "config", "preset"]:
        assert f"  --{name} " in text, name
    assert "--memory_tokens" not in text and "LoRA" in text and "说明" in text and "总时长" in text
    assert "usage" not in text.lower()
    for key in KEYS.values():
        assert key.help and any("\u4e00" <= c <= "\u9fff" or c.isupper() or "." in key.help for c in key.help)


def test_help_shows_the_values_in_effect(capsys, tmp_path):
    (tmp_path / "c.json").write_text('{"n_layer": 31}')
    assert "（31）" in help_of(capsys, "--config c.json -h")
    assert "（31）" not in help_of(capsys, "-h")
    (tmp_path / "c.json").write_text("{")
    assert "--n_layer" in help_of(capsys, "--config c.json -h")
    assert "medium" in help_of(capsys, "-h") and "--sft.batch_size" in help_of(capsys, "-h", stage=None)


def test_help_of_a_command_for_checkpoints_hides_the_model(capsys):
    text = help_of(capsys, "-h", stage=None, only_run_keys=True)
    assert "--device" in text and "--n_layer" not in text and "--batch_size" not in text


def test_a_command_lists_what_it_reads_and_refuses_other_work(capsys):
    reads = {"reads": ("device", "max_len"), "stage": None}
    text = help_of(capsys, "-h", **reads)
    assert "--device" in text and "--max_len" in text and "--threads" not in text and "--dry_run" not in text
    for words in ("--find_lr", "--dry_run false", "--overfit_one_batch 4", "--resume nosuch.pkl",
                  "--resume_from_checkpoint x"):
        refused(words, words.split()[0], "训练", **reads)
    manager, _ = run("--device cpu --sft.max_len 64 --compile no --tracker wandb", **reads)
    said = capsys.readouterr().err
    assert manager.config["sft"]["max_len"] == 64 and "--compile --tracker" in said and "--device" not in said
    assert "max_len" not in said


@pytest.mark.parametrize("words, said", [
    ("--cutoff_len 64", None), ("--torch_dtype bfloat16", None), ("--do_sample", "--temperature"),
    ("--num_beams 4", "束"), ("--gpu 0", "device"),
    ("--evaluation_strategy steps", "eval_steps"), ("--from_weight pretrain", "pretraining_model_path"),
    ("--finetuning_type lora", "lora_train.py"),
    ("--load_in_4bit", "gguf"),
])
def test_options_of_other_projects_are_understood_or_explained(words, said):
    refused(words, said) if said else run(words)


def test_switches_and_lists_leave_the_files_alone():
    extra = [("files", {"nargs": "*"}), ("--held", {"nargs": "+"}), ("--all", {"action": "store_true"})]
    for words, files, held in (("--hf_streaming a b", ["a", "b"], None), ("a --max_len 9 b --all", ["a", "b"], None),
                               ("a --held x --all", ["a"], ["x"]), ("a --all --held x y", ["a"], ["x", "y"]),
                               ("--tie_embedding false a", ["a"], None)):
        options = parse(words.split(), extra=extra)[1]
        assert (options.files, options.held) == (files, held), words
    with pytest.raises(UserError, match="--bogus"):
        parse(["--bogus", "a"], extra=extra)


def test_after_two_dashes_all_is_text():
    assert run("--")[1].prompt is None
    extra = [("words", {"nargs": "*"})]
    assert parse(["--", "--help", "-x"], extra=extra)[1].words == ["--help", "-x"]


# ---------------------------------------------------------------- guarded

def script(tmp_path, body, *arguments, **keywords):
    """Run main() with this body under guarded() in a fresh process."""
    path = tmp_path / "脚本.py"
    path.write_text(
        "import sys\n"
        + f"sys.path.insert(0, {str(ROOT)!r})\nfrom tools.cli import *\nfrom tools.errors import UserError\n"
                    + "def main():\n" + textwrap.indent(textwrap.dedent(body), "    ") + "\nguarded(main)\n",
                    encoding="utf-8")
    return subprocess.run([sys.executable, str(path), *arguments], capture_output=True, timeout=60, **keywords)


@pytest.mark.parametrize("body, code, said", [
    ("return None", 0, ""), ("return 3", 3, ""), ("raise UserError('坏了，请修')", 2, "错误：坏了，请修"),
    ("raise UserError('满', 7)", 7, "错误：满"),
    ("raise KeyboardInterrupt", 143, "已停止"), ("import errno; raise OSError(errno.ENOSPC, 'x', 'f.pkl')", 7, "f.pkl"),
    ("import errno; raise OSError(errno.EROFS, 'x', 'f.pkl')", 2, "没有权限"), ("raise MemoryError", 2, "--batch_size"),
    ("open('没有/x.json')", 2, "没有/x.json"), ("open('.', 'w')", 2, "文件夹"), ("open('脚本.py/x')", 2, "脚本.py/x"),
    ("open('长' * 300, 'w')", 2, "名字太长"),
    ("import os; os.mkdir('d'); os.mkdir('d')", 2, "d 已经有了"),
    ("raise ConnectionResetError(104, 'reset by peer')", 2, "reset by peer"),
    ("import errno; raise OSError(errno.EIO, '坏盘', 'f')", 2, "f：坏盘"), ("raise OSError('odd')", 2, "odd"),
    ("parse(['--n_head', '7'], stage='pre')", 2, "n_head=7"), ("parse(['--help'], '说明')", 0, ""),
    ("sys.exit(5)", 5, ""),
])
def test_T1_guarded_ends_with_the_contracts_exit_codes(tmp_path, body, code, said):
    done = script(tmp_path, body, cwd=tmp_path)
    errors = done.stderr.decode("utf-8")
    assert done.returncode == code and said in errors and "Traceback" not in errors and len(errors.splitlines()) <= 2


def test_guarded_keeps_the_traceback_of_a_bug(tmp_path):
    done = script(tmp_path, "return 1 / 0")
    assert done.returncode == 1 and b"ZeroDivisionError" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
def test_guarded_is_quiet_when_the_reader_leaves(tmp_path):
    path = tmp_path / "many.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tools.cli import guarded\n"
                    "def main():\n    for _ in range(100000): print('行')\nguarded(main)\n", encoding="utf-8")
    process = subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(60) == 141


@pytest.mark.skipif(os.name == "nt", reason="POSIX shells")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_script_without_its_streams_works_and_its_files_get_nothing_of_what_it_says(tmp_path, closed):
    path = tmp_path / "quiet.py"
    path.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tools.cli import guarded\n"
                    "def main():\n    file = open('f.txt', 'w')\n    print('说')\n    print('说', file=sys.stderr)\n"
                    "    sys.stdout.isatty() or file.write(repr(sys.stdin.read()))\n    file.close()\n"
                    "guarded(main)\n", encoding="utf-8")
    done = subprocess.run(f"exec {sys.executable} quiet.py {closed}", shell=True, cwd=tmp_path,
                          stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=60)
    assert done.returncode == 0 and b"Traceback" not in done.stderr
    assert (tmp_path / "f.txt").read_text() == "''"


def test_guarded_prints_what_the_console_cannot(tmp_path):
    for encoding in ("ascii", "cp1252", "latin-1"):
        done = script(tmp_path, "print('中文 ✓'); raise UserError('找不到 \\udcff 文件')",
                      env={**os.environ, "PYTHONIOENCODING": encoding})
        assert done.returncode == 2 and "找不到 ? 文件" in done.stderr.decode() and "中文 ✓" in done.stdout.decode()


def test_the_command_line_is_light():
    """--help must not wait for torch."""
    code = "import sys; import tools.cli; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


def test_overrides_are_plain_text_that_can_be_kept():
    _, options = run("--lr 1e-4 --sft.batch_size=3 --text_field a b --dry_run")
    assert json.loads(json.dumps(options.overrides)) == {"lr": "1e-4", "sft.batch_size": "3", "text_field": ["a", "b"],
                                                         "dry_run": "true"}
    assert cli.ROOT == ROOT
