"""Conversations in a file, one line of {"messages": […]} each, as training reads them. Nothing in it is ever lost."""

import json
import os
import stat
from pathlib import Path

from tools.errors import UserError
from tools.formats import SURROGATE
from tools.reading.acting import EMPTY_THOUGHT, calls_of, offered, written
from tools.reading.row import Bad, Source
from tools.template import ROLE_NAMES


def save(path, conversations):
    """Append the conversations that hold a reply -> how many there are now. A file that holds anything else is refused.

    What stood in the file is not touched: a failed write is undone, and two chats may append to one file.
    """
    rows = [written(messages) for messages in conversations if any(m["role"] == "assistant" for m in messages)]
    if not rows:
        raise UserError("还没有一问一答，没有什么可存。")
    place = _place(path, "/save 对话.jsonl")
    if place.suffix == ".gz":
        raise UserError(f"/save 写的是普通文本，文件名请用 .jsonl 结尾，而不是 {place.name}。")
    before = read(place) if _is_there(place) else []
    if before is None:
        raise UserError(f"{path} 已存在，而且不是 /save 存下的对话，不会改动它。请换一个文件名。")
    _append(place, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return len(before) + len(rows)


def restore(path):
    """The conversations of a file, oldest first. UserError where there is none."""
    place = _place(path, "/load 对话.jsonl")
    found = read(place)
    if not found:
        raise UserError(f"{path} 不是 /save 存下的对话。")
    return found


def read(place):
    """The conversations of a file (an empty one has none), None if it holds anything else. UserError if unreadable."""
    try:
        if not stat.S_ISREG(os.stat(place).st_mode):
            return None
        lines = [line for line in place.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
        return [messages_of(json.loads(line)) for line in lines]
    except OSError as error:
        raise UserError(f"读不了 {place}：{error.strerror}") from None
    except (ValueError, RecursionError):
        return None


def messages_of(row):
    """The messages of one saved line. ValueError if it is anything else."""
    messages = row.get("messages") if isinstance(row, dict) else None
    for m in messages if isinstance(messages, list) else [None]:
        good = isinstance(m, dict) and m.get("role") in ROLE_NAMES and isinstance(m.get("content"), str)
        if not good or SURROGATE.search(m["content"]):
            raise ValueError
    try:
        tools = offered(Source({}), row.get("tools"), "tools")
        return ([{"role": "tools", "content": tools}] if tools else []) + [_message(m) for m in messages]
    except Bad:
        raise ValueError from None


def _message(saved):
    message = {"role": saved["role"], "content": saved["content"]}
    if saved["role"] == "assistant":
        if saved.get("reasoning_content"):
            message["thinking"] = str(saved["reasoning_content"])
        elif saved["content"].startswith(EMPTY_THOUGHT):
            message |= {"content": saved["content"][len(EMPTY_THOUGHT):], "thinking": ""}
        if saved.get("tool_calls"):
            message["calls"] = calls_of(Source({}), saved["tool_calls"], "tool_calls")
    return message


def _place(path, example):
    if not path:
        raise UserError(f"请写文件名，例如 {example}")
    if "\0" in path or SURROGATE.search(path):
        raise UserError(f"文件名里有不能用的字符。请换一个，例如 {example}")
    try:
        return Path(path).expanduser()
    except RuntimeError:                                        # ~somebody who is not there
        return Path(path)


def _is_there(place):
    try:
        return os.path.lexists(place) and place.exists()
    except OSError as error:
        raise UserError(f"存不了 {place}：{error.strerror}") from None


def _append(place, content):
    """All of `content` at the end of the file, on a line of its own, or nothing of it."""
    try:
        handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise UserError(f"存不了 {place}：{error.strerror}") from None
    size = os.fstat(handle).st_size
    try:
        if size:
            os.lseek(handle, size - 1, os.SEEK_SET)
            content = content if os.read(handle, 1) == b"\n" else b"\n" + content
        if os.write(handle, content) < len(content):
            raise OSError(0, "磁盘已满")
        os.fsync(handle)
    except OSError as error:
        os.ftruncate(handle, size)
        raise UserError(f"存不了 {place}：{error.strerror}。原来的内容没有动。") from None
    finally:
        os.close(handle)
