"""What a person types, pastes or recalls, as one question: line editing, history, several lines at once."""

import atexit
import locale
import os
import re
import sys

from tools.errors import UserError
from tools.formats import SURROGATE

try:
    import select
    import termios
except ImportError:             # Windows: its console edits lines and deletes whole characters itself
    termios = None

IUTF8 = 0x4000          # Linux and macOS: Backspace takes a whole character, not a byte; termios has no name for it
PASTED = 0.05                   # seconds: lines that follow as fast as this were pasted, not typed
UTF8_LOCALES = ("C.UTF-8", "en_US.UTF-8", "UTF-8")
QUOTES = '"""'
LEAVE = re.compile(r"(/?(quit|exit|退出)|/bye)[。.!！]?", re.I)


class Keyboard:
    """commands: words that Tab completes."""

    def __init__(self, commands=()):
        self.commands, self.waiting = sorted(commands), []
        self.is_terminal = sys.stdin is not None and sys.stdin.isatty()
        if self.is_terminal:
            self._whole_characters()
            self._line_editing()

    def ask(self, prompt):
        """The next question or command. EOFError at the end, UserError for a line that holds no characters."""
        text = _healed(self._pasted(prompt))
        if not text.startswith(QUOTES):
            return text.strip()
        lines = text[len(QUOTES):].split("\n")
        while not lines[-1].rstrip().endswith(QUOTES):
            lines += _healed(input("… ")).split("\n")
        return "\n".join(lines).rstrip().removesuffix(QUOTES).strip("\n")

    def _pasted(self, prompt):
        """One line, and those that were pasted with it. A command among them stays a command."""
        if self.waiting:
            return self.waiting.pop(0)
        try:
            lines = [input(prompt)]
        except RuntimeError as error:       # a notebook that runs by itself, or a program without stdin
            raise EOFError from error
        while self.is_terminal and not lines[0].startswith(("/", QUOTES)) and _more_is_there():
            line = input()
            if line.startswith("/") or LEAVE.fullmatch(line.strip()):
                self.waiting.append(line)
                break
            lines.append(line)
        return "\n".join(lines)

    def _whole_characters(self):
        if termios is None or sys.stdin.encoding.lower().replace("-", "") != "utf8":
            return
        try:
            before = termios.tcgetattr(sys.stdin)
            if not before[0] & IUTF8:
                termios.tcsetattr(sys.stdin, termios.TCSANOW, [before[0] | IUTF8, *before[1:]])
                atexit.register(termios.tcsetattr, sys.stdin, termios.TCSANOW, before)
        except (termios.error, OSError):
            pass

    def _line_editing(self):
        """Arrow keys, history and Tab where there is a readline that knows our characters; a byte locale has none."""
        if termios is None or not _locale_fits():
            return
        try:
            import readline
        except ImportError:
            return
        mac = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if mac else "tab: complete")
        if not mac:
            readline.parse_and_bind("set enable-bracketed-paste on")
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self.complete)

    def complete(self, begun, number):
        """The `number`-th way to go on from `begun`: a command at the beginning of a line, else a file's name."""
        import readline
        from glob import escape, glob
        if readline.get_begidx():
            files = glob(escape(os.path.expanduser(begun)) + "*")
            found = sorted(file + (os.sep if os.path.isdir(file) else "") for file in files)
        else:
            found = [c for c in self.commands if begun.startswith("/") and c.startswith(begun)]
        return found[number] if number < len(found) else None


def _locale_fits():
    """Whether the C library reads characters as Python does; in the POSIX locale it is told to, where it can."""
    if sys.stdin.encoding.lower().replace("-", "") != "utf8" or locale.nl_langinfo(locale.CODESET).upper() == "UTF-8":
        return True
    for name in UTF8_LOCALES:
        try:
            locale.setlocale(locale.LC_CTYPE, name)
            os.environ["LC_ALL"] = name     # Python goes back to what this says for every line that it reads
            return True
        except locale.Error:
            pass
    return False


def _more_is_there():
    """Whether more follows at once. A terminal hands out whole lines only, unless asked not to for a moment."""
    if termios is None:
        import msvcrt
        return msvcrt.kbhit()
    try:
        before = termios.tcgetattr(sys.stdin)
        raw = before[3] & ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(sys.stdin, termios.TCSANOW, [*before[:3], raw, *before[4:]])
        try:
            return bool(select.select([sys.stdin], [], [], PASTED)[0])
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
    except (termios.error, OSError):
        return False


def _healed(line):
    """The line without half characters, as a Backspace that deletes bytes leaves them. UserError: another encoding."""
    text, count = SURROGATE.subn("", line)                      # how Python hands over bytes that form no character
    if not count:
        return line
    if count > max(4, len(text)):
        raise UserError("这一行不是 UTF-8 文字，看不懂。请把终端的编码设成 UTF-8（例如 export LC_ALL=C.UTF-8）再输入。")
    print(f"（去掉了删到一半的字，收到的是：{text}）")
    return text
