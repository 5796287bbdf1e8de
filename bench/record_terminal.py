"""A picture of a terminal, made from a real run: the commands are run, what they print is drawn as SVG.

    python bench/record_terminal.py --output docs/terminal.svg "python chat_agent/chat.py --prompt 你好" "python
    tools/plot.py log.txt"

Each command gets a line with a prompt, its standard output follows; long output is cut to its first and last lines.
"""

import argparse
import os
import subprocess
import sys
import unicodedata
from html import escape
from pathlib import Path

CELL, LINE, PAD, COLUMNS = 8.4, 19, 16, 92
BACK, INK, PALE, GREEN = "#0f172a", "#e2e8f0", "#94a3b8", "#4ade80"


def width(char):
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def wrapped(text, columns=COLUMNS):
    """A line of text -> lines that fit; a Chinese character fills two cells."""
    line, used = "", 0
    for char in text.expandtabs(4):
        if used + width(char) > columns:
            yield line
            line, used = "", 0
        line, used = line + char, used + width(char)
    yield line


def record(commands, most):
    """-> [(text, color)] of a session. What a command says on stderr (progress, remarks) is left out."""
    lines = []
    for command in commands:
        words = command.replace("python ", f'"{sys.executable}" ', 1) if command.startswith("python ") else command
        done = subprocess.run(words, shell=True, capture_output=True, text=True, encoding="utf-8",
                              env={**os.environ, "PYTHONIOENCODING": "utf-8"})
        if done.returncode:
            raise SystemExit(f"{command} 失败（{done.returncode}）：\n{done.stderr[-2000:]}")
        said = done.stdout.rstrip("\n").split("\n")
        if len(said) > most:
            said = [*said[:most // 2], f"…（中间 {len(said) - most} 行略）", *said[-(most - most // 2):]]
        lines += [(part, GREEN if i == 0 else INK) for i, part in enumerate(wrapped(f"$ {command}"))]
        lines += [(part, PALE if text.startswith("…") else INK) for text in said
                  for part in wrapped(text)] + [("", INK)]
    return lines[:-1]


def drawn(lines):
    """-> the SVG's text. Every run of wide or narrow characters is placed by its own column, so that any font lines
    up."""
    body = []
    for row, (text, color) in enumerate(lines):
        at = 0
        y = PAD + 30 + row * LINE
        for run in runs(text):
            cells = sum(map(width, run))
            if run.strip():
                body.append(
                    f'<text x="{PAD + at * CELL:.1f}" y="{y}" fill="{color}" '
                    f'textLength="{cells * CELL:.1f}">{escape(run)}</text>')
            at += cells
    wide, high = 2 * PAD + COLUMNS * CELL, 2 * PAD + 24 + len(lines) * LINE
    dots = "".join(f'<circle cx="{PAD + 6 + 18 * i}" cy="16" r="5.5" fill="{c}"/>'
                   for i, c in enumerate(("#ef4444", "#f59e0b", "#22c55e")))
    style = ("font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'Noto Sans Mono CJK SC','Microsoft YaHei',"
             "monospace;white-space:pre")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide:.0f}" height="{high}" viewBox="0 0 {wide:.0f} {high}">'
            f'<rect width="100%" height="100%" rx="10" fill="{BACK}"/>{dots}<g style="{style}">\n' + "\n".join(body)
            + "\n</g></svg>\n")


def runs(text):
    """Cut where the width of characters changes, and at spaces."""
    run = ""
    for char in text:
        if run and (width(char) != width(run[-1]) or (char == " ") != (run[-1] == " ")):
            yield run
            run = ""
        run += char
    yield run


def main():
    parser = argparse.ArgumentParser(description="把真实的运行画成终端图片（SVG）。")
    parser.add_argument("commands", nargs="+", metavar="命令")
    parser.add_argument("--output", required=True, metavar="图.svg")
    parser.add_argument("--most", type=int, default=24, help="一条命令最多画多少行（24）")
    options = parser.parse_args()
    Path(options.output).write_text(drawn(record(options.commands, options.most)), encoding="utf-8")
    print(f"已画好 {options.output}")


if __name__ == "__main__":
    main()
