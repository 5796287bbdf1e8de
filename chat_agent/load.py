"""From a checkpoint's path to a model that answers: every kind of .pkl says itself what it is and which base it
needs."""

from pathlib import Path

from model.build import build
from model.sampling import DEFAULTS, Sampling
from tools.checkpoint import acts_of, load_chain, weights_hash
from tools.config.keys import STRETCH
from tools.errors import UserError
from tools.process.device import choose_device
from tools.vocab import Vocab

USUAL = "TinySeek_SFT_final.pkl"


def load(path, device="auto", changes=None, hashed=False):
    """path of any .pkl -> (model in eval mode on the device, Vocab, payload of the file itself without its weights,
    which the model may hold in another precision; "acts" says what it has learned beside speaking: "thinking",
    "calls"), "runs" are the configurations of the stages that made the model, as far as its files know, its own last.
    changes: model keys that fit the same tensors. hashed: the payload also says its own weights' "hash".

    UserError: 2 no such device, 3 the file or a base it needs is missing or damaged, 4 the parts do not fit together.
    """
    path, device = Path(path), choose_device(device) if isinstance(device, str) else device
    if not path.is_file():
        raise UserError(f"找不到模型 {path}。{_other_models(path)}", 3)
    chain = load_chain(path)
    if changes and chain[-1]["kind"] != "gate":
        chain[0] = {**chain[0], "config": {**chain[0]["config"], **changes}}
    about = {key: value for key, value in chain[-1].items() if key != "weights"}
    about["runs"] = [one["run"] for one in chain if isinstance(one["run"], dict)]
    if hashed:
        about["hash"] = weights_hash(chain[-1]["weights"])
    vocab = Vocab.from_state(chain[0]["vocab"], str(path))
    parts = chain + [payload for expert in chain[-1].get("experts", ()) for payload in expert]
    if any(payload["vocab_hash"] != vocab.hash for payload in parts):
        raise UserError(f"{path} 的词表和它要用的别的文件不是同一份，编号对不上。请用原来的文件，或重新训练。", 4)
    try:
        model = build(chain)
    except (ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} 的权重和它写的结构对不上（{_first_line(error)}）。请换一个检查点，或重新训练。", 4) from None
    if model.config.vocab_size < len(vocab):
        raise UserError(f"{path} 的词表有 {len(vocab)} 项，模型只有 {model.config.vocab_size} 项。请换一个检查点。", 4)
    return model.to(device).eval().requires_grad_(False), vocab, {**about, "acts": acts_of(parts)}


def stretch_of(options, config):
    """What a command line says about rotary positions beyond the length that was trained -> `changes` of `load`."""
    return {name: config[name] for name in STRETCH if name in getattr(options, "overrides", ())}


def model_paths(given, config):
    """The checkpoints to use: those of --model; else what the run of --name has finished last; else the usual one.

    UserError: 2 both were given, 3 the run has finished nothing.
    """
    if not config["name"]:
        return given or [str(Path(config["out_dir"]) / USUAL)]
    if given:
        raise UserError("--model 和 --name 请只写一个：--name 用的是那次训练最后的模型。")
    folder = Path(config["out_dir"], config["name"])
    finished = _finished(folder)
    if finished:
        return [str(finished[-1])]
    if folder.is_dir():
        raise UserError(f"{folder} 里还没有训练完的模型（…_final.pkl）。请等它训练完，或用 --model 指定里面的 .pkl。", 3)
    names = {p.parent.name for p in Path(config["out_dir"]).glob("*/TinySeek_*_final.pkl")}
    names = sorted(name for name in names if not name.startswith("backup_"))
    there = f"有：{'、'.join(names)}。" if names else "还没有任何用 --name 训练的模型。"
    raise UserError(f"找不到名为 {config['name']} 的训练（{folder}）。{there}", 3)


def _finished(folder):
    """The finished models of a folder, the newest last."""
    return sorted(Path(folder).glob("TinySeek_*_final.pkl"), key=lambda p: (p.stat().st_mtime, p.name))


def _other_models(path):
    """What to do about a model that is not there."""
    moved = sorted(path.parent.glob(f"backup_*/{path.name}"))[-1:]          # by a training that is not done yet
    other = [str(p) for p in moved + _finished(path.parent)[-1:]]
    if other:
        return f"那里有 {' 和 '.join(other)} ，可用 --model 指定；或运行 python run.py 训练一个。"
    return "请先运行 python run.py 训练一个，或用 --model 指定别的 .pkl 文件。"


def context_of(model, payload, wanted=None):
    """How many ids a conversation should stay within: what is wanted, else the length the model was trained at; never
    beyond its positions."""
    trained = payload["run"].get("max_len") if isinstance(payload["run"], dict) else None
    trained = wanted or (trained if isinstance(trained, int) and trained > 0 else 512)
    return min(trained, model.config.max_position or trained)


DEMO_QUESTIONS = ("你叫什么名字？", "34加57等于几？", "把“山水花”倒过来写。", "我要买三斤苹果和两袋大米。")
DEMO_OPENINGS = ("今天早上", "从前有", "小明说")
ANY_QUESTIONS, ANY_OPENINGS = ("你好", "你是谁？", "你会做什么？"), ("从前", "今天", "我们")


def talk_of(payload):
    """How a model wants to be talked to -> {"sampling": as model.sampling.DEFAULTS, "prompts": a few sentences from its
    own data, "acts": what it has learned beside speaking, "exam": held-out questions with their answers}.

    Kept in the checkpoint; one from before that gets the table and sentences that its kind of data suggest.
    """
    talk = payload.get("talk") if isinstance(payload.get("talk"), dict) else {}
    run = payload["run"] if isinstance(payload["run"], dict) else {}
    given = talk.get("sampling") if isinstance(talk.get("sampling"), dict) else {}
    sampling = {**DEFAULTS, **{name: value for name, value in given.items() if name in DEFAULTS}}
    try:
        Sampling(**{name: value for name, value in sampling.items() if name != "max_new_tokens"})
    except (ValueError, TypeError):
        sampling = dict(DEFAULTS)
    prompts = [one for one in talk.get("prompts") or () if isinstance(one, str) and one.strip()]
    guessed = _guessed(payload["stage"] == "Pre", run.get("json_data_path"))
    return {"sampling": sampling, "prompts": prompts or list(guessed),
            "acts": payload.get("acts") or acts_of([payload]), "exam": _questions(talk.get("exam"))}


def _questions(rows):
    return [row for row in rows if _is_question(row)] if isinstance(rows, list) else []


def _is_question(row):
    """Whether this is {"task", "messages", "answer"} as `own_exam` of the trainers writes it."""
    messages = row.get("messages") if isinstance(row, dict) else None
    return (isinstance(messages, list) and bool(messages) and isinstance(row.get("answer"), str)
            and all(isinstance(m, dict) and m.keys() == {"role", "content"} and isinstance(m["content"], str)
                    and m["role"] in ("user", "assistant", "system") for m in messages))


def _guessed(completes, data):
    demo = any("demo_" in Path(str(one)).name for one in (data if isinstance(data, list) else [data]))
    if completes:
        return DEMO_OPENINGS if demo else ANY_OPENINGS
    return DEMO_QUESTIONS if demo else ANY_QUESTIONS


def _first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:160]
