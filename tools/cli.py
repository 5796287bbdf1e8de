"""The command line that all scripts share: any configuration key as --key value, Chinese help, exit codes.

    manager, options = parse(argv, "预训练", stage="pre", extra=[("--minutes", {"type": float, "help": "总时长"})])
    if __name__ == "__main__":
        guarded(main)
"""
import argparse
import math
import os
import re
import sys

from tools.config.aliases import FOREIGN_NAMES, GENERATION, MEANINGFUL_NAMES, REFUSED, SWITCHES, key_behind, translate
from tools.config.help import help_text
from tools.config.keys import INSTEAD, KEYS, STAGES
from tools.config.values import FALSE_WORDS, LIST_KINDS, NULL_WORDS, TRUE_WORDS, nearest
from tools.config_manager import ROOT, ConfigManager
from tools.errors import UserError, explain
from tools.process.first import arguments, use_utf8
from tools.process.signals import end_in_good_order, outcome_is_decided

SHIPPED = ROOT / "model_config.json"


def parse(argv=None, description="", stage=None, extra=(), only_run_keys=False, reads=None,
          usual=None):
    """(ConfigManager, argparse.Namespace of the command's own options) from a command line (default: the script's own).

    `extra`: argparse arguments as (name, …, {keywords}) tuples; they win over configuration keys of the same name.
    The namespace also holds `config`, `preset` and `overrides` (the keys as typed). `only_run_keys`: for commands whose
    model comes from a checkpoint, a model key is refused. `reads`: names of the keys that the command looks at
    (default: all); `--help` lists only these, and a key that asks for other work (--dry_run …) is refused. `usual`: the
    preset that lies below the user's own file where no other is asked for. `--help` prints and exits 0; mistakes raise
    UserError (2).
    """
    argv = list(arguments() if argv is None else argv)
    parser = _Parser(extra, only_run_keys, reads)
    asked = argv[:argv.index("--")] if "--" in argv else argv
    if any(word in ("-h", "--help") for word in asked):
        use_utf8()
        manager = _manager_for_help(parser, asked, stage, usual)
        print(help_text(parser, description, stage, parser.listed(stage), manager))
        raise SystemExit(0)
    options = parser.read(argv)
    idle = [f"--{name}" for name in options.overrides if not parser.is_read(name)]
    if idle:
        print(f"提示：{parser.prog} 不看 {' '.join(idle)}，写了也不起作用。", file=sys.stderr)
    return ConfigManager(options.config or SHIPPED, options.overrides, options.preset, stage, usual), options


def _manager_for_help(parser, argv, stage, usual):
    """The configuration whose values the help shows: as the other words ask for, else the shipped one, else None."""
    for words in ([word for word in argv if word not in ("-h", "--help")], []):
        try:
            options = parser.read(words, strict=False)
            return ConfigManager(options.config or SHIPPED, options.overrides, options.preset, stage, usual)
        except UserError:
            continue
    return None


_NAMES = {*KEYS, *FOREIGN_NAMES}


class _Key(argparse.Action):
    """A configuration key: its words are kept as they were typed, for the ConfigManager to read."""

    def __call__(self, parser, options, values, option_string=None):
        name = option_string[2:]
        parser.check(name)
        value = values[0] if isinstance(values, list) and len(values) == 1 else values
        if options.overrides.setdefault(name, value) != value:
            raise UserError(f"{option_string} 写了两次且值不同，请只留一个。")


