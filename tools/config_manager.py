"""The configuration: model_config.json < own file < preset < command line, merged and validated once, before data or
device are touched.

What a user's own file (or dict) does not say is as in the project's model_config.json; `"base": null` in it asks for
the defaults of `tools/config/keys.py` instead, which are that file as it was shipped.

    manager = ConfigManager("model_config.json", overrides={"batch_size": "4"}, stage="sft")
    manager.config["n_layer"], manager.config["pre"]["init_lr"]     # the whole tree
    manager.stage("sft")                                            # one flat dict: run + model + that stage's keys
"""
import json
import os
from pathlib import Path

from tools.config.aliases import MEANINGFUL_NAMES, Unless, combine, translate
from tools.config.rules import check_all
from tools.config.compare import Change, compare, fingerprint   # noqa: F401  (imported from here by the trainers)
from tools.config.keys import DEMO_DATA, KEYS, MODEL_KEYS, RUN_KEYS, STAGES, default_of, stage_keys
from tools.config.values import absolute, check_value, from_text, nearest, show
from tools.errors import UserError
from tools.saving.start_files import moved_places

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = ("training", "model")      # foreign files group their keys so; the grouping carries no meaning here
NOT_IN_NETWORK = ("scale",)         # flat among the model's keys, but LoRA's business


class ConfigManager:
    """`config`: model and run keys flat, a dict per stage, `presets`. `path`: the file read. `preset`, `stage`: as
    given.

    A relative `path` is looked for in the current folder, then in the project's; a dict stands for a file's content,
    its paths count from the current folder. `usual`: a preset that lies below the user's own file, unless another is
    asked for. UserError 2.
    """

    def __init__(self, path="model_config.json", overrides=None, preset=None, stage=None, usual=None):
        if stage is not None and stage not in STAGES:
            raise UserError(f"没有 {stage} 这个阶段，可选：{' '.join(STAGES)}。")
        given = isinstance(path, dict)                  # from Python: the values themselves
        self.path, self.preset, self.stage_name = None if given else find_file(path), preset, stage
        files = [(dict(path), os.getcwd())] if given else [(read_file(self.path), os.path.dirname(self.path))]
        brought = files[0][0].pop("own_shape", None) if given else None     # the flat options of another manager
        files = _with_base(files, self.path)
        presets = {}
        for raw, base in files:                         # a preset of the user's takes the place of one with that name
            presets |= _preset_layers(raw.pop("presets", {}), base)
        layers = [(_Layer(raw, base), STAGES) for raw, base in files]
        below = int(len(files) > 1 or _is_shipped(self.path))               # layers that are not the user's own
        if usual is not None and preset is None and below:
            layers.insert(1, (_pick_preset(usual, presets), STAGES))
            below = 2
        if preset is not None:
            layers.append((_pick_preset(preset, presets), STAGES))
        command = _Layer(overrides or {}, os.getcwd(), command_line=True, stage=stage)
        layers.append((command, STAGES if stage is None else (stage,)))
        self.config = _merge(layers)
        self.own_shape = _own_shape(layers[:min(below, 1)], layers[below:]) if brought is None else brought
        _lora_beside_memory(self.config["memory"], [layer for layer, _ in layers[below:]])
        self.config["presets"] = {name: layer.raw for name, layer in presets.items()}
        check_all(self.config)

    def stage(self, name=None):
        """One flat dict for a trainer: run keys, model keys and the keys of that stage (default: the one given);
        `own_shape` names the model keys that the user has set."""
        name = name or self.stage_name
        if name not in STAGES:
            raise UserError(f"没有 {name} 这个阶段，可选：{' '.join(STAGES)}。")
        flat = {key: self.config[key] for key in RUN_KEYS + MODEL_KEYS}
        return {**flat, **self.config[name], "own_shape": self.own_shape}

    def model(self):
        """The keys that shape the network, as `model.config.ModelConfig.from_dict` takes them."""
        return {key: self.config[key] for key in MODEL_KEYS if key not in NOT_IN_NETWORK}


# ---------------------------------------------------------------- reading

