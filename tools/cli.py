"""The command line that all scripts share: any configuration key as --key value, Chinese help, exit codes.

    manager, options = parse(argv, "预训练", stage="pre", extra=[("--minutes", {"type": float, "help": "总时长"})])
    if __name__ == "__main__":
        guarded(main)
"""
import argparse
import errno
import os
import re
import sys

from tools.config.help import help_text
from tools.config.aliases import FOREIGN_NAMES, MEANINGFUL_NAMES, REFUSED, SWITCHES, key_behind, translate
from tools.config.keys import KEYS, STAGES
from tools.config_manager import ROOT, ConfigManager
from tools.config.values import FALSE_WORDS, LIST_KINDS, TRUE_WORDS, nearest
from tools.errors import UserError
from tools.process.first import arguments
from tools.process.signals import end_in_good_order


def parse(argv=None, description="", stage=None, extra=(), only_run_keys=False):
    """(ConfigManager, argparse.Namespace of the command's own options) from a command line (default: the script's own).

    `extra`: argparse arguments as (name, …, {keywords}) tuples; they win over configuration keys of the same name.
    The namespace also holds `config`, `preset` and `overrides` (the keys as typed). `only_run_keys`: for commands whose model comes
    from a checkpoint, a model key is refused. `--help` prints and exits 0; mistakes raise UserError (2).
    """
    argv = list(arguments() if argv is None else argv)
    parser, own = _own_parser(extra)
    if any(word in ("-h", "--help") for word in _before_dashes(argv)):
        use_utf8()
        print(help_text(parser, description, stage, only_run_keys, _manager_for_help(argv, own, parser, stage)))
        raise SystemExit(0)
    rest, overrides = _split(argv, own, only_run_keys)
    options = parser.parse_args(rest)
    options.overrides = overrides
    manager = ConfigManager(options.config or ROOT / "model_config.json", overrides, options.preset, stage)
    return manager, options


def _before_dashes(argv):
    return argv[:argv.index("--")] if "--" in argv else argv


def _manager_for_help(argv, own, parser, stage):
    """The configuration whose values the help shows: as the other words ask for, else the file's, else None."""
    try:
        rest, overrides = _split([word for word in argv if word not in ("-h", "--help")], own, False)
        options = parser.parse_known_args(rest)[0]
        return ConfigManager(options.config or ROOT / "model_config.json", overrides, options.preset, stage)
    except UserError:
        pass
    try:
        return ConfigManager(ROOT / "model_config.json", stage=stage)
    except UserError:
        return None


# ---------------------------------------------------------------- the command's own options

class _Parser(argparse.ArgumentParser):
    """argparse that explains itself in Chinese and leaves printing to `guarded`."""

    def error(self, message):
        for pattern, chinese in _ARGPARSE_WORDS:
            found = re.fullmatch(pattern, message, re.S)
            if found:
                raise UserError(chinese.format(*found.groups()))
        raise UserError(f"命令行写得不对：{message}")


_ARGPARSE_WORDS = [
    (r"argument (.+?): expected one argument", "{0} 后面缺少值。"),
    (r"argument (.+?): expected at least one argument", "{0} 后面至少要有一个值。"),
    (r"argument (.+?): invalid choice: (.+?) \(choose from (.+)\)", "{0} 不能是 {1}，可选：{2}。"),
    (r"argument (.+?): invalid int value: (.+)", "{0} 应为整数，而不是 {1}。"),
    (r"argument (.+?): invalid float value: (.+)", "{0} 应为数，而不是 {1}。"),
    (r"argument (.+?): invalid .+ value: (.+)", "{0} 的值不对：{1}。"),
    (r"argument (.+?): not allowed with argument (.+)", "{0} 和 {1} 不能同时用。"),
    (r"argument (.+?): ignored explicit argument (.+)", "{0} 是开关，后面不要写值 {1}。"),
    (r"the following arguments are required: (.+)", "缺少参数：{0}。用 --help 查看用法。"),
    (r"unrecognized arguments: (.+)", "多余的参数：{0}。"),
]


def _own_parser(extra):
    """The argparse parser for --config, --preset and `extra`, and its actions by option string."""
    parser = _Parser(add_help=False, allow_abbrev=False, prog=os.path.basename(sys.argv[0] or "python"))
    parser.add_argument("--config", metavar="文件", help="配置文件（JSON，装了 PyYAML 也可用 YAML），默认 model_config.json")
    parser.add_argument("--preset", metavar="名字", help="配置文件里 presets 的一组值")
    for *names, keywords in extra:
        parser.add_argument(*names, **keywords)
    return parser, {option: action for action in parser._actions for option in action.option_strings}


def _split(argv, own, only_run_keys):
    """(words for argparse, {configuration key as typed: its word or words})."""
    rest, overrides, at = [], {}, 0
    while at < len(argv):
        word = argv[at]
        at += 1
        if word == "--":
            return rest + (argv[at - 1:] if argv[at:] else []), overrides
        option, equals, value = word.partition("=")
        if not _is_option(word):
            rest.append(word)
        elif _spelled(option, own):
            at = _take_own(_spelled(option, own), value if equals else None, own, argv, at, rest)
        else:
            name = option[2:].replace("-", "_")
            _check_name(name, option, own, only_run_keys)
            values, at = ([value], at) if equals else _take_values(name, option, own, argv, at)
            _remember(overrides, name, option, values)
    return rest, overrides


