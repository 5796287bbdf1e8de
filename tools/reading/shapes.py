"""One JSON object -> Row: the documented shapes in their order; the first that the object really fits wins.

A shape whose fields are there but hold something else (an empty list, no reply) gives way to the next.
If none fits, the first one's complaint is told. Shapes that are known and cannot be learned from are refused by name.
"""
from tools.reading.acting import OWN_THOUGHTS, with_offered
from tools.reading.row import SURROGATE, THOUGHT, Bad, Row, Source
from tools.reading.transcripts import transcript, unmarked
from tools.reading.turns import ANSWERS, PICTURES, QUESTIONS, answered, conversation, muted, reply, several, user
from tools.template import message_texts

END = "<|im_end|>"
LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "dialogs", "turns", "data")
SYSTEMS = ("system", "system_prompt", "meta_instruction")
PAIRS = (("chosen", "rejected"), ("chosen", "reject"), ("pos_resp", "neg_resp"), ("response_j", "response_k"),
         ("answer_good", "answer_bad"))
SUSPECT = {*"role from kto_tag label answer choices options message_id message_tree_id paragraphs qas".split(),
           "responses_and_scores", "completions", *PICTURES}
BOTH = ("output", "response", "answer", "completion")       # fields that may hold [better, worse]
COMPARED = {*"rejected reject neg_resp response_k answer_bad rejected_response rejected_messages".split(),
            "better_response_id", "safer_response_id", *BOTH}
DOCUMENTED = (("prompt", "response"), ("instruction", "output"))
BODIES = ("content", "completion", "article", "body", "document", "passage", "raw_content", "正文", "内容")


def shape(fields, text_field=None, whole=None):
    """fields: the object without nulls; whole: as it stood in the file, if columns were renamed -> Row. Raises Bad."""
    whole = fields if whole is None else whole
    fields = _plain_names(fields)
    _refuse(fields)
    own = (lambda source: _own_field(source, text_field),) if text_field else (_named_pair, _text)
    first = None
    for read in (_preference, _list, _chat, _documented_pair, *own):
        source = Source(fields, whole)
        try:
            row = read(source)
        except Bad as bad:
            if read is _preference:                                     # a pair is a pair, or nothing
                raise
            first = first or bad
            continue
        if row is not None:
            if row.kind != "text" and muted(source, fields, "weight"):
                raise Bad("这一行标了 weight: 0，没有要学的")
            row.messages = with_offered(source, row.messages) if row.messages else []
            row.dropped = source.left()
            return row
    raise first or Bad("没有可识别的字段。用 --columns 说明，如 --columns user=问题的字段 assistant=回答的字段，或 --text_field 正文的字段")


def _plain_names(fields):
    """INSTRUCTION and Question as instruction and question; single letters are options of a choice and stay."""
    def plain(name):
        return name.lower() if len(name) > 1 and name.lower() not in fields else name
    return {plain(name): value for name, value in fields.items()}


def _refuse(row):
    """Known shapes that teach no conversation as they stand, each with its cure."""
    if SUSPECT.isdisjoint(row):
        return
    if ("role" in row or "from" in row) and ("content" in row or "value" in row) and not row.keys() & {*LISTS, "text"}:
        raise Bad("这是一轮对话，不是一段：请把同一段对话的各轮放进一行的 messages 里")
    if "kto_tag" in row or (isinstance(row.get("label"), bool) and ("completion" in row or "messages" in row)):
        raise Bad("KTO 数据（一问一答加好坏标签）不支持：请只留标签为好的行，去掉标签作指令微调")
    if ("answer" in row and {"A", "B"} <= row.keys()) or ("question" in row and ("choices" in row or "options" in row)):
        raise Bad("选择题不用来训练：请用 python chat_agent/evaluate.py --task mcq --data 这个文件 来考")
    if "parent_id" in row and "message_id" in row or "message_tree_id" in row:
        raise Bad("OpenAssistant 的树状数据不支持：请先沿最好的回答展开成 messages 再用")
    paragraphs = row.get("paragraphs")
    if isinstance(paragraphs, list) and not all(isinstance(p, str) for p in paragraphs) or "qas" in row:
        raise Bad("SQuAD/CMRC 的嵌套问答不支持：请先展开成一行一问，字段 context、question、answer")
    if "responses_and_scores" in row or ("completions" in row and isinstance(row["completions"], list)):
        raise Bad("一问多答加分数的数据不支持：请先挑出最好和最差的，写成 prompt、chosen、rejected")
    if picture := next((name for name in PICTURES if row.get(name)), None):
        raise Bad(f"这一行带图片、声音或视频（{picture}），只能学文字")


