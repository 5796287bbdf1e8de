"""What people read: one word for one thing, in the pages and in the program's messages; numbers that have a source."""
import ast
import re

from bench import results_page
from test_readme import PAGES, ROOT

CHINESE = "[\u4e00-\u9fff]"
# A word that is not used -> the one that is.
OLD_WORDS = {
    "瞎猜|乱猜|随机水平": "随机猜测", "(?<!互)不认识|没有认识|词表认识": "无法识别、没有可识别、词表覆盖", "专家选择门": "选择门", "候选专家": "候选模型",
    r"要学 |要学的占|% 要学|词元要学": "计入损失", "切掉": "截断", "第二头": "第二个输出头", "训练日记": "事件记录", "每几块": "每几个数据块",
    "下一个词(?!元)": "下一个词元", "更愿意说": "更倾向于", "被拦住": "被 forget_penalty 管住", "的部位|部位够": "模块",
    f"{CHINESE} ?tokens?(?![\\w.])|(?<![\\w.])tokens? ?{CHINESE}": "词元", "形状": "模型结构、数据格式；张量的才叫形状"}


def prose(page):
    """[(place, line)] of a page, without what is code."""
    text = re.sub(r"^```.*?^```", lambda found: "\n" * found[0].count("\n"), page.read_text(encoding="utf-8"),
                  flags=re.S | re.M)
    return [(f"{page.name}:{number}", re.sub(r"`[^`]*`", "``", line))
            for number, line in enumerate(text.splitlines(), 1)]


def messages():
    """[(place, text)] of every string with Chinese in the programs; the built-in world speaks as it likes."""
    files = [
        ROOT / "run.py", *(p for top in ("model", "tools", "train_agent", "chat_agent", "bench")
                           for p in sorted((ROOT / top).rglob("*")))]
    for path in files:
        place = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py" and "tools/demo" not in place:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.search(CHINESE, node.value):
                    yield f"{place}:{node.lineno}", node.value
        elif path.suffix in (".js", ".html"):
            yield from ((f"{place}:{n}", line)
                        for n, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1))


def old_words(lines):
    return [f"{place}: {found[0]!r} -> {better}" for place, line in lines for old, better in OLD_WORDS.items()
            if (found := re.search(old, line)) and not (old == "形状" and "张量" in line)]


def test_one_word_for_one_thing():
    found = old_words([line for page in PAGES for line in prose(page)]) + old_words(messages())
    assert not found, "\n".join(found)


def test_old_words_are_found():
    said = ["等于乱猜", "每个 token 用到", "token 数", "全部 tokens。", "不认识的角色", "门的形状", "下一个词", "其中 2 % 要学"]
    assert len(old_words([("", line) for line in said])) == len(said)
    assert not old_words([("", line) for line in ("词元（token）", "`token_kind` 按字", "张量的形状", "下一个词元", "要学新语言")])


BITS = "比特/字|每字比特|bits per char|bits/char"
SOURCE = re.compile(r"\b[0-9a-f]{7}\b.*20\d\d-\d\d-\d\d")


def committed():
    """Every way of writing a number of bits per character that the committed results give."""
    values = []
    for _, lines in results_page.read(results_page.HERE / "results"):
        groups = results_page.by_label(lines)
        base = results_page.default_bits(groups)
        for _, group in groups:
            mean = results_page.mean_bits(group)
            values += [mean, *map(results_page.final_bits, group)] + ([] if base is None else [abs(mean - base)])
    return {f"{value:.{digits}f}" for value in values for digits in (2, 3)}


def unsourced(lines, known):
    return [f"{place}: {number}" for place, line in lines if re.search(BITS, line) and not SOURCE.search(line)
            for number in re.findall(r"(?<![\d.])\d\.\d{2,3}(?![\d.])", line) if number not in known]


def test_bits_per_character_are_committed_results_or_say_commit_and_date():
    known = committed()
    lines = [line for page in PAGES for line in outside_tables(page)]
    assert sum(bool(re.search(BITS, line)) for _, line in lines) >= 5
    assert not unsourced(lines, known), "\n".join(unsourced(lines, known))
    assert unsourced([("", "6.123 比特/字"), ("", "6.123 比特/字（提交 abc1234，2026-01-02）")], {"6.12"}) == [": 6.123"]


def outside_tables(page):
    """The lines of a page; what a program writes between two marks has a test of its own."""
    text = re.sub(r"<!-- (\w+): python bench/.*?<!-- /\1 -->", lambda found: "\n" * found[0].count("\n"),
                  page.read_text(encoding="utf-8"), flags=re.S)
    return [(f"{page.name}:{number}", line) for number, line in enumerate(text.splitlines(), 1)]
