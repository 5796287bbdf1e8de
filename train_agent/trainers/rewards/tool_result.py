"""The reward of a task with tools: the right final answer behind the right calls, and no others."""

import json

from tools.acting.toolbox import FAILED
from tools.template import parsed_call
from train_agent.trainers.rewards.episodes import calls_in
from train_agent.trainers.rewards.named import exact, wanted


def tool_result(conversation, reply, row, settings):
    """1 where the reply is the row's answer and every call that the row wants has been made, else 0; less `needless`
    for each call that nobody wanted, less `failed` for each that gave no result and each that was wanted and not tried.
    So it is never better not to try: a wrong call of a wanted tool costs nothing, none at all does.

    row["calls"]: [{"name", "arguments" or "result": optional}]; a call is the wanted one if its name and its arguments
    or its result are. Without any wanted, every call is needless.
    """
    missing, failed, tried = list(row.get("calls") or ()), 0, []
    begin = max((i for i, m in enumerate(conversation) if m["role"] == "user"), default=-1)
    for text, result in calls_in(conversation[begin + 1:]):
        call, gave = parsed_call(text), result is not None and not result.startswith(FAILED)
        found = next((one for one in missing if gave and fits(one, call, result)), None)
        missing.remove(found) if found else tried.append((call["name"], gave))
        failed += not gave
    untried, needless = [one["name"] for one in missing], 0
    for name, gave in tried:
        if name in untried:
            untried.remove(name)
        else:
            needless += gave
    return (exact(conversation, reply, row, settings) * (not missing)
            - needless * float(wanted(row, settings, "needless", "reward_needless"))
            - (failed + len(untried)) * float(wanted(row, settings, "failed", "reward_failed")))


def fits(wish, call, result):
    if wish.get("name") != call["name"]:
        return False
    known = [(name, value) for name, value in (("arguments", call["arguments"]), ("result", result)) if name in wish]
    return not known or any(wish[name] == value for name, value in known)


def calls_of(messages):
    """What a data row's own replies called -> as row["calls"] has it."""
    return [json.loads(text) | ({} if result is None else {"result": result}) for text, result in calls_in(messages)]