# ---- conversations ----

def _list(source):
    """messages, conversations and the like: the first of them that reads well."""
    first, state = None, source.state()
    for name in LISTS:
        value = source.get(name)
        if name not in source or name not in LISTS[:2] and not isinstance(value, list) and not _is_transcript(value):
            continue
        try:
            return Row("dialogue", messages=answered(source, _with_system(source, _listed(source, value, name))))
        except Bad as bad:
            first = first or bad
            source.back_to(state)
            state = source.state()
    if first:
        raise first
    return None


def _is_transcript(value):
    return isinstance(value, str) and (value.startswith("[{") or transcript(value) is not None)


def _listed(source, value, name):
    if isinstance(value, str) and (turns := transcript(value)):
        source.take(value)
        return [reply(source, m["content"]) if m["role"] == "assistant" else m for m in turns]
    return conversation(source, value, name)


def _with_system(source, messages):
    name = next((name for name in SYSTEMS if source.get(name)), None)
    if not name:
        return messages
    text = source.take(_string(source, name))
    if messages and messages[0] == {"role": "system", "content": text}:
        return messages
    return [{"role": "system", "content": text}, *messages]


def _chat(source):
    """MOSS: {"chat": {"turn_1": {"Human": "<|Human|>: …<eoh>", "MOSS": "<|MOSS|>: …<eom>", "Commands": …}}}."""
    turns = source.get("chat")
    if not isinstance(turns, dict) or not all(isinstance(turn, dict) for turn in turns.values()):
        return None
    messages = []
    for turn in turns.values():
        said = {name: text for name, text in turn.items() if isinstance(text, str)}
        if any("None" not in said[name] for name in ("Commands", "Tool Responses") if said.get(name)):
            raise Bad("MOSS 的工具调用（Commands）不是 JSON，不能学，请去掉这样的行")
        both = transcript("\n".join(source.take(said[name]) for name in ("Human", "MOSS") if name in said))
        if not both or len(both) != 2:
            raise Bad("chat 里的一轮应有 Human 和 MOSS")
        messages += [*user(source, both[0]["content"]), reply(source, both[1]["content"])]
        for name in said.keys() - {"Human", "MOSS"}:
            source.take(said[name]) if "None" in said[name] else None
    source.enter(list(turns.values()), turns)
    return Row("dialogue", messages=answered(source, _with_system(source, messages)))


def _documented_pair(source):
    names = next((pair for pair in DOCUMENTED if all(name in source for name in pair)), None)
    return names and _pair(source, *names)


def _named_pair(source):
    """A question and its answer under any of the usual names."""
    answer = next((name for name in (*ANSWERS, "answers") if name in source), None)
    question = next((name for name in QUESTIONS if name in source and name != answer), None)
    if question is None and "title" in source and answer != "completion":
        question = "title"
        answer = answer or ("content" if "answer_id" in source or "answerer_tags" in source else None)
    if question and answer is None and any(name in source for name in OWN_THOUGHTS) and "content" in source:
        answer = "content"                                              # distilled answers beside their thoughts
    return _pair(source, question, answer) if question and answer else None


