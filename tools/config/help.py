"""`--help` in Chinese: the command's own options, then every configuration key with its value and meaning, grouped."""
import unicodedata

from tools.config.keys import KEYS, STAGE_TITLES, default_of
from tools.config.values import show


def help_text(parser, description, stage=None, names=(), manager=None):
    """The whole help as one string. names: the keys to show. Values shown are those of `manager` (the file), else the
    table's defaults."""
    positional = [_metavar(action) for action in parser.own if not action.option_strings]
    lines = [" ".join(["用法：python", parser.prog, *positional, "[选项]"]), ""]
    lines += [description, ""] if description else []
    lines += ["命令选项："] + [_line(_spelling(action), action.help or "") for action in parser.own]
    lines += [_line("-h, --help", "显示本帮助")]
    if manager is not None:
        lines.append(_line("", "预设有：" + " ".join(manager.config["presets"])))
    groups = {}
    for name in names:
        groups.setdefault(KEYS[name].group, []).append(_key_line(name, KEYS[name], stage, manager))
    if groups:
        title = STAGE_TITLES.get(stage)
        lines += ["", "配置项（写作 --键 值；括号里是现值" + ("" if title is None else f"，{stage} 即{title}阶段") + "）："]
    if stage is None and any(KEYS[name].scope == "stage" for name in names):
        lines.append("  --batch_size 4 对每个阶段有效，--sft.batch_size 4 只对 sft 有效。")
    for group, rows in groups.items():
        lines += ["", f"{group}："] + rows
    lines += ["", "次序：命令行 > --preset > 配置文件 > 默认值。布尔项可只写 --键，关掉写 --键 false；空值写 none。"]
    return "\n".join(lines)


def _key_line(name, key, stage, manager):
    value = default_of(name, stage)
    if manager is not None:
        usual = stage or (key.stages[0] if len(key.stages) < len(STAGE_TITLES) else "pre")
        place = manager.config[usual] if key.scope == "stage" else manager.config
        value = place[name]
    choices = f"，可选 {' '.join(key.choices)}" if key.choices else ""
    return _line(f"--{name}", f"{key.help}{choices}（{show(value)}）")


def _spelling(action):
    names = ", ".join(action.option_strings) or _metavar(action)
    takes_value = action.option_strings and action.nargs != 0
    return f"{names} {_metavar(action)}" if takes_value else names


def _metavar(action):
    if action.metavar:
        return action.metavar if isinstance(action.metavar, str) else " ".join(action.metavar)
    return "|".join(map(str, action.choices)) if action.choices else action.dest.upper()


def _line(left, right):
    """Two columns; a Chinese character is two cells wide."""
    width = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in left)
    return f"  {left}{' ' * max(2, 28 - width)}{right}"
