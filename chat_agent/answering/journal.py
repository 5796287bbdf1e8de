"""What has been answered, line by line in a file beside the output, so that a killed run goes on where it was.

<output>.part: first what is asked of whom (`about`), then a line for every prompt, in the prompts' order:
    {"file": "q.jsonl", "row": 3, "rows": [{"messages": […]}], "wrong": ["why a reply is missing"]}
A line that a kill cut off is written anew. When all is answered the output is made of it, as a whole.
"""
import json
import os
from pathlib import Path

from tools.errors import UserError, explain
from tools.saving.atomic import put, write_temporary
from tools.saving.folder_lock import BUSY, FolderLock


class Journal:
    """about: dict of plain values; a journal of other ones is not gone on with. done: prompts that are in it."""

    def __init__(self, output, about):
        self.output, self.about, self.done = Path(output), about, 0
        self.path = self.output.with_name(self.output.name + ".part")
        self.errors = self.output.with_name(f"{self.output.stem}.errors.jsonl")

    def __enter__(self):
        if self.output.exists() and not self.path.exists():
            raise UserError(f"{self.output} 已存在，不会覆盖。请用 --output 换一个文件名。")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            FolderLock._lock(self.handle)
        except OSError as error:
            if error.errno in BUSY and self.path.exists():
                raise UserError(f"{self.path} 正被另一个进程写。请等它结束，或用 --output 换一个文件名。", 6) from None
            raise explain(error, self.path) from error
        try:
            self._take_up()
        except BaseException:
            os.close(self.handle)
            raise
        return self

    def __exit__(self, *_):
        os.close(self.handle)

    def _take_up(self):
        """Count what is there; forget a line that was cut off."""
        whole, first = 0, None
        with open(self.path, "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                first = line if first is None else first
                whole += len(line)
                self.done += 1
        if first is None:
            os.ftruncate(self.handle, 0)
            self._write([self.about])
        else:
            self.done -= 1
            self._compare(first)
            os.ftruncate(self.handle, whole)
        os.lseek(self.handle, 0, os.SEEK_END)

    def _compare(self, first):
        try:
            had = json.loads(first)
            other = [name for name in {**had, **self.about} if had.get(name) != self.about.get(name)]
        except (ValueError, TypeError, AttributeError):
            raise UserError(f"{self.path} 不是没写完的回答，不会动它。请用 --output 换一个文件名。") from None
        if other:
            raise UserError(f"{self.path} 是另一条命令写到一半的（{'、'.join(other)} 不同）。请照原来的命令接着做，"
                            "或删掉它、用 --output 换一个文件名。")

    def keep(self, count):
        """Forget all but the first `count` prompts."""
        if count < self.done:
            with open(self.path, "rb") as file:
                size = sum(len(file.readline()) for _ in range(count + 1))
            os.ftruncate(self.handle, size)
            os.lseek(self.handle, 0, os.SEEK_END)
            self.done = count

    def add(self, entries):
        """entries: list of dicts as above; on the disk when this returns."""
        self._write(entries)
        self.done += len(entries)

    def _write(self, lines):
        try:
            _put(self.handle, lines)
            os.fsync(self.handle)
        except OSError as error:
            raise explain(error, self.path) from error

    def entries(self):
        with open(self.path, "rb") as file:
            file.readline()
            yield from map(json.loads, file)

    def finish(self):
        """Write the output and, where replies are missing, the list of them -> {"rows", "wrong", "first"}."""
        told = {"rows": 0, "wrong": 0, "first": None}

        def fill(handle):
            for entry in self.entries():
                told["rows"] += len(entry["rows"])
                _put(handle, entry["rows"])

        def fill_errors(handle):
            for entry in self.entries():
                for reason in entry["wrong"]:
                    told["wrong"] += 1
                    told["first"] = told["first"] or (entry, reason)
                    _put(handle, [{"file": entry["file"], "row": entry["row"], "reason": reason}])

        answers, wrong = write_temporary(self.output, fill)[0], write_temporary(self.errors, fill_errors)[0]
        put(self.errors, wrong) if told["wrong"] else wrong.unlink()
        put(self.output, answers) if told["rows"] else answers.unlink()
        self.path.unlink()
        return told


def _put(handle, lines):
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    content = memoryview(text.encode("utf-8", "surrogatepass"))
    while len(content):
        content = content[os.write(handle, content):]
