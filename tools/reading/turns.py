"""A conversation in any of its usual spellings -> messages as tools/template.py renders them."""
import json

from tools.reading.acting import CALL_ID, MANY, THOUGHTS, calls_of, offered, take_all
from tools.reading.row import THOUGHT, UNANSWERED, Bad
from tools.reading.transcripts import transcript, unmarked, without_thought

ROLES = {name: role for role, names in {
    "user": "user human 用户 人类 prompter",
    "assistant": "assistant asst gpt model bot ai chatgpt chatbot moss 助手 机器人",
    "system": "system developer 系统",
    "tools": "tools", "tool": "tool function observation function_response tool_response tool_result ipython 工具",
    "calls": "function_call tool_call tool_calls"}.items() for name in names.split()}
QUESTIONS = tuple("instruction prompt query question ask q problem user human input user_input 问题 问 提问".split())
ANSWERS = tuple("output response answer target a completion reply assistant bot gpt chatgpt moss solution "
                "回答 答案 答 回复".split())
PICTURES = tuple("image images image_url input_image audio input_audio audios video videos video_url".split())
EMPTY = ("[]", "null", "{}")
WORDS = ("text", "input_text", "output_text")       # kinds of a content's parts that are text


def several(value, name):
    """A list, also one that was written as JSON text (tables do that)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if not isinstance(value, list):
        raise Bad(f"{name} 应是列表")
    return value


def conversation(source, value, name, container=None):
    """The turns of a list: of messages, of question and answer pairs, or of strings in turn. `source` keeps account."""
    turns = several(value, name)
    if turns is not value:
        source.take(value)
    source.enter(turns, container)
    if turns and all(isinstance(turn, str) for turn in turns):
        if len(turns) < 2:
            raise Bad("一轮对话应是 JSON 对象，或一问一答轮流的字符串")
        return _said(source, turns)
    return [message for turn in turns for message in _turn(source, turn)]


def _said(source, strings):
    roles = ("user", "assistant")
    return [_cleaned(source, roles[i % 2], source.take(text)) for i, text in enumerate(strings)]


def _turn(source, turn):
    if isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn):
        role = ROLES.get(turn[0].strip().lower())
        return [_cleaned(source, role, source.take(turn[1]))] if role and source.take(turn[0]) else _said(source, turn)
    if not isinstance(turn, dict):
        raise Bad("一轮对话应是 JSON 对象")
    turn = {key: value for key, value in turn.items() if value is not None}
    if "role" not in turn and "from" not in turn and "speaker" not in turn and "content" not in turn:
        pair = _pair(source, turn)
        if pair:
            return pair
    return [_message(source, turn)]


def _pair(source, turn):
    """{"human": …, "assistant": …}, {"input": …, "output": …}, {"user": …}: one or two turns, or None."""
    asked = next((name for name in QUESTIONS if isinstance(turn.get(name), str)), None)
    answered = next((name for name in ANSWERS if isinstance(turn.get(name), str)), None)
    if not asked and not (answered and len(turn) == 1):
        return None
    roles = [("system", "system")] if turn.get("system") else []
    roles += [(name, role) for name, role in ((asked, "user"), (answered, "assistant")) if name]
    said = [_text(source, turn[name]) for name, _ in roles]
    if not all(isinstance(text, str) for text in said):
        raise Bad("一轮对话里的 system 应是字符串")
    return [_cleaned(source, role, source.take(text)) for (_, role), text in zip(roles, said)]


def _message(source, turn):
    role = next((turn[name] for name in ("role", "from", "speaker") if name in turn), None)
    named = next((name for name in ("content", "value", "text", "message", "utterance") if name in turn), None)
    known = ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if isinstance(role, str) and known is None:
        raise Bad(f"无法识别的角色 {role[:20]!r}")
    calls = _calls(source, turn) if known == "assistant" else []
    content = _text(source, turn[named]) if named else "" if calls else None
    if content is None and any(turn.get(name) for name in THOUGHTS):
        raise Bad("有的回答只有思考，没有正文")
    if known == "tool" and isinstance(content, (dict, int, float)):     # a result need not be text
        take_all(source, content)
        content = json.dumps(content, ensure_ascii=False)
    if known is None or not isinstance(content, str):
        raise Bad("一轮对话要有 role（或 from）和 content（或 value），都是字符串")
    source.take(role)
    message = _spoken(source, known, source.take(content))
    if message["role"] == "assistant":
        _complete(source, message, turn, calls)
    elif message["role"] == "tool":
        _about_result(source, turn)
    elif turn.get("tools"):
        message["tools"] = offered(source, turn["tools"], "tools")
    return message


def _spoken(source, role, content):
    """A turn's content as a message. The role tools may offer tools, or bring a result; calls may be all of a turn."""
    if role == "tools":
        tools = content.lstrip().startswith("[{") and offered(source, content, role)
        return {"role": role, "content": tools} if tools else {"role": "tool", "content": content}
    message = _cleaned(source, "assistant" if role == "calls" else role, content)
    if role == "calls":
        message |= {"content": "", "calls": calls_of(source, message["content"], "function_call")}
    return message


