"""A headless Chromium driven through its DevTools protocol: no driver, no framework, one websocket."""
import base64
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ["--headless=new", "--remote-debugging-port=0", "--remote-allow-origins=*", "--no-first-run",
         "--no-default-browser-check",
         "--disable-gpu", "--disable-dev-shm-usage", "--disable-extensions", "--disable-background-networking",
         "--disable-component-update",
         "--disable-sync", "--disable-quic", "--disable-renderer-backgrounding",
         "--disable-backgrounding-occluded-windows", "--hide-scrollbars",
         "--mute-audio", "--lang=zh-CN"]
KEYS = {"Enter": 13, "Escape": 27, "ArrowRight": 39, "ArrowUp": 38, "Tab": 9}


class Browser:
    """One tab. Everything waits for the page, up to `patience` seconds."""

    def __init__(self, socket, patience=float(os.environ.get("PATIENCE", 120)), port=None):
        self.socket, self.patience, self.number, self.events, self.port = socket, patience, 0, [], port
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **parameters):
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self.events.append(message)

    def open(self, url):
        """Go there and wait for the load event: what is asked of a page that is just being left may never be
        answered."""
        before = len(self.events)
        if "loaderId" in self.send("Page.navigate", url=url):          # not where only the part after # changes
            while not any(e["method"] == "Page.loadEventFired" for e in self.events[before:]):
                self.events.append(json.loads(self.socket.recv()))

    def run(self, expression):
        """The value of a JavaScript expression (a promise is waited for)."""
        result = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True,
                           userGesture=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression):
        """Until the expression is true -> its value (True for an element, which has none here)."""
        end, asked = time.monotonic(
            ) + self.patience, f"((found) => found instanceof Node ? true : found)({expression})"
        while not (value := self.run(asked)):
            assert time.monotonic() < end, f"never true: {expression}\n{self.run('document.body.innerText')[:2000]}"
            time.sleep(0.05)
        return value

    def click(self, selector):
        """A real click in the middle of the element, which must be there to be seen."""
        box = self.wait(f"""(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;
            e.scrollIntoView({{block: "nearest"}}); const r = e.getBoundingClientRect();
            return r.width ? {{x: r.x + r.width / 2, y: r.y + r.height / 2}} : null }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **box)

    def type(self, text):
        self.send("Input.insertText", text=text)

    def key(self, name, modifiers=0):
        """modifiers: 1 Alt, 2 Ctrl, 8 Shift."""
        code = KEYS.get(name, ord(name[0].upper()))
        common = {"key": name, "code": name if name in KEYS else "Key" + name.upper(), "windowsVirtualKeyCode": code,
                  "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **({"text": "\r"} if name == "Enter" else {}))
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def text(self, selector):
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)")

    def size(self, width, height, phone=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=2 if phone else 1, mobile=phone)

    def scheme(self, name):
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    @contextlib.contextmanager
    def another_tab(self):
        """A second tab of the same browser, with the same storage -> Browser."""
        import urllib.request

        import websocket
        with urllib.request.urlopen(
                urllib.request.Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT"),
                timeout=60) as answer:
            target = json.load(answer)
        socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=120, suppress_origin=True)
        try:
            yield Browser(socket, self.patience, self.port)
        finally:
            socket.close()
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/json/close/{target['id']}", timeout=60).close()

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def complaints(self):
        """Errors of scripts and of the content policy so far."""
        self.run("0")
        found = [e["params"] for e in self.events if e["method"] == "Runtime.exceptionThrown"]
        return found + [e["params"]["entry"]["text"] for e in self.events
                        if e["method"] == "Log.entryAdded" and e["params"]["entry"]["level"] == "error"]

    def foreign_requests(self, url):
        """Addresses asked for that are not the server's own."""
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [one for one in asked if not one.startswith((url, "data:", "about:", "blob:"))]


@contextlib.contextmanager
def browsing():
    import websocket
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = FLAGS + (["--no-sandbox"] if os.name != "nt" and os.geteuid() == 0 else [])
        process = subprocess.Popen([CHROMIUM, *flags, f"--user-data-dir={profile}", "about:blank"],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = _wait_for(Path(profile) / "DevToolsActivePort", process)
            page = _first_page(port)
            socket = websocket.create_connection(page, timeout=120, suppress_origin=True)
            yield Browser(socket, port=port)
            socket.close()
        finally:
            process.kill()
            process.wait()


def _wait_for(path, process):
    end = time.monotonic() + 180
    while not (path.exists() and path.read_text().strip()):
        assert process.poll() is None and time.monotonic() < end, "Chromium did not start"
        time.sleep(0.1)
    return int(path.read_text().split()[0])


def _first_page(port):
    import urllib.request
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=60) as answer:
        return next(t["webSocketDebuggerUrl"] for t in json.load(answer) if t["type"] == "page")
