"""Rows with thoughts, calls, results and tools on offer: what goes in, and exactly what has to come out."""
import json

from data_shapes import a, q, s

ASK, WEATHER = "量河", "看天"


def dumped(value):
    return json.dumps(value, ensure_ascii=False)


def call(i, name=ASK):
    return {"name": name, "arguments": {"岸": f"东{i}", "步": i}}


def openai(i, name=ASK, text=True):
    arguments = call(i, name)["arguments"]
    return {"id": f"call_{i}", "type": "function",
            "function": {"name": name, "arguments": dumped(arguments) if text else arguments}}


def tool(i, name=ASK):
    return {
        "type": "function", "function": {"name": name, "description": f"量一量第{i}条河", "parameters": {"type": "object"}}}


def u(i, k=1):
    return {"role": "user", "content": q(i, k)}


def bot(i, k=1, **more):
    return {"role": "assistant", "content": a(i, k), **more}


def result(i, **more):
    return {"role": "tool", "content": f"宽{i}步", **more}


def offer(*tools):
    return {"role": "tools", "content": dumped(list(tools))}


def calling(i, content="", **more):
    return {"role": "assistant", "content": content, "calls": [dumped(call(i))], **more}


def whole(i):
    return [u(i), calling(i), result(i), bot(i)]


def raw(i, said=None, **fields):
    """A row of OpenAI's: question, call, result, answer."""
    call_turn = {"role": "assistant", "content": None, "tool_calls": [openai(i)]}
    return {"messages": [u(i), {**call_turn, **fields}, said or result(i), bot(i)]}


def sharegpt(*turns, **more):
    return {"conversations": [{"from": role, "value": text} for role, text in turns], **more}


def ask(i):
    return "human", q(i)


def answer(i):
    return "gpt", a(i)


def with_call(call):
    """A row whose only call is this object."""
    return {"messages": [u(1), {"role": "assistant", "content": None, "tool_calls": [call]}, result(1), bot(1)]}


def thought(i, text="先想想，河不宽。"):
    return [u(i), bot(i, thinking=text)]