def _calls(source, turn):
    """What a reply calls, in the order in which it stands there."""
    return [call for name in (MANY, "function_call") if turn.get(name) and turn[name] not in EMPTY
            for call in calls_of(source, turn[name], name)]


def _complete(source, message, turn, calls):
    """What a reply says beside its content: thought, calls, whether it is learned."""
    if calls:
        message["calls"] = calls
    name = next((name for name in THOUGHTS if isinstance(turn.get(name), str) and turn[name].strip()), None)
    if name:
        inline = message.get("thinking")
        message["thinking"] = source.take(turn[name])
        if inline and inline != message["thinking"].strip():
            source.drop(THOUGHT, inline)
    if any(muted(source, turn, name) for name in ("weight", "loss", "train")):
        message["weight"] = 0


def _about_result(source, turn):
    """Which call a result answers: results follow their calls in order."""
    for name in ("tool_call_id", "call_id"):
        if isinstance(turn.get(name), str):
            source.drop(CALL_ID, source.take(turn[name]))


def muted(source, fields, name):
    """Whether `fields` says (0, false, "0") that it is not to be learned. Another weight than 1 counts as dropped: here
    all are 1."""
    said = str(fields.get(name, 1))
    try:
        weight = float({"false": 0, "true": 1}.get(said.strip().lower(), said))
    except ValueError:
        return False
    if isinstance(fields.get(name), str):
        source.take(fields[name])
    if weight not in (0, 1):
        source.drop(f"{name}（不是 0 的都当作 1）", said)
    return weight == 0


def _text(source, content):
    """A string, or a list of text parts joined by line breaks."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") in WORDS and isinstance(part.get("text"), str):
            source.take(part["type"])
            texts.append(source.take(part["text"]))
        elif isinstance(part, str):
            texts.append(source.take(part))
        else:
            kind = part.get("type") if isinstance(part, dict) else None
            raise Bad(f"content 里有 {str(kind)[:20]!r}，只能学文字" if kind else "content 里有不是文字的部分")
    return "\n".join(texts)


def _cleaned(source, role, content):
    content = unmarked(content, source)
    if role != "assistant":
        return {"role": role, "content": content}
    content, thought = without_thought(content)
    return {"role": role, "content": content, **({} if thought is None else {"thinking": thought})}


def user(source, text):
    """One question -> its turns: a transcript (Human: … Assistant: …) that ends with the user's turn is taken apart."""
    turns = transcript(text)
    if turns and turns[-1]["role"] == "user":
        return [_cleaned(source, m["role"], m["content"]) for m in turns]
    return [_cleaned(source, "user", text)]


def reply(source, text):
    return _cleaned(source, "assistant", text)


def answered(source, messages):
    """The messages, if every reply says something and there is one to learn. What follows the last reply is dropped."""
    replies = [m for m in messages if m["role"] == "assistant"]
    if not replies:
        raise Bad("对话里没有回答")
    if any(m["role"] == "tool" and before["role"] not in ("assistant", "tool")
           for before, m in zip([{"role": ""}, *messages], messages)):
        raise Bad("工具角色的结果前面没有调用它的回答")
    silent = [m for m in replies if not m["content"].strip() and not m.get("calls")]
    if silent:
        thought = any(m.get("thinking") for m in silent)
        raise Bad("有的回答只有思考，没有正文" if thought else "有的回答是空的")
    if all(m.get("weight") == 0 for m in replies):
        raise Bad("所有回答都标了 weight: 0，没有计入损失的")
    for message in reversed(messages):
        if message["role"] == "assistant":
            break
        source.drop(UNANSWERED, message["content"])
    return messages