def _with_base(files, path):
    """[(content, folder)] of the user's file, below it the project's own unless it says `"base": null`."""
    shipped = os.path.join(ROOT, "model_config.json")
    base = files[0][0].pop("base", "model_config.json")
    if base not in (None, "model_config.json"):
        raise UserError(f"配置 base 只能是 null（不以项目自带的 model_config.json 为底），而不是 {show(base)}。")
    if base is None or _is_shipped(path) or not os.path.isfile(shipped):
        return files
    raw = read_file(shipped)
    raw.pop("base", None)
    return [(raw, os.fspath(ROOT)), *files]


def _is_shipped(path):
    shipped = os.path.join(ROOT, "model_config.json")
    return path is not None and os.path.isfile(shipped) and os.path.samefile(path, shipped)


def _own_shape(shipped, own):
    """The model keys that the user has set: in layers of his own, or by changing the project's file."""
    said = {key for layer, _ in own for key in layer.sections[None]}
    said |= {key for layer, _ in shipped for key, value in layer.sections[None].items() if value != default_of(key)}
    return [key for key in MODEL_KEYS if key in said]


def _lora_beside_memory(section, own):
    """Who gives the LoRA beside a memory its learning rate wants it, even where he says nothing of its rank."""
    said = {key for layer in own for place in (None, "memory") for key in layer.sections[place]}
    if "lora_lr" in said and "rank" not in said:
        section["rank"] = default_of("rank", "lora")


def find_file(path):
    """Absolute path of a configuration file: as given, else of that name in the project's folder."""
    path = os.path.expanduser(os.fspath(path))
    for candidate in (os.path.abspath(path), os.path.join(ROOT, path)):
        if os.path.isfile(candidate):
            return candidate
    raise UserError(f"找不到配置文件 {path}。请检查路径，或不写 --config 以使用项目自带的 model_config.json。")