def _is_option(word):
    return word.startswith("-") and word != "-" and not re.fullmatch(r"-\.?\d.*", word)


def _spelled(option, own):
    """The command's own option as it is registered (dashes and underscores are the same), or None."""
    for spelling in (option, "--" + option[2:].replace("-", "_"), "--" + option[2:].replace("_", "-")):
        if spelling in own:
            return spelling
    return None


def _is_known(word, own):
    """Whether a word is an option that somebody here knows; a prompt may well begin with a dash."""
    option = word.partition("=")[0]
    name = option[2:].replace("-", "_").rpartition(".")[2]
    return _spelled(option, own) is not None or (word.startswith("--") and (name in KEYS or name in FOREIGN_NAMES))


def _take_own(option, value, own, argv, at, rest):
    """One value is tied to its option with `=`, so that argparse takes it even when it begins with a dash."""
    if value is None and own[option].nargs is None and at < len(argv) and argv[at] != "--" and not _is_known(argv[at], own):
        value = argv[at]
        at += 1
    tie = "=" if option.startswith("--") else ""
    rest.append(option if value is None else f"{option}{tie}{value}")
    return at


def _check_name(name, option, own, only_run_keys):
    section, dot, last = name.rpartition(".")
    if not option.startswith("--") or last not in KEYS and last not in FOREIGN_NAMES or dot and section not in STAGES:
        raise UserError(_no_such_option(option, own))
    if last in REFUSED:
        translate(last, None, label=option)
    key = key_behind(last)
    if only_run_keys and key is not None and KEYS[key].scope == "model":
        raise UserError(f"{option} 不能在这里改：模型结构来自检查点，要别的结构请换一个检查点（--model）。")


def _no_such_option(option, own):
    name = option.lstrip("-").replace("-", "_")
    section, dot, last = name.rpartition(".")
    spelled = {one.lstrip("-").replace("-", "_"): one for one in own}
    close = nearest(last, [*KEYS, *MEANINGFUL_NAMES, *([] if dot else spelled)])
    hint = "用 --help 可看到全部选项。"
    if close:
        hint = f"是不是想写 {spelled.get(close) or '--' + (section + dot if section in STAGES else '') + close}？"
    return f"没有 {option} 这个选项，{hint}"


def _take_values(name, option, own, argv, at):
    """The words that belong to a key: none for a bare switch, all up to the next option for a list, else one."""
    last = name.rpartition(".")[2]
    kind = "bool" if last in SWITCHES else KEYS[key_behind(last)].kind if key_behind(last) else "str"
    following = argv[at] if at < len(argv) else None
    if kind == "bool":
        given = following is not None and following.strip().lower() in TRUE_WORDS + FALSE_WORDS
        return ([following], at + 1) if given else (["true"], at)
    if following is None or following.startswith("--"):
        raise UserError(f"{option} 后面缺少值。")
    end = at + 1
    while kind in LIST_KINDS and end < len(argv) and not _is_option(argv[end]):
        end += 1
    return argv[at:end], end


def _remember(overrides, name, option, values):
    value = values[0] if len(values) == 1 else values
    if name in overrides and overrides[name] != value:
        raise UserError(f"{option} 写了两次且值不同，请只留一个。")
    overrides[name] = value


# ---------------------------------------------------------------- running a script

def use_utf8():
    """Chinese output on any console: UTF-8 on Windows, and never an exception for an odd character."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.reconfigure(errors="replace", **({"encoding": "utf-8"} if os.name == "nt" else {}))
        except (AttributeError, ValueError, OSError):
            pass        # replaced by a test or a notebook


def guarded(main):
    """Run a script's main() and leave the process with its exit code; user mistakes become one or two Chinese lines."""
    use_utf8()
    sys.exit(_run(main))


def _run(main):
    end_in_good_order()
    try:
        code = main()
        sys.stdout.flush()
        return code
    except UserError as error:
        _say(error)
        return error.code
    except KeyboardInterrupt:
        _say("已停止。")
        return 143
    except BrokenPipeError:
        # The reader (head, less) has left. Nothing more can be written, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno in _DISK_FULL:
            _say(UserError(f"磁盘已满，写不下 {error.filename or '文件'}。请腾出空间后重新运行，会接着上次继续。"))
            return 7
        if error.errno in _NO_PERMISSION:
            _say(UserError(f"没有权限读写 {error.filename or '文件'}。请换一个文件夹（--out_dir、--log_dir）或修改权限。"))
            return 2
        raise
    except Exception as error:
        if not _out_of_memory(error):
            raise
        _say(UserError("内存或显存不足。请减小 --batch_size 或 --max_len（可加大 --accumulation_steps 补足），或加上 --gradient_checkpointing。"))
        return 2


_DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


def _out_of_memory(error):
    """Known by name and words: this file does not import torch."""
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            or isinstance(error, RuntimeError) and any(words in str(error) for words in ("allocate memory", "out of memory")))


def _say(message):
    print(f"错误：{message}" if isinstance(message, UserError) else message, file=sys.stderr, flush=True)
