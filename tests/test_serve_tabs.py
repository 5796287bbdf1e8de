"""Two tabs of one browser: no conversation is lost, and none that was deleted comes back."""
import json
import random
import time

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")
pytest.importorskip("websocket", reason="websocket-client 没有装")

import browser
from toy_server import serving, write_model

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="没有 Chromium")
READY = "document.querySelector('#model').options.length > 0"
KEPT = """Object.fromEntries(Object.keys(localStorage).filter((k) => k.startsWith("tinyseek.chat.")).map((k) =>
    [k.slice(14), JSON.parse(localStorage.getItem(k)).messages.filter((m) => m.role === "user").map((m) => m.content)]))"""

# Type a name and press Enter; real keys and focus belong to one tab only.
NAME = """(() => { const i = document.querySelector('.rename'); if (!i) return; i.value = '%s';
    i.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter' })); })()"""


@pytest.fixture(scope="module")
def tabs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tabs")
    with serving(folder, models={"one": write_model(folder / "one.pkl")}) as server, browser.browsing() as first:
        first.server = server
        with first.another_tab() as second:
            for tab in (first, second):
                tab.size(1300, 820)                     # with the list beside the conversation
            yield first, second


@pytest.fixture(autouse=True)
def fresh(tabs):
    for tab in tabs:
        tab.open(tabs[0].server.url + "/health")
        tab.run("localStorage.clear(); sessionStorage.clear()")
    tabs[0].run("""localStorage.setItem("tinyseek.settings", '{"max_tokens": 48, "temperature": 1.5}')""")
    for tab in tabs:
        visit(tab, tabs[0].server.url)
        tab.events.clear()
    yield
    assert tabs[0].complaints() == tabs[1].complaints() == []


def visit(tab, url):
    tab.open(f"{url}/?{random.random()}")
    tab.wait(READY)


def send(tab, text):
    """-> id of the conversation that it went into, None where a reply was still on its way."""
    return tab.run(f"""(() => {{ if (document.querySelector('#send').hidden) return null;
        document.querySelector('#input').value = {json.dumps(text)}; document.querySelector('#composer').requestSubmit();
        return sessionStorage.getItem('tinyseek.current'); }})()""")


def titles(tab):
    return tab.text(".entry")


def quiet(tab):
    tab.wait("!document.querySelector('.typing')")


def test_a_reply_in_one_tab_does_not_overwrite_what_the_other_began(tabs):
    one, two = tabs
    send(one, "甲")
    send(two, "乙")
    for tab in tabs:
        quiet(tab)
        tab.wait("document.querySelectorAll('.entry').length === 2")
    kept = one.run(KEPT)
    assert sorted(kept.values()) == [["乙"], ["甲"]]


def test_what_is_deleted_in_one_tab_does_not_come_back_from_the_other(tabs):
    one, two = tabs
    one.run("""localStorage.setItem("tinyseek.settings", '{"max_tokens": 1000, "temperature": 2}')""")
    visit(one, one.server.url)
    gone = send(one, "会被删掉")
    two.wait("document.querySelectorAll('.entry').length === 1")
    two.run("document.querySelector('.list [aria-label^=删除]').click()")
    two.run("document.querySelector('.list [data-sure]').click()")
    one.wait("document.querySelectorAll('.entry').length === 0")
    quiet(one)
    time.sleep(0.5)
    visit(one, one.server.url)
    assert gone not in one.run(KEPT) and titles(one) == titles(two) == []


def test_both_versions_stay_where_two_tabs_go_on_with_one_conversation(tabs):
    one, two = tabs
    shared = send(one, "开头")
    quiet(one)
    visit(two, one.server.url)
    two.run("document.querySelector('.entry').click()")
    two.wait("document.querySelectorAll('.message').length === 2")
    one.run("""localStorage.setItem("tinyseek.settings", '{"max_tokens": 400, "temperature": 2}')""")
    assert send(one, "左") == shared == two.run("sessionStorage.getItem('tinyseek.current')")
    send(two, "右")
    for tab in tabs:
        quiet(tab)
    time.sleep(0.3)
    said = [text for texts in one.run(KEPT).values() for text in texts]
    assert {"开头", "左", "右"} <= set(said)