class _Parser(argparse.ArgumentParser):
    """argparse that knows every key of the table, explains itself in Chinese and leaves printing to `guarded`."""

    def __init__(self, extra, only_run_keys, reads):
        super().__init__(add_help=False, allow_abbrev=False, prog=os.path.basename(sys.argv[0] or "python"))
        self.only_run_keys, self.reads = only_run_keys, None if reads is None else set(reads)
        self.add_argument("--config", metavar="文件", help="配置文件（JSON，装了 PyYAML 也可用 YAML），没写到的键照 model_config.json")
        self.add_argument("--preset", metavar="名字", help="配置文件里 presets 的一组值")
        for *names, keywords in extra:
            self.add_argument(*names, **keywords)
        self.own = list(self._actions)
        self.known = {_plain(option): action for action in self.own for option in action.option_strings}

    def _option(self, word):
        """The action behind an option word, or None; a configuration key becomes an argument when it is first met (of
        all stages and all names of other ecosystems they are two thousand)."""
        option = _plain(word.partition("=")[0])
        section, _, name = option[2:].rpartition(".")
        if option not in self.known and option.startswith("--") and name in _NAMES and section in ("", *STAGES):
            several = key_behind(name) in KEYS and KEYS[key_behind(name)].kind in LIST_KINDS
            self.known[option] = self.add_argument(option, action=_Key, dest="overrides", default=argparse.SUPPRESS,
                                                   nargs="?" if name in REFUSED else "+" if several else None)
        return self.known.get(option)

    def read(self, argv, strict=True):
        """argv -> Namespace. strict=False: missing positional words and superfluous ones do not matter."""
        for action in self.own:
            action.required = action.required and strict
        options, rest = self.parse_known_args(self._tied(argv), argparse.Namespace(overrides={}))
        if rest and strict:
            raise UserError(f"多余的参数：{' '.join(rest)}。")
        for action in self.own:
            value = getattr(options, action.dest)
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{action.option_strings[0]} 应为数，而不是 {value}。")
        return options

    def _tied(self, argv):
        """argv as argparse reads it rightly: options spelled as they are registered and tied to their value
        (`--key=-1`; a bare switch to true), so that a value may begin with a dash and files may stand on both sides. An
        unknown option is refused."""
        end = argv.index("--") if "--" in argv else len(argv)
        words, front, rest = argv[:end][::-1], [], []
        while words:
            word = words.pop()
            if not re.match(r"-(?!\.?\d)[^ ]", word):
                rest.append(word)
                continue
            option, equals, value = word.partition("=")
            action = self._option(option)
            if action is None:
                raise UserError(self._no_such(option))
            if not equals:
                value = self._value_of(action, option, words)
            option = next(one for one in action.option_strings if _plain(one) == _plain(option))
            tied = option if value is None else f"{option}={value}" if option.startswith("--") else option + value
            # an open list would swallow what follows
            open_list = any(word.startswith("-") and "=" not in word for word in rest)
            (rest if open_list or value is None and action.nargs != 0 else front).append(tied)
        return front + rest + (argv[end:] if argv[end + 1:] else [])

    def _value_of(self, action, option, words):
        """The one value of an option, taken from the end of `words`; None where there is none or argparse is to count
        them."""
        following = words[-1] if words else "--"
        if isinstance(action, _Key) and _is_switch(_plain(option)):
            return words.pop() if following.strip().lower() in _switch_words(_plain(option)) else "true"
        if action.nargs is None and following != "--" and not (following.startswith("-") and self._option(following)):
            return words.pop()
        return None

    def check(self, name):
        """A key that cannot be asked for here is refused with the reason."""
        last = name.rpartition(".")[2]
        if last in REFUSED:
            translate(last, None, label=f"--{name}")
        key = key_behind(last)
        if self.only_run_keys and key is not None and KEYS[key].scope == "model" and key not in (self.reads or ()):
            raise UserError(f"--{name} 不能在这里改：模型结构来自检查点，要别的结构请换一个检查点（--model）。")
        if self.reads is not None and key in INSTEAD and key not in self.reads:
            raise UserError(f"--{name} 只用于训练，{self.prog} 不训练。")

    def is_read(self, name):
        return self.reads is None or key_behind(name.rpartition(".")[2]) in self.reads

    def listed(self, stage):
        """Names of the keys that the help shows."""
        own = {_plain(option)[2:] for action in self.own for option in action.option_strings}
        wanted = self.reads
        if wanted is None and self.only_run_keys:
            wanted = [name for name, key in KEYS.items() if key.scope == "run"]
        return [name for name, key in KEYS.items() if name not in own and (wanted is None or name in wanted)
                and (key.scope != "stage" or stage is None or stage in key.stages)]

    def _no_such(self, option):
        section, dot, last = option.lstrip("-").replace("-", "_").rpartition(".")
        own = {_plain(one).lstrip("-"): one for action in self.own for one in action.option_strings}
        instead = GENERATION.get(last)
        if instead and (instead in own.values() or not instead.startswith("--") and "temperature" in own):
            return f"没有 {option} 这个选项，{'请写 ' if instead.startswith('--') else ''}{instead}。"
        keys = [*KEYS, *MEANINGFUL_NAMES] if self.reads is None else self.reads
        close = nearest(last, [*keys, *([] if dot else own)])
        hint = "用 --help 可看到全部选项。"
        if close:
            hint = f"是不是想写 {own.get(close) or '--' + (section + dot if section in STAGES else '') + close}？"
        return f"没有 {option} 这个选项，{hint}"

    def error(self, message):
        for pattern, chinese in _ARGPARSE_WORDS:
            found = re.fullmatch(pattern, message, re.S)
            if found:
                raise UserError(chinese.format(*found.groups()))
        raise UserError(f"命令行写得不对：{message}")


