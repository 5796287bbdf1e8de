"""The report as one HTML file: style, scripts and data inside, nothing from outside."""
import json
from pathlib import Path

from tools.html_report.subjects import finite

ASSETS = Path(__file__).resolve().parent / "static"


def page(data, title):
    """data: plain values -> the whole page as a string. The policy in it forbids the browser every request."""
    text = json.dumps(finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    parts = {"TITLE": _escaped(title), "STYLE": _asset("style.css"), "CHARTS": _asset("charts.js"),
             "PAGE": _asset("page.js"),
             "DATA": text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")}
    html = _asset("page.html")
    before, *rest = html.split("{{")
    return before + "".join(parts[piece.partition("}}")[0]] + piece.partition("}}")[2] for piece in rest)


def _asset(name):
    return (ASSETS / name).read_text(encoding="utf-8")


def _escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