def _pair(source, question, answer):
    messages = _history(source) + _asked(source, question)
    value = source.get(answer)
    if isinstance(value, dict) and isinstance(value.get("text"), list):             # SQuAD's answers
        value = value["text"]
    if answer == "answers" and isinstance(value, list) and value and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, list) and not any(isinstance(one, str) for one in value):
        replies = conversation(source, value, answer)
    else:
        replies = [reply(source, source.take(_checked(value, answer)))]
        thought = next((name for name in OWN_THOUGHTS if isinstance(source.get(name), str) and source.get(name)), None)
        if thought and "thinking" not in replies[0]:
            replies[0]["thinking"] = source.take(source.get(thought))
    return Row("dialogue", messages=answered(source, _with_system(source, messages + replies)))


def _asked(source, name):
    """The question with what belongs to it: instruction + input, title + desc, context before its question."""
    value = source.get(name)
    if isinstance(value, list):
        return conversation(source, value, name)
    parts = [source.take(_string(source, name))]
    after = {"instruction": ("input", "context"), "title": ("desc", "description")}.get(name, ())
    before = ("title",) if name == "ask" else ("context", "context_text") if name in ("question", "query") else ()
    for other, place in [(n, 0) for n in before] + [(n, len(parts)) for n in after]:
        if source.get(other):
            parts.insert(place, source.take(_string(source, other)))
            place += 1
    return user(source, "\n".join(part for part in parts if part))


def _history(source):
    name = next((name for name in ("history", "input_history") if source.get(name)), None)
    if not name:
        return []
    try:
        turns = several(source.get(name), name)
        if any(isinstance(turn, str) for turn in turns):
            raise Bad("里面是单独的字符串")
        return conversation(source, source.get(name), name)
    except Bad as bad:
        raise Bad(f"history 应是 [问, 答] 的列表（{bad}）") from None


def _string(source, name):
    return _checked(source.get(name), name)


def _checked(value, name):
    if not isinstance(value, str):
        raise Bad(f"{name} 应是字符串")
    return value


# ---- preferences ----

def _preference(source):
    """Two replies to one prompt, which stands in a list, a question, or is what both replies' conversations share."""
    pair = _two(source)
    if pair is None:
        return None
    (chosen_prompt, chosen), (rejected_prompt, rejected) = (_last(source, *one) for one in pair)
    prompt, complaint = None, None
    for name in [name for name in (*LISTS, *QUESTIONS) if name in source]:
        state = source.state()
        prompt, wrong = _prompt(source, name, chosen)
        if prompt:
            break
        complaint = complaint or wrong
        source.back_to(state)
    if not prompt:
        if not chosen_prompt or chosen_prompt != rejected_prompt:
            raise complaint or Bad("偏好数据没有共同的提问")
        prompt = chosen_prompt
    if prompt[-1]["role"] != "user":
        raise Bad("偏好数据的提问应以用户的话结尾")
    if not chosen.strip() or not rejected.strip():
        raise Bad("有的回答是空的")
    return Row("preference", messages=_with_system(source, prompt), chosen=chosen, rejected=rejected)


def _prompt(source, name, chosen):
    """-> (messages up to the user's turn, None) or (None, Bad). A conversation that ends with `chosen` holds it too."""
    try:
        if name in LISTS:
            asked = conversation(source, source.get(name), name)
        else:
            asked = _history(source) + _asked(source, name)
    except Bad as bad:
        return None, bad
    if asked and asked[-1]["role"] == "assistant" and asked[-1]["content"] == chosen:
        asked = asked[:-1]
    good = asked and asked[-1]["role"] == "user"
    return (asked, None) if good else (None, Bad("偏好数据的提问应以用户的话结尾"))


