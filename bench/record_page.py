"""A picture of the chat page, made by a real browser from a real server.

    python bench/record_page.py --inside 10 --head 2 1 --size 1340 690 "今天是我妈妈的生日，我送了一束花"

The questions are asked one after the other in one conversation; without any the page is shown as it opens. --inside N
shows what went on inside of the model when it wrote the N-th token of its last reply, --head what one head of one layer
read. Needs Chromium and requirements-dev.txt.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tools.process.first import check_machine

if __name__ == "__main__":
    check_machine()

ANSWERED = """document.querySelector("#stop").hidden
    && document.querySelectorAll(".message.assistant .note, .message.assistant .error").length === %d"""

SHARES = "[...document.querySelectorAll('#glass-prompt li')].map((one) => one.style.getPropertyValue('--a')).join()"


def record(model, questions, output, width, height, inside=None, head=()):
    """Write the picture (PNG). inside: number of the token of the last reply to look into, from 1; head: numbers of a
    layer and a head, from 1."""
    import browser
    from toy_server import serving
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder),
                                                          models={"小寻": model}) as server, browser.browsing() as tab:
        tab.size(width, height)
        tab.open(server.url + "/")
        tab.wait("document.querySelector('#model').options.length > 0")
        for number, question in enumerate(questions, 1):
            tab.click("#input")
            tab.type(question)
            tab.key("Enter")
            tab.wait(ANSWERED % number)
        if inside:
            tab.run("[...document.querySelectorAll('[aria-label^=透视]')].at(-1).click()")
            tab.wait("document.querySelector('#glass-head').options.length")
            before = tab.run(SHARES)
            for name, number in zip(("layer", "head"), head):
                tab.run(f"document.querySelector('#glass-{name}').value = '{number - 1}'")
            if head:
                tab.run("document.querySelector('#glass-head').dispatchEvent(new Event('change'))")
                tab.wait(f"{SHARES} !== {json.dumps(before)}")
            tab.click(f"#glass-tokens li:nth-child({inside}) button")
            tab.wait("document.querySelector('#glass-detail tbody tr')")
        tab.screenshot(output)


def main(argv=None):
    parser = argparse.ArgumentParser(description="给聊天页拍一张照。")
    parser.add_argument("questions", nargs="*", metavar="问题", help="依次问这些话；不写就是刚打开的样子")
    parser.add_argument("--model", default=ROOT / "out/TinySeek_SFT_final.pkl", type=Path, help="模型的 .pkl")
    parser.add_argument("--output", default=ROOT / "docs/page.png", type=Path, help="图片，默认 docs/page.png")
    parser.add_argument("--size", nargs=2, type=int, default=(1180, 720), metavar=("宽", "高"))
    parser.add_argument("--inside", type=int, metavar="N", help="透视最后一个回答的第 N 个词元")
    parser.add_argument("--head", nargs=2, type=int, default=(), metavar=("层", "头"), help="看哪一层哪个头的注意力")
    options = parser.parse_args(argv)
    record(options.model.resolve(), options.questions, options.output, *options.size, options.inside, options.head)
    print(json.dumps({"output": str(options.output), "bytes": options.output.stat().st_size}, ensure_ascii=False))


if __name__ == "__main__":
    main()
