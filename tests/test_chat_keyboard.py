"""What a person types, pastes and recalls on a real terminal (a pseudo-terminal) arrives as one question."""
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = """
import sys
{first}
from chat_agent.terminal.typing import Keyboard
from tools.errors import UserError
keyboard = Keyboard(["/clear", "/save", "/set"])
print("ready", flush=True)
while True:
    try:
        print("got", ascii(keyboard.ask("you: ")), flush=True)
    except UserError as error:
        print("refused", ascii(str(error)), flush=True)
    except EOFError:
        break
print("end", flush=True)
"""
NO_READLINE = "sys.modules['readline'] = None"


class Terminal:
    """A process on a terminal of its own; `got(n)` waits for n questions that it has understood."""

    def __init__(self, first="", iutf8=True, **environment):
        self.master, slave = pty.openpty()
        modes = termios.tcgetattr(slave)
        modes[0] = modes[0] | 0x4000 if iutf8 else modes[0] & ~0x4000
        termios.tcsetattr(slave, termios.TCSANOW, modes)
        names = {"PYTHONPATH": str(ROOT), "TERM": "xterm", "LC_ALL": "C.UTF-8", **environment}
        self.process = subprocess.Popen([sys.executable, "-c", SCRIPT.format(first=first)], stdin=slave, stdout=slave,
                                        stderr=slave,
                                        env={**os.environ, **names}, start_new_session=True)
        os.close(slave)
        os.set_blocking(self.master, False)
        self.seen = b""
        self.until(lambda: b"ready" in self.seen and b"you: " in self.seen)

    def until(self, done, seconds=20):
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.seen
            try:
                self.seen += os.read(self.master, 65536)
            except (BlockingIOError, OSError):
                time.sleep(0.01)

    def type(self, *keys):
        for key in keys:
            os.write(self.master, key.encode() if isinstance(key, str) else key)
            time.sleep(0.02)

    def lines(self, word="got"):
        return [eval(line.split(" ", 1)[1])
                for line in self.seen.decode(errors="replace").replace("\r", "\n").split("\n")[:-1]     # whole ones
                if line.startswith(word + " ")]

    def got(self, count, word="got"):
        self.until(lambda: len(self.lines(word)) >= count)
        return self.lines(word)

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(request):
    made = []

    def make(**how):
        made.append(Terminal(**how))
        return made[-1]
    yield make
    for one in made:
        one.close()


LEFT, UP, BACK = "\x1b[D", "\x1b[A", "\x7f"


@pytest.mark.parametrize("place", ["C.UTF-8", "POSIX"])
def test_arrows_backspace_and_history_with_chinese(terminal, place):
    t = terminal(LC_ALL=place)
    t.type("你好吗", LEFT, LEFT, "们", "\r")
    assert t.got(1) == ["你们好吗"]
    t.type("三加五", BACK, BACK, "减二\r")
    assert t.got(2)[1] == "三减二"
    t.type(UP, UP, "？\r")
    assert t.got(3)[2] == "你们好吗？"


def test_tab_completes_commands_and_files(terminal, tmp_path):
    (tmp_path / "conversation.jsonl").write_text("")
    t = terminal()
    t.type("/cl", "\t", "\r")
    assert t.got(1) == ["/clear"]
    t.type(f"/save {tmp_path}/conv", "\t", "\r")
    assert t.got(2)[1] == f"/save {tmp_path}/conversation.jsonl"


@pytest.mark.parametrize("first", ["", NO_READLINE])
def test_pasted_lines_are_one_question(terminal, first):
    t = terminal(first=first)
    t.type("第一行\n\n第三行\n")
    assert t.got(1) == ["第一行\n\n第三行"]
    t.type("甲\n乙\n/clear\n")
    assert t.got(3)[1:] == ["甲\n乙", "/clear"]
    t.type("一行\n")
    time.sleep(0.3)
    t.type("另一行\n")
    assert t.got(5)[3:] == ["一行", "另一行"]


@pytest.mark.parametrize("first", ["", NO_READLINE])
def test_a_pasted_line_without_an_end_waits_for_enter(terminal, first):
    t = terminal(first=first)
    t.type("甲\n乙")
    time.sleep(0.3)
    t.type("丙\n")
    assert t.got(1) == ["甲\n乙丙"]


def test_bracketed_paste(terminal):
    t = terminal()
    t.until(lambda: b"\x1b[?2004h" in t.seen)
    t.type("\x1b[200~第一行\n第二行\x1b[201~", "。\r")
    assert t.got(1) == ["第一行\n第二行。"]


@pytest.mark.parametrize("first", ["", NO_READLINE])
def test_three_quotes_hold_several_lines(terminal, first):
    t = terminal(first=first)
    for line in ('"""第一行', "/clear", '第三行"""'):
        t.type(line + "\r")
        time.sleep(0.15)
    assert t.got(1) == ["第一行\n/clear\n第三行"]
    t.type('"""一行"""\r')
    assert t.got(2)[1] == "一行"


def test_backspace_takes_whole_characters_where_the_terminal_thinks_in_bytes(terminal):
    t = terminal(first=NO_READLINE, iutf8=False)
    t.type("你好", BACK, "们\n")
    assert t.got(1) == ["你们"]


@pytest.mark.parametrize("first", ["", NO_READLINE])
def test_half_characters_are_dropped_and_other_encodings_explained(terminal, first):
    t = terminal(first=first)
    t.type(b"\xe4\xbd\xa0\xe5\xa5" + "们\n".encode())
    assert t.got(1) == ["你们"]
    t.type("今天天气怎么样".encode("gbk") + b"\n")
    assert "UTF-8" in t.got(1, "refused")[0]


def test_ctrl_d_ends(terminal):
    t = terminal()
    t.type("\x04")
    t.until(lambda: b"end" in t.seen)


def test_lines_from_a_pipe_are_questions_of_their_own():
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(first="")], input="甲\n乙\n".encode(),
                          capture_output=True, timeout=30,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"})
    assert [eval(line.split("got ")[1]) for line in done.stdout.decode().splitlines() if "got " in line] == ["甲", "乙"]