def test_names_given_in_one_tab_reach_the_other_and_survive_a_reply(tabs):
    one, two = tabs
    send(one, "原来的名字")
    two.wait("document.querySelectorAll('.entry').length === 1")
    two.run("document.querySelector('.list [aria-label^=改名]').click()")
    two.run(NAME % "新名字")
    quiet(one)
    for tab in tabs:
        tab.wait("document.querySelector('.entry')?.textContent === '新名字'")
    visit(one, one.server.url)
    assert titles(one) == ["新名字"]


def test_the_list_of_an_earlier_version_is_taken_over(tabs):
    one, two = tabs
    for tab in tabs:
        tab.open(one.server.url + "/health")
    old = [
        {"id": f"id{n}", "time": n, "system": "老师" if n == 1 else "",
         "messages": [{"role": "user", "content": f"第{n}段"}]} for n in range(3)]
    one.run(f"localStorage.setItem('tinyseek.conversations', {json.dumps(json.dumps(old))})")
    for tab in tabs:
        tab.run("sessionStorage.clear()")
        visit(tab, one.server.url)
        assert titles(tab) == ["第2段", "第1段", "第0段"]
    assert one.run("localStorage.getItem('tinyseek.system.id1')") == "老师" and one.run(
        "localStorage.getItem('tinyseek.conversations')") is None


def interleave(tabs, count, seed):
    """Random acts in both tabs -> (ids that must be there, ids that must not, {id: questions asked in it})."""
    rng, alive, dead, asked = random.Random(seed), set(), set(), {}
    for number in range(count):
        tab, act = rng.choice(tabs), rng.choices(["send", "new", "open", "delete", "rename", "reload", "wait"],
                                                 [6, 4, 3, 2, 2, 2, 1])[0]
        shown = tab.run("document.querySelectorAll('.entry').length")
        place = rng.randrange(shown) if shown else 0
        if act in ("send", "new"):
            if act == "new":
                tab.run("document.querySelector('#new-chat').click()")
            text = f"问{number}"
            where = send(tab, text)
            if where and where not in dead:
                alive.add(where)
                asked.setdefault(where, []).append(text)
        elif act == "reload":
            visit(tab, tabs[0].server.url)
        elif act == "wait":
            quiet(tab)
        elif shown and act == "open":
            tab.run(f"document.querySelectorAll('.entry')[{place}]?.click()")
        elif shown and act == "rename":
            tab.run(f"document.querySelectorAll('.list [aria-label^=改名]')[{place}]?.click()")
            tab.run(NAME % f"名{number}")
        elif shown and act == "delete":
            before = set(tab.run(KEPT))
            tab.run(f"document.querySelectorAll('.list [aria-label^=删除]')[{place}]?.click()")
            tab.run("document.querySelector('.list [data-sure]')?.click()")
            gone = before - set(tab.run(KEPT))
            dead, alive = dead | gone, alive - gone
        time.sleep(rng.choice([0, 0, 0.02, 0.1]))
    return alive, dead, asked


def check_interleaving(tabs, count, seed):
    alive, dead, asked = interleave(tabs, count, seed)
    for tab in tabs:
        quiet(tab)
    time.sleep(0.5)
    for tab in tabs:
        visit(tab, tabs[0].server.url)
    kept = tabs[0].run(KEPT)
    assert not dead & set(kept) and alive <= set(kept)
    said = {text for texts in kept.values() for text in texts}
    assert not [text for where in alive for text in asked[where] if text not in said]
    assert len(titles(tabs[0])) == len(titles(tabs[1])) == len(kept)
    return len(kept), len(dead)


def test_random_acts_in_two_tabs_lose_and_revive_nothing(tabs):
    check_interleaving(tabs, 40, 1)


@pytest.mark.slow
def test_200_random_acts_in_two_tabs_lose_and_revive_nothing(tabs):
    kept, dead = check_interleaving(tabs, 200, 2)
    assert kept and dead
