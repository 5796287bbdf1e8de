"""The routes. What is behind each of them lies in the other files."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from chat_agent.server.access import Access, Rules
from chat_agent.server.errors import ApiError, bad, internal
from chat_agent.server.glass import Glass, cut, inside
from chat_agent.server.models import described, exam_of
from chat_agent.server.replies import NO_STORE, Desk
from chat_agent.server.schemas import parsed

STATIC = Path(__file__).resolve().parents[1] / "static"
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
         ".js": "text/javascript; charset=utf-8"}
REASONS = {404: ("这里没有这个地址。", "not_found"), 405: ("这个地址不支持这种请求方法。", "method_not_allowed")}


def create_app(models, engine, curves, limits, pool, rules=Rules()):
    """An ASGI application. engine: started by the caller; curves: Curves; pool: an executor for what takes time."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    _add_page(app)
    desk = Desk(models, engine, limits, pool)
    _add_models(app, models, desk, pool)
    _add_tools(app, models, desk)
    _add_errors(app)

    @get(app, "/health")
    async def health():
        alive = engine.alive
        return JSONResponse({"status": "ok" if alive else "down"}, 200 if alive else 503, NO_STORE)

    @get(app, "/curves")
    async def list_curves():
        return Response(await curves.listing(), headers=NO_STORE, media_type="application/json")

    @get(app, "/curves/{name}")
    async def one_curve(name: str):
        return Response(await curves.read(name), headers=NO_STORE, media_type="application/json")

    return Access(app, rules)


def get(app, path):
    """What can be read can also be asked for by its headers alone, as load balancers do."""
    return app.api_route(path, methods=["GET", "HEAD"])


def _add_models(app, models, desk, pool):
    async def look():
        await asyncio.get_running_loop().run_in_executor(pool, models.look)

    @get(app, "/v1/models")
    async def list_models():
        await look()
        return JSONResponse({"object": "list", "data": [described(served) for served in models]}, headers=NO_STORE)

    @get(app, "/v1/models/{name:path}")
    async def one_model(name: str):
        await look()
        return JSONResponse(described(models.named(name)), headers=NO_STORE)

    @get(app, "/exam/{name:path}")
    async def exam(name: str):
        return JSONResponse({"questions": exam_of(models.named(name))}, headers=NO_STORE)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request):
        return await desk.answer(request, chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request):
        return await desk.answer(request, chat=False)

    glass = Glass(models, desk.limits)

    @app.post("/glass")
    async def look_inside(request: Request):
        return JSONResponse(await glass.run(inside, await desk.bodies.read(request)), headers=NO_STORE)

    @app.post("/tokenize")
    async def tokenize(request: Request):
        return JSONResponse(await glass.run(cut, await desk.bodies.read(request)), headers=NO_STORE)


def _add_tools(app, models, desk):
    """What the page asks to have carried out, in threads of their own: a tool may take seconds."""
    pool = ThreadPoolExecutor(4, "tools")

    @app.post("/tools")
    async def use(request: Request):
        asked = parsed(await desk.bodies.read(request))
        if models.box is None:
            raise ApiError(404, "这个服务没有工具；启动时加 --tools。", "not_found")
        name, arguments = asked.get("name"), asked.get("arguments")
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise bad("请求应是 {\"name\": 工具名, \"arguments\": 对象}。", "name")
        loop = asyncio.get_running_loop()
        result, good = await loop.run_in_executor(pool, models.box.run, name, arguments)
        return JSONResponse({"result": result, "ok": good}, headers=NO_STORE)


def _add_errors(app):
    @app.exception_handler(ApiError)
    async def refuse(_, error):
        return JSONResponse(error.content(), error.status, NO_STORE | error.headers())

    @app.exception_handler(Exception)
    async def broken(_, error):
        return JSONResponse(internal().content(), 500, NO_STORE)                  # the traceback goes to our log

    @app.exception_handler(HTTPException)
    async def no_such_route(_, error):
        message, code = REASONS.get(error.status_code, ("请求不对。", None))
        return JSONResponse(ApiError(error.status_code, message, code).content(), error.status_code, NO_STORE)


def _add_page(app):
    """The page's files, read once: what is not in this folder at the start is never served."""
    files = {path.name: path.read_bytes() for path in sorted(STATIC.iterdir()) if path.suffix in KINDS}

    def give(name):
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=KINDS[Path(name).suffix], headers={"cache-control": "no-cache"})

    @get(app, "/")
    async def page():
        return give("index.html")

    @get(app, "/favicon.ico")                            # browsers ask for it beside every address
    async def icon():
        return give("icon.svg")

    @get(app, "/static/{name}")
    async def static(name: str):
        return give(name)