ID = ("tool_call_id",)
# name: (row of number i, the messages of number i, names that must be counted as dropped)
KEPT = {
    "arguments as text": (raw, whole, ID),
    "arguments as an object": (lambda i: raw(i, tool_calls=[openai(i, text=False)]), whole, ID),
    "content is empty": (lambda i: raw(i, content=""), whole, ID),
    "no content at all": (
        lambda i: {"messages": [u(i), {"role": "assistant", "tool_calls": [openai(i)]}, result(i), bot(i)]}, whole, ID),
    "text beside a call": (lambda i: raw(i, content="稍等"), lambda i: [u(i), calling(i, "稍等"), result(i), bot(i)], ID),
    "a call at the end": (lambda i: {"messages": raw(i)["messages"][:2]}, lambda i: [u(i), calling(i)], ID),
    "calls without ids and types": (lambda i: raw(i, tool_calls=[{"function": call(i)}]), whole, ()),
    "flat calls": (lambda i: raw(i, tool_calls=[call(i)]), whole, ()),
    "calls as text": (lambda i: raw(i, tool_calls=dumped([call(i)])), whole, ()),
    "one call as an object": (lambda i: raw(i, tool_calls=openai(i)), whole, ID),
    "parameters for arguments": (lambda i: raw(i, tool_calls=[{"name": ASK, "parameters": call(i)["arguments"]}]),
                                 whole, ()),
    "function_call of old": (lambda i: raw(i, tool_calls=None, function_call=openai(i)["function"]), whole, ()),
    "role function": (lambda i: raw(i, {"role": "function", "name": ASK, "content": f"宽{i}步"}), whole, ID),
    "role observation": (lambda i: raw(i, {"role": "observation", "content": f"宽{i}步"}), whole, ID),
    "role ipython": (lambda i: raw(i, {"role": "ipython", "content": f"宽{i}步"}), whole, ID),
    "role tool_response": (lambda i: raw(i, {"role": "tool_response", "content": f"宽{i}步"}), whole, ID),
    "a result with its call's id": (lambda i: raw(i, result(i, tool_call_id=f"call_{i}")), whole, ID),
    "a result with another name": (lambda i: raw(i, result(i, name="别人")), whole, ("name", *ID)),
    "a result as an object": (lambda i: raw(i, {"role": "tool", "content": {"宽": f"{i}步"}}),
                              lambda i: [u(i), calling(i), {"role": "tool", "content": dumped({"宽": f"{i}步"})},
                                         bot(i)], ID),
    "a result as a number": (lambda i: raw(i, {"role": "tool", "content": i + 3}),
                             lambda i: [u(i), calling(i), {"role": "tool", "content": str(i + 3)}, bot(i)], ID),
    "a result in parts": (lambda i: raw(i, {"role": "tool", "content": [{"type": "text", "text": f"宽{i}步"}]}), whole,
                          ID),
    "an empty result": (lambda i: raw(i, {"role": "tool", "content": ""}),
                        lambda i: [u(i), calling(i), {"role": "tool", "content": ""}, bot(i)], ID),
    "two calls at once": (
        lambda i: {
            "messages": [u(i), {"role": "assistant", "content": None, "tool_calls": [openai(i), openai(i, WEATHER)]},
                                result(i), {"role": "tool", "content": "晴"}, bot(i)]},
        lambda i: [u(i), {"role": "assistant", "content": "", "calls": [dumped(call(i)), dumped(call(i, WEATHER))]},
                   result(i), {"role": "tool", "content": "晴"}, bot(i)], ID),
    "call after call": (
        lambda i: {"messages": [*raw(i)["messages"][:3], *raw(i)["messages"][1:]]},
        lambda i: [*whole(i)[:3], *whole(i)[1:]], ID),
    "no arguments": (lambda i: raw(i, tool_calls=[{"name": ASK}]),
                     lambda i: [
                         u(i), {"role": "assistant", "content": "", "calls": [dumped({"name": ASK, "arguments": {}})]},
                         result(i), bot(i)], ()),
    "empty arguments": (lambda i: raw(i, tool_calls=[{"name": ASK, "arguments": ""}]),
                        lambda i: [u(i),
                                   {"role": "assistant", "content": "",
                                    "calls": [dumped({"name": ASK, "arguments": {}})]}, result(i), bot(i)], ()),
    "weight 0 on a call": (lambda i: raw(i, weight=0), lambda i: [u(i), calling(i, weight=0), result(i), bot(i)], ID),
    "empty tool_calls": (lambda i: {"messages": [u(i), bot(i, tool_calls=[])]}, lambda i: [u(i), bot(i)], ()),
    "tool_calls as empty text": (lambda i: {"messages": [u(i), bot(i, tool_calls="[]")]}, lambda i: [u(i), bot(i)], ()),
    "tools at the top": (lambda i: {"tools": [tool(i)], **raw(i)}, lambda i: [offer(tool(i)), *whole(i)], ID),
    "tools as text": (lambda i: {"tools": dumped([tool(i)]), **raw(i)}, lambda i: [offer(tool(i)), *whole(i)], ID),
    "tools with spaces": (lambda i: {"tools": json.dumps([tool(i)], indent=1), **raw(i)},
                          lambda i: [offer(tool(i)), *whole(i)], ID),
    "one tool as an object": (lambda i: {"tools": tool(i), **raw(i)}, lambda i: [offer(tool(i)), *whole(i)], ID),
    "flat tools": (lambda i: {"tools": [tool(i)["function"]], **raw(i)},
                   lambda i: [offer(tool(i)["function"]), *whole(i)], ID),
    "functions of old": (lambda i: {"functions": [tool(i)["function"]], **raw(i)},
                         lambda i: [offer(tool(i)["function"]), *whole(i)], ID),
    "tools in the system message": (
        lambda i: {"messages": [{"role": "system", "content": s(i), "tools": [tool(i)]}, *raw(i)["messages"]]},
        lambda i: [offer(tool(i)), {"role": "system", "content": s(i)}, *whole(i)], ID),
    "tools as text in the system message": (
        lambda i: {
            "conversations": [{"role": "system", "content": s(i), "tools": dumped([tool(i)])}, *raw(i)["messages"]]},
        lambda i: [offer(tool(i)), {"role": "system", "content": s(i)}, *whole(i)], ID),
    "tools in a developer message": (
        lambda i: {"messages": [{"role": "developer", "content": s(i), "tools": [tool(i)]}, *raw(i)["messages"]]},
        lambda i: [offer(tool(i)), {"role": "system", "content": s(i)}, *whole(i)], ID),
    "the same tools twice": (
        lambda i: {
            "tools": [tool(i)], "messages": [{"role": "system", "content": s(i), "tools": dumped([tool(i)])},
                                             *raw(i)["messages"]]},
        lambda i: [offer(tool(i)), {"role": "system", "content": s(i)}, *whole(i)], ID),
    "a turn of the role tools": (
        lambda i: {"messages": [{"role": "tools", "content": dumped([tool(i)])}, *raw(i)["messages"]]},
        lambda i: [offer(tool(i)), *whole(i)], ID),
    "a result from the role tools": (lambda i: raw(i, {"role": "tools", "content": f"宽{i}步"}), whole, ID),
    "no tools": (lambda i: {"tools": [], **raw(i)}, whole, ID),
    "no tools as text": (lambda i: {"tools": "[]", **raw(i)}, whole, ID),
    "names of tools": (lambda i: {"tools": ["尺子"], **raw(i)}, whole, ("tools", *ID)),
    "words about tools": (lambda i: {"tools": "一把尺子", **raw(i)}, whole, ("tools", *ID)),
    "tools that nobody calls": (lambda i: {"tools": [tool(i)], "messages": [u(i), bot(i)]},
                                lambda i: [offer(tool(i)), u(i), bot(i)], ()),
    "ShareGPT": (
        lambda i: sharegpt(ask(i), ("function_call", dumped(call(i))), ("observation", f"宽{i}步"), answer(i),
                           tools=dumped([tool(i)])),
                 lambda i: [offer(tool(i)), *whole(i)], ()),
    "ShareGPT with a system field": (
        lambda i: sharegpt(ask(i), ("function_call", dumped(call(i))), ("observation", f"宽{i}步"), answer(i),
                           tools=dumped([tool(i)]), system=s(i)),
        lambda i: [offer(tool(i)), {"role": "system", "content": s(i)}, *whole(i)], ()),
    "ShareGPT with several calls": (
        lambda i: sharegpt(ask(i), ("function_call", dumped([call(i), call(i, WEATHER)])), ("observation", f"宽{i}步"),
                           answer(i)),
        lambda i: [u(i), {"role": "assistant", "content": "", "calls": [dumped(call(i)), dumped(call(i, WEATHER))]},
                   result(i), bot(i)], ()),
    "ShareGPT with a thought before the call": (
        lambda i: sharegpt(ask(i), ("function_call", f"<think>\n要量\n</think>\n\n{dumped(call(i))}"),
                           ("observation", f"宽{i}步"), answer(i)),
        lambda i: [u(i), calling(i, thinking="要量"), result(i), bot(i)], ()),
    "reasoning_content": (lambda i: {"messages": [u(i), bot(i, reasoning_content="先想想，河不宽。")]}, thought, ()),
    "reasoning_content before a call": (lambda i: raw(i, reasoning_content="要量"),
                                        lambda i: [u(i), calling(i, thinking="要量"), result(i), bot(i)], ID),
    "reasoning": (lambda i: {"messages": [u(i), bot(i, reasoning="先想想，河不宽。")]}, thought, ()),
    "thinking": (lambda i: {"messages": [u(i), bot(i, thinking="先想想，河不宽。")]}, thought, ()),
    "an empty reasoning_content": (lambda i: {"messages": [u(i), bot(i, reasoning_content="")]},
                                   lambda i: [u(i), bot(i)], ()),
    "think tags": (lambda i: {"messages": [u(i), bot(i, content=f"<think>\n先想想，河不宽。\n</think>\n\n{a(i)}")]}, thought,
                   ()),
    "a thought without its first tag": (lambda i: {"messages": [u(i), bot(i, content=f"先想想，河不宽。</think>{a(i)}")]},
                                        thought, ()),
    "an empty thought": (lambda i: {"messages": [u(i), bot(i, content=f"<think>\n\n</think>\n\n{a(i)}")]},
                         lambda i: thought(i, ""), ()),
    "tags and a field that say the same": (
        lambda i: {"messages": [u(i), bot(i, content=f"<think>先想想，河不宽。</think>{a(i)}", reasoning_content="先想想，河不宽。")]},
        thought, ()),
    "tags and a field that differ": (
        lambda i: {"messages": [u(i), bot(i, content=f"<think>再想想别的</think>{a(i)}", reasoning_content="先想想，河不宽。")]},
        thought, ("<think>",)),
    "think tags in Alpaca": (lambda i: {"instruction": q(i), "output": f"<think>先想想，河不宽。</think>\n{a(i)}"}, thought,
                             ()),
    "reasoning_content beside Alpaca": (
        lambda i: {"instruction": q(i), "output": a(i), "reasoning_content": "先想想，河不宽。"}, thought, ()),
    "distilled": (lambda i: {"input": q(i), "reasoning_content": "先想想，河不宽。", "content": a(i), "score": 9}, thought,
                  ("score",)),
    "Complex_CoT": (lambda i: {"Question": q(i), "Complex_CoT": "先想想，河不宽。", "Response": a(i)}, thought, ()),
    "a thought of the user": (lambda i: {"messages": [{**u(i), "reasoning_content": "不该有"}, bot(i)]},
                              lambda i: [u(i), bot(i)], ("reasoning_content",)),
    "a thought that is a list": (lambda i: {"messages": [u(i), bot(i, reasoning_content=["想"])]},
                                 lambda i: [u(i), bot(i)], ("reasoning_content",)),
    "more about a call": (lambda i: raw(i, tool_calls=[{**openai(i), "note": "备注"}]), whole, ("tool_calls.note", *ID)),
}

