"""The outermost layer: who may ask, and headers for every answer. No exception passes it."""

import hmac
import ipaddress
import sys
import traceback
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect

from chat_agent.server.errors import ApiError, internal

OPEN = ("/", "/health", "/favicon.ico")  # these and /static/ need no key; they tell nothing
CSP = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; manifest-src 'self'; "
       "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
HEADERS = [(b"content-security-policy", CSP.encode()), (b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"),
           (b"x-frame-options", b"DENY"), (b"cross-origin-resource-policy", b"same-origin"),
           (b"cross-origin-opener-policy", b"same-origin")]


class Access:
    """Wraps an ASGI application. key: None or the API key; local_only: bound to this machine alone."""

    def __init__(self, app, key=None, local_only=True):
        self.app, self.key, self.local_only = app, key.encode() if key else None, local_only

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started = False

        async def sending(message):
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message = {**message, "headers": [*message["headers"], *HEADERS]}
            await send(message)
        try:
            self.check(scope)
            await self.app(scope, receive, sending)
        except ClientDisconnect:
            return
        except Exception as error:
            if not isinstance(error, ApiError):
                traceback.print_exception(error, file=sys.stderr)
                error = internal()
            if not started:
                await respond(error, sending)

    def check(self, scope):
        """ApiError 401 or 403 for those who may not ask."""
        headers = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, value)
        path = scope["path"]
        if self.key:
            if path not in OPEN and not path.startswith("/static/") and not self._knows_key(headers.get(b"authorization", b"")):
                raise ApiError(401, "API 密钥不对。请带上请求头 Authorization: Bearer 密钥。", "invalid_api_key",
                               kind="authentication_error")
        elif self.local_only and not _local(headers.get(b"host", b"")):
            raise ApiError(403, "这个服务只认本机的名字（127.0.0.1、localhost）。要用别的域名，请加 --api_key 启动。", "host_not_allowed")
        if scope["method"] not in ("GET", "HEAD") and _foreign_form(headers):
            raise ApiError(403, "别的网站不能替你提问。请求应带 Content-Type: application/json。", "cross_site")

    def _knows_key(self, given):
        scheme, _, key = given.partition(b" ")
        return hmac.compare_digest(key.strip(), self.key) and scheme.lower() == b"bearer"


def _local(host):
    """Whether a Host header names an address or this machine: a foreign name that resolves to us is DNS rebinding."""
    try:
        name = urlsplit("//" + host.decode("ascii")).hostname or ""
        if name == "localhost" or name.endswith(".localhost"):
            return True
        ipaddress.ip_address(name)
    except ValueError:
        return host == b""
    return True


def _foreign_form(headers):
    """A page of another site can send forms and plain text unasked (not JSON: the browser would ask us first)."""
    origin = headers.get(b"origin")
    if origin is None or headers.get(b"content-type", b"").partition(b";")[0].strip().lower() == b"application/json":
        return False
    return origin.rpartition(b"//")[2] != headers.get(b"host")


async def respond(error, send):
    body = error.body()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), (b"cache-control", b"no-store")]
    headers += [(name.encode(), value.encode()) for name, value in error.headers().items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