def _plain(option):
    """Dashes and underscores are the same: --batch-size -> --batch_size."""
    return option[:2] + option[2:].replace("-", "_")


def _is_switch(option):
    name = option.rpartition(".")[2].lstrip("-")
    return name in SWITCHES or key_behind(name) in KEYS and KEYS[key_behind(name)].kind == "bool"


def _switch_words(option):
    """What may follow a switch as its value."""
    key = KEYS.get(key_behind(option.rpartition(".")[2].lstrip("-")))
    return TRUE_WORDS + FALSE_WORDS + (NULL_WORDS if key and key.null else ())


_ARGPARSE_WORDS = [
    (r"argument (.+?): expected one argument", "{0} 后面缺少值。"),
    (r"argument (.+?): expected at least one argument", "{0} 后面至少要有一个值，这里缺少值。"),
    (r"argument (.+?): expected (\d+) arguments", "{0} 后面要写 {1} 个值。"),
    (r"argument (.+?): invalid choice: (.+?) \(choose from (.+)\)", "{0} 不能是 {1}，可选：{2}。"),
    (r"argument (.+?): invalid int value: (.+)", "{0} 应为整数，而不是 {1}。"),
    (r"argument (.+?): invalid float value: (.+)", "{0} 应为数，而不是 {1}。"),
    (r"argument (.+?): invalid .+ value: (.+)", "{0} 的值不对：{1}。"),
    (r"argument (.+?): not allowed with argument (.+)", "{0} 和 {1} 不能同时用。"),
    (r"argument (.+?): ignored explicit argument (.+)", "{0} 是开关，后面不要写值 {1}。"),
    (r"the following arguments are required: (.+)", "缺少参数：{0}。用 --help 查看用法。"),
]


# ---------------------------------------------------------------- running a script

def guarded(main):
    """Run a script's main() and leave the process with its exit code; user mistakes become one or two Chinese lines."""
    use_utf8()
    code = _run(main)
    outcome_is_decided()
    sys.exit(code)


def _run(main):
    end_in_good_order()
    try:
        code = main()
        sys.stdout.flush()
        return code
    except UserError as error:
        return _say(error)
    except KeyboardInterrupt:
        print("已停止。", file=sys.stderr, flush=True)
        return 143
    except BrokenPipeError:
        # The reader (head, less) has left. Nothing more can be written, not even at interpreter exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        return _say(explain(error))
    except Exception as error:
        if not _out_of_memory(error):
            raise
        return _say(UserError("内存或显存不足。请减小 --batch_size 或 --max_len（可加大 --accumulation_steps 补足），"
                              "或加上 --gradient_checkpointing。"))


def _out_of_memory(error):
    """Known by name and words: this file does not import torch."""
    told = any(words in str(error) for words in ("allocate memory", "out of memory"))
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            or isinstance(error, RuntimeError) and told)


def _say(error):
    print(f"错误：{error}", file=sys.stderr, flush=True)
    return error.code