def read_file(path):
    """The mapping in a .json, .yaml or .yml file. Raises UserError (2) with line and column of a mistake."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"读不了配置文件 {path}（{_reason(error)}）。请确认它是 UTF-8 文本。") from None
    raw = _read_yaml(text, path) if str(path).lower().endswith((".yaml", ".yml")) else _read_json(text, path)
    if not isinstance(raw, dict):
        raise UserError(f"配置文件 {path} 的最外层应为“键: 值”的对象。")
    return raw


def _reason(error):
    return "不是 UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror or "无法打开"


def _read_json(text, path):
    def unique(pairs):
        found = {}
        for name, value in pairs:
            if name in found and found[name] != value:
                raise UserError(f"配置文件 {path} 里 {name} 写了两次且值不同：{show(found[name])} 和 {show(value)}。")
            found[name] = value
        return found
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise UserError(f"配置文件 {path} 第 {error.lineno} 行第 {error.colno} 列不是合法的 JSON。"
                        "常见原因：少了或多了逗号、用了单引号、写了注释。") from None
    except RecursionError:
        raise UserError(f"配置文件 {path} 嵌套太深。") from None


def _read_yaml(text, path):
    try:
        import yaml
    except ImportError:
        raise UserError("读取 YAML 配置需要 PyYAML：python -m pip install pyyaml，或改用 JSON。") from None
    try:
        _refuse_doubles(yaml.compose(text, Loader=yaml.SafeLoader), path)
        return yaml.safe_load(text) or {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"第 {mark.line + 1} 行第 {mark.column + 1} 列" if mark else "某处"
        raise UserError(f"配置文件 {path} {place}不是合法的 YAML。") from None


def _refuse_doubles(node, path):
    """YAML takes the last of two equal keys; here that is a mistake, as in JSON."""
    if node is None or isinstance(node.value, str):
        return
    pairs = [one if isinstance(one, tuple) else (None, one) for one in node.value]      # of a mapping, else of a list
    names = [str(key.value) for key, _ in pairs if key]
    for key, value in pairs:
        if key and names.count(str(key.value)) > 1 and key.value != "<<":
            raise UserError(f"配置文件 {path} 第 {key.start_mark.line + 1} 行：{key.value} 写了两次，请只留一个。")
        _refuse_doubles(value, path)


# ---------------------------------------------------------------- layers

class _Layer:
    """What one source says: `sections[None]` for bare keys, `sections[stage]` for a stage's own; values checked, paths
    absolute."""

    def __init__(self, raw, base, *, prefix="", command_line=False, stage=None):
        self.base, self.prefix, self.command_line, self.stage = base, prefix, command_line, stage
        self.raw = raw
        self.sections = {None: {}, **{name: {} for name in STAGES}}
        self.said = {}                                  # (section, key) -> the name it was given under
        for name, value in raw.items():
            self._read(str(name), value)

    def _read(self, name, value):
        if isinstance(value, dict) and (name in STAGES or name in BLOCKS):
            for inner, one in value.items():
                self._put(None if name in BLOCKS else name, str(inner), one, f"{name}.{inner}")
        elif name in STAGES or name in BLOCKS:
            raise UserError(f"配置 {self.prefix}{name} 应为一组“键: 值”。")
        elif name.split(".")[0] in STAGES + BLOCKS and "." in name:
            section, inner = name.split(".", 1)
            self._put(None if section in BLOCKS else section, inner, value, name)
        else:
            self._put(None, name, value, name)

    def _put(self, section, name, value, label):
        label = f"--{label}" if self.command_line else self.prefix + label
        found = translate(name, value, self.base, label)
        if found is None:
            raise UserError(_unknown(name, label, section))
        for key, one in found.items():
            self._belongs(section, key, label)
            if not isinstance(one, Unless):
                one = self._checked(key, one, label)
            self._store(section, key, one, label)

    def _checked(self, key, value, label):
        words = value if isinstance(value, list) else [value]
        if self.command_line and words and all(isinstance(word, str) for word in words):
            value = from_text(key, value, label)
        else:
            value = check_value(key, value, label)
        return absolute(key, value, self.base) if KEYS[key].kind in ("path", "paths") else value

    def _belongs(self, section, key, label):
        spec = KEYS[key]
        if section is not None and spec.scope != "stage":
            raise UserError(f"配置 {label} 不属于某个阶段，{key} 应写在最外层。")
        where = section or (self.stage if self.command_line else None)
        if spec.scope == "stage" and where is not None and where not in spec.stages:
            raise UserError(f"配置 {label} 不属于 {where} 阶段，{key} 只用于：{' '.join(spec.stages)}。")

    def _store(self, section, key, value, label):
        values = self.sections[section]
        if key in values:
            try:
                value = combine(values[key], value)
            except ValueError:
                raise UserError(f"配置 {self.said[section, key]} 和 {label} 说的是同一件事（{key}），值却不同，请只留一个。") from None
        values[key] = value
        self.said[section, key] = label


def _unknown(name, label, section=None):
    known = stage_keys(section) if section else [*KEYS, *STAGES, *BLOCKS, "presets"]
    close = nearest(name, [*known, *MEANINGFUL_NAMES]) or nearest(name, KEYS)
    hint = f"是不是想写 {close}？" if close else "用 --help 可看到全部的键。"
    return f"没有 {label} 这个配置项，{hint}"


def _preset_layers(presets, base):
    """Every preset is read and type-checked, also those that are not asked for."""
    if not isinstance(presets, dict) or not all(isinstance(one, dict) for one in presets.values()):
        raise UserError("配置 presets 应为“名字: {键: 值}”。")
    return {name: _Layer(one, base, prefix=f"presets.{name}.") for name, one in presets.items()}


def _pick_preset(name, layers):
    if name not in layers:
        close = nearest(name, layers)
        hint = f"是不是想写 {close}？" if close else ""
        raise UserError(f"没有预设 {name}，可选：{' '.join(layers)}。{hint}")
    return layers[name]


# ---------------------------------------------------------------- merging

def _merge(layers):
    config = {name: default_of(name) for name in MODEL_KEYS + RUN_KEYS}
    config.update({stage: {name: default_of(name, stage) for name in stage_keys(stage)} for stage in STAGES})
    for layer, running in layers:
        for name, value in layer.sections[None].items():
            places = [config] if KEYS[name].scope != "stage" else [config[s] for s in running if s in KEYS[name].stages]
            for place in places or [config[s] for s in KEYS[name].stages]:
                _set(place, name, value)
        for stage in STAGES:
            for name, value in layer.sections[stage].items():
                _set(config[stage], name, value)
            if stage in running or layer.sections[stage]:
                _follow_chunks(config[stage], {**layer.sections[None], **layer.sections[stage]})
    _finish_paths(config)
    _leave_alone(config)
    _fill_in(config)
    return config


def _follow_chunks(place, said):
    """Who warms up or holds the rate by chunks speaks of the exponential schedule: a warm-up by steps, or another
    schedule, that only a lower layer asked for gives way."""
    if said.get("warmup_index", -1) > 0 or said.get("keep_temp_index", -1) > 0:
        place["warmup_steps"] = said.get("warmup_steps", 0)
        place["scheduler"] = said.get("scheduler", "exponential")


def _set(place, name, value):
    if not isinstance(value, Unless):
        place[name] = _copied(value)
    elif place[name] in value.on:
        place[name] = value.off


def _finish_paths(config):
    """Defaults count from the project's folder; `{out_dir}` becomes the output folder in use."""
    out_dir = config["out_dir"] = absolute("out_dir", config["out_dir"], ROOT)
    _bases_of_this_name(config)
    for place in (config, *(config[stage] for stage in STAGES)):
        for name in place:
            if name in KEYS and KEYS[name].kind in ("path", "paths"):
                place[name] = absolute(name, place[name], ROOT, out_dir)