# name: (row, what its reason must name)
BROKEN = {
    "arguments cut off": (with_call({"name": ASK, "arguments": '{"岸": "东'}), "JSON"),
    "arguments as a list": (with_call({"name": ASK, "arguments": "[1]"}), "对象"),
    "arguments as a number": (with_call({"name": ASK, "arguments": 3}), "对象"),
    "arguments that are words": (with_call({"name": ASK, "arguments": "东岸"}), "JSON"),
    "arguments with Infinity": (with_call({"name": ASK, "arguments": '{"步": Infinity}'}), "JSON"),
    "arguments with a name twice": (with_call({"name": ASK, "arguments": '{"步": 1, "步": 2}'}), "两次"),
    "a call without a name": (with_call({"arguments": "{}"}), "函数名"),
    "a call with an empty name": (with_call({"name": " ", "arguments": "{}"}), "函数名"),
    "a call that is a string": (with_call("量河"), "函数名"),
    "a call of another type": (with_call({"type": "code_interpreter", "name": ASK}), "函数名"),
    "calls that are no JSON": (raw(1, tool_calls="量河()"), "JSON"),
    "a function_call that is no JSON": (sharegpt(ask(1), ("function_call", "量河"), ("observation", "3"), answer(1)),
                                        "JSON"),
    "a function_call without a name": (sharegpt(ask(1), ("function_call", "{}"), ("observation", "3"), answer(1)),
                                       "函数名"),
    "tools cut off": ({"tools": '[{"name": "量', **raw(1)}, "JSON"),
    "tools without a name": ({"tools": [{"type": "function"}], **raw(1)}, "名字"),
    "tools that are a number": ({"tools": 3, **raw(1)}, "列表"),
    "two kinds of tools": (
        {"tools": [tool(1)], "messages": [{"role": "system", "content": s(1), "tools": [tool(2)]}, u(1), bot(1)]},
        "不同"),
    "a result that nobody asked for": ({"messages": [u(1), result(1), bot(1)]}, "工具"),
    "a result first": ({"messages": [result(1), u(1), bot(1)]}, "工具"),
    "a result that is a picture": (raw(1, {"role": "tool", "content": [{"type": "image_url", "image_url": "x"}]}),
                                   "image_url"),
    "a result without content": (raw(1, {"role": "tool"}), "content"),
    "only a thought": ({"messages": [u(1), {"role": "assistant", "reasoning_content": "想想", "content": None}]}, "思考"),
    "nothing but a thought": ({"messages": [u(1), bot(1, content="<think>想想</think>")]}, "思考"),
    "only calls that are not learned": ({"messages": raw(1, weight=0)["messages"][:3]}, "weight"),
    "calls to compare": (
        {"prompt": q(1), "chosen": [{"role": "assistant", "content": a(1), "tool_calls": [openai(1)]}],
         "rejected": "不"}, "工具"),
}
