"""The outermost layer: who may ask, and headers for every answer. No exception passes it."""

import asyncio
import hmac
import ipaddress
import sys
import traceback
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

from chat_agent.server.errors import ApiError, internal, shown

OPEN = ("/", "/health", "/favicon.ico")  # these and /static/ need no key; they tell nothing
CSP = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
       "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
HEADERS = [(b"content-security-policy", CSP.encode()), (b"x-content-type-options", b"nosniff"),
           (b"referrer-policy", b"no-referrer"), (b"x-frame-options", b"DENY"),
           (b"cross-origin-resource-policy", b"same-origin"), (b"cross-origin-opener-policy", b"same-origin")]
OURS = b"x-tinyseek-ignored, x-tinyseek-context, x-tinyseek-dropped-turns, retry-after"
# endings under which nobody can register a name
NEARBY = ("local", "lan", "home", "localdomain", "home.arpa", "internal")


@dataclass(frozen=True)
class Rules:
    """key: None or the API key; hosts: names, beside addresses and localhost, under which this server may be asked
    without a key; origins: web pages of other sites that may ask, "*" for all; heard_out: bytes of a refused body that
    are read to its end."""

    key: str | None = None
    hosts: tuple = ()
    origins: tuple = ()
    heard_out: int = 4 << 20


class Access:
    """Wraps an ASGI application."""

    def __init__(self, app, rules=Rules()):
        self.app, self.rules, self.key = app, rules, rules.key.encode() if rules.key else None

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, started, body = _first_of_each(scope), False, Body(receive)

        async def sending(message):
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                if message["status"] >= 400:
                    await body.hear_out(self.rules.heard_out)
                message = {**message, "headers": [*message["headers"], *HEADERS, *self._shared(headers)]}
            await send(message)
        try:
            if _is_preflight(scope, headers):
                return await self._allow(headers, sending)
            self.check(scope, headers)
            await self.app(scope, body.receive, sending)
        except ClientDisconnect:
            return
        except Exception as error:
            if not isinstance(error, ApiError):
                traceback.print_exception(error, file=sys.stderr)
                error = internal()
            if not started:
                await respond(error, sending)

    def check(self, scope, headers):
        """ApiError 401 or 403 for those who may not ask."""
        path = scope["path"]
        if self.key:
            free = path in OPEN or path.startswith("/static/")
            if not free and not self._knows_key(headers.get(b"authorization", b"")):
                said = "密钥不对" if b"authorization" in headers else "这个服务要密钥"
                raise ApiError(401, f"{said}。请带上请求头 Authorization: Bearer 密钥。", "invalid_api_key",
                               kind="authentication_error")
        elif not self._is_ours(headers.get(b"host", b"")):
            name = shown(headers.get(b"host", b"").decode("latin-1"))
            raise ApiError(403, f"这个服务不知道自己叫 {name}。没有密钥时只认 IP 地址、localhost 和本机的名字；要用别的名字，"
                                "启动时加 --allow_host 名字，或加 --api_key。", "host_not_allowed")
        if scope["method"] not in ("GET", "HEAD") and self._foreign_form(headers):
            raise self._other_site(headers[b"origin"])

    def _knows_key(self, given):
        scheme, _, key = given.partition(b" ")
        return hmac.compare_digest(key.strip(), self.key) and scheme.lower() == b"bearer"

    def _is_ours(self, host):
        """Whether a Host header names an address or this machine: a foreign name that resolves to us is DNS
        rebinding."""
        try:
            name = (urlsplit("//" + host.decode("ascii")).hostname or "").rstrip(".")
            if name == "localhost" or name.endswith(".localhost") or {name, "*"} & set(self.rules.hosts):
                return True
            ipaddress.ip_address(name)
        except ValueError:
            return host == b""
        return True

    # ---- pages of other sites

    def _allows(self, origin):
        return "*" in self.rules.origins or origin.decode("latin-1").lower() in self.rules.origins

    def _foreign_form(self, headers):
        """A page of another site can send forms and plain text unasked (not JSON: the browser would ask us first)."""
        origin, kind = headers.get(b"origin"), headers.get(b"content-type", b"").partition(b";")[0]
        if origin is None or kind.strip().lower() == b"application/json":
            return False
        return origin.rpartition(b"//")[2] != headers.get(b"host") and not self._allows(origin)

    def _other_site(self, origin):
        site = shown(origin.decode("latin-1"))
        return ApiError(403, f"网页 {site} 没有得到允许，不能用这个服务。若是你自己要用的网页，启动时加 --allow_origin {site}", "cross_site")

    async def _allow(self, headers, send):
        """Answer a browser that asks whether a page of another site may ask. It never brings the key: that comes with
        the request."""
        origin = headers[b"origin"]
        if origin.rpartition(b"//")[2] != headers.get(b"host") and not self._allows(origin):
            raise self._other_site(origin)
        wanted = headers.get(b"access-control-request-headers", b"authorization, content-type")
        answer = [(b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
                  (b"access-control-allow-headers", wanted), (b"access-control-max-age", b"600"),
                  (b"content-length", b"0")]
        if headers.get(b"access-control-request-private-network") == b"true":
            answer.append((b"access-control-allow-private-network", b"true"))
        await send({"type": "http.response.start", "status": 204, "headers": answer})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _shared(self, headers):
        """Headers that let an allowed page read the answer, also one that refuses."""
        origin = headers.get(b"origin")
        if not self.rules.origins or origin is None:
            return [(b"vary", b"origin")] if self.rules.origins else []
        if not self._allows(origin):
            return [(b"vary", b"origin")]
        return [(b"access-control-allow-origin", origin), (b"vary", b"origin"),
                (b"access-control-expose-headers", OURS)]


class Body:
    """The body of a request as it comes. Who is still sending does not hear an answer, so a refusal waits for the end;
    nothing is kept."""

    def __init__(self, receive):
        self._receive, self.more = receive, True

    async def receive(self):
        message = await self._receive()
        self.more = message.get("more_body", False)
        return message

    async def hear_out(self, most):
        while self.more and most > 0:
            most -= len((await self.receive()).get("body", b"")) or 1
            await asyncio.sleep(0)


def _first_of_each(scope):
    headers = {}
    for name, value in scope["headers"]:
        headers.setdefault(name, value)
    return headers


def _is_preflight(scope, headers):
    return scope["method"] == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers


def own_names(hostname):
    """The names under which others on this network may know this machine."""
    name = hostname.lower().rstrip(".")
    return {name, *(f"{name.partition('.')[0]}.{ending}" for ending in NEARBY)} if name else set()


async def respond(error, send):
    body = error.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()),
               (b"cache-control", b"no-store")]
    headers += [(name.encode(), value.encode()) for name, value in error.headers().items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