def _bases_of_this_name(config):
    """Where nobody named a base, a run with a name starts from the one in its own folder, also while that lies in a
    backup."""
    for stage in STAGES if config["name"] else ():
        base = config[stage]["pretraining_model_path"]
        if base and base == default_of("pretraining_model_path", stage):
            own = Path(config["out_dir"], config["name"], Path(base).name)
            if own.is_file() or moved_places(own)[0]:
                config[stage]["pretraining_model_path"] = str(own)


def _leave_alone(config):
    """What goes into the project's folder by default goes to out_dir where that folder cannot be written: logs, and the
    built-in data."""
    for name, inside in (("log_dir", "logs"), ("log_file", "log.txt")):
        if config[name] == absolute(name, KEYS[name].default, ROOT) and not _writable(config[name]):
            config[name] = os.path.join(config["out_dir"], inside)
    shipped = [absolute("json_data_path", one, ROOT) for one in DEMO_DATA]
    for stage in STAGES:
        path = config[stage]["json_data_path"]
        if isinstance(path, str) and path in shipped and not os.path.exists(path) and not _writable(path):
            config[stage]["json_data_path"] = _in_out_dir(config, path)


def _in_out_dir(config, path):
    return os.path.join(config["out_dir"], "data", os.path.basename(path))


def _writable(path):
    """Whether the file may be written, or made, together with its folders."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.access(path, os.W_OK)


def _fill_in(config):
    """What null means where it means "as the rest of the configuration says"."""
    if config["position"] == "learned" and config["max_position"] is None:
        config["max_position"] = max(config[stage]["max_len"] for stage in STAGES)
    demo = [absolute("json_data_path", one, ROOT) for one in DEMO_DATA]
    demo += [_in_out_dir(config, one) for one in demo]
    data = list(dict.fromkeys(path for stage in ("pre", "sft") for path in _listed(config[stage]["json_data_path"])))
    own = [path for path in data if path not in demo]       # the built-in rows say nothing about the user's own text
    for stage in STAGES:
        if config[stage]["vocab_data_path"] is None:
            config[stage]["vocab_data_path"] = _copied(own or data)
        if config[stage]["replay_data_path"] is None:
            config[stage]["replay_data_path"] = _copied(config["sft"]["json_data_path"])


def _copied(value):
    """So that no two stages share a list."""
    return list(value) if isinstance(value, list) else value


def _listed(value):
    return [] if value is None else value if isinstance(value, list) else [value]