def _two(source):
    """((value, name), (value, name)) of the better and the worse reply, or None."""
    if COMPARED.isdisjoint(source.fields):
        return None
    for names in PAIRS:
        if all(name in source for name in names):
            return tuple((source.get(name), "chosen/rejected") for name in names)
    worse = next((name for name in ("rejected_response", "rejected_messages") if source.get(name)), None)
    if worse:
        better = next((name for name in (*LISTS, *ANSWERS) if name in source), None)
        if better is None:
            raise Bad(f"有 {worse}，却没有好的回答")
        return (source.get(better), better), (source.get(worse), worse)
    for name in BOTH:
        both = source.get(name)
        if isinstance(both, list) and len(both) == 2 and all(isinstance(one, str) for one in both):
            return (both[0], name), (both[1], name)
    best = next((source.get(n) for n in ("better_response_id", "safer_response_id") if n in source), None)
    if best in (0, 1) and "response_0" in source and "response_1" in source:
        return tuple((source.get(f"response_{i}"), f"response_{i}") for i in (best, 1 - best))
    return None


def _last(source, value, name):
    """A reply in any spelling -> (messages before it, the reply)."""
    if isinstance(value, str) and not value.lstrip().startswith('[{"'):
        turns = transcript(source.take(value))
        if turns and turns[-1]["role"] == "assistant":
            return turns[:-1], _compared(source, reply(source, turns[-1]["content"]))
        return [], _compared(source, reply(source, value))
    messages = [value] if isinstance(value, dict) else several(value, name)
    if len(messages) == 1 and isinstance(messages[0], str):
        return [], _compared(source, reply(source, source.take(messages[0])))
    messages = conversation(source, messages, name, value) if messages else []
    if not messages or messages[-1]["role"] != "assistant":
        raise Bad("chosen 与 rejected 应以助手的回答结尾")
    return messages[:-1], _compared(source, messages[-1])


def _compared(source, message):
    """What of a reply is compared with another: its words."""
    if message.get("calls"):
        raise Bad("偏好对齐还不能比较工具调用")
    source.drop(THOUGHT, message.get("thinking") or "")
    return message["content"]


# ---- texts ----

def _own_field(source, names):
    values = [source.take(source.whole.get(name) or "") if isinstance(source.whole.get(name) or "", str) else None
              for name in ([names] if isinstance(names, str) else names)]
    if None in values:
        raise Bad("text_field 指定的字段应是字符串")
    if not any(values):
        raise Bad("text_field 指定的字段都没有内容")
    return text_row(" ".join(values), source)


def _text(source):
    if isinstance(source.get("input"), str) and transcript(source.get("input")):                        # Baize
        return text_row(source.take(source.get("input")), source)
    if "text" in source:
        return text_row(source.take(_string(source, "text")), source)
    if "段落" in source:                                             # MNBVC
        lines = [p.get("内容") for p in several(source.get("段落"), "段落") if isinstance(p, dict)]
        return text_row("\n".join(source.take(_checked(line, "内容")) for line in lines), source)
    if "paragraphs" in source:
        lines = [_checked(line, "paragraphs 的每一段") for line in several(source.get("paragraphs"), "paragraphs")]
    elif name := next((name for name in BODIES if name in source), None):
        lines = [_string(source, name)]
    else:
        return None
    title = source.get("title")
    if isinstance(title, str) and title.strip() and not (lines and lines[0].startswith(title)):
        lines = [title, *lines]
    for text in (title, *lines):
        source.take(text) if isinstance(text, str) else None
    return text_row("\n".join(lines), source)


def text_row(text, source, plain=False):
    """Units between literal <|im_end|>; a whole conversation in other people's marks becomes a dialogue.

    plain: a book's paragraph, which stays what it is.
    """
    turns = None if plain else transcript(text)
    if turns and turns[-1]["role"] == "assistant":
        replies = [reply(source, m["content"]) if m["role"] == "assistant" else m for m in turns]
        return Row("dialogue", messages=answered(source, replies))
    units = [unmarked(unit, source) for unit in text.split(END)]
    units = [unit for unit in units if unit.strip()]
    if not units:
        raise Bad("文本是空的")
    return Row("text", texts=units)


def check_strings(row):
    said = [text for m in row.messages for text in message_texts(m)]
    for text in [*row.texts, *said, row.chosen or "", row.rejected or ""]:
        if "\0" in text:
            raise Bad("含有 NUL 字符")
        if SURROGATE.search(text):
            raise Bad("含有孤立的代理字符")
