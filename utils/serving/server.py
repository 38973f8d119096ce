"""A model behind an OpenAI-compatible endpoint: a gate before engines of llama.cpp.

    with serve(gguf, api_key="a-secret") as url:
        ...                               # base_url=url for any client

The gate is this process, the engines are others: one a core, each with one thread. The
gate checks what comes in, keeps a bounded number of requests and refuses the rest with
429 at once. It gives each request to the engine that is least busy, and starts an
engine again that died or hangs. So no request can end the service. `python -m
utils.serving` is the same by hand; it logs a JSON line a request, without its text.
"""

import asyncio
import contextlib
import hashlib
import hmac
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

from utils.serving import request as requests
from utils.serving.engine import Engine

MAX_BODY = 1 << 18  # bytes of a request
UPLOAD = 10.0  # seconds in which a request must have arrived
ANSWER = 120.0  # seconds that an engine may take for an answer
WAIT = 120.0  # seconds that a request may wait for an engine
QUEUE = 30.0  # seconds of waiting to expect at most; readers that stall make it longer
DRAIN = 30.0  # seconds in which a client must have read its answer
BUFFER = 1 << 22  # bytes of an answer that a slow reader may leave unread
START = 180.0  # seconds that the start may take

Events = AsyncIterator[dict[str, Any]]
# Kept with a request: what is logged of it, and the headers of its answer.
RECORD, MARKS = web.RequestKey("record", dict), web.RequestKey("marks", dict)


@dataclass(frozen=True)
class Settings:
    """What is served, and its limits."""

    gguf: str
    name: str  # of the model, in requests
    keys: tuple[str, ...] = ()  # what clients may send; none: anybody may ask
    engines: int = 1
    slots: int = 2  # conversations that one engine answers at once
    waiting: int = 16  # requests that may wait besides; the next one gets a 429
    max_tokens: int = 256  # longest reply, whatever a request asks for
    context: int = 1024  # tokens of a conversation, its reply included
    grace: float = 30.0  # seconds that an orderly stop waits for answers


class ApiError(Exception):
    """A refusal, which becomes OpenAI's form of an error."""

    def __init__(
        self, status: int, message: str, param: str | None = None, **headers: str
    ) -> None:
        super().__init__(message)
        self.status, self.param = status, param
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}

    @property
    def body(self) -> dict[str, Any]:
        """The error as OpenAI writes it."""
        kinds = {401: "authentication_error", 404: "not_found_error"}
        kinds |= {429: "rate_limit_error", 503: "overloaded_error"}
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kinds.get(self.status, kind)}
        return {"error": error | {"param": self.param, "code": self.status}}

    def response(self) -> web.Response:
        """Make an answer of the error."""
        return web.json_response(self.body, status=self.status, headers=self.headers)


class Gate:
    """Checks requests, spreads them over engines, and keeps the engines running."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.places = settings.engines * settings.slots
        self.release = sha256(settings.gguf)[:12]  # which file answered
        self.engines: list[Engine | None] = [None] * settings.engines
        self.inside = 0  # requests that are answered or wait
        self.seconds, self.answers = 1.0, 0  # of an answer, lately; and how many
        self.next_place = 0.0  # when the one who is refused next will find room
        self.restarts, self.counts, self.tokens = 0, {}, 0
        self._turn, self._changed = asyncio.Lock(), asyncio.Event()

    def app(self) -> web.Application:
        """Make the aiohttp application."""
        app = web.Application(client_max_size=MAX_BODY, middlewares=[self._outer])
        app.cleanup_ctx.append(self._run_engines)
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{name}", self.models)
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.metrics)
        return app

    # Engines

    async def _run_engines(self, app: web.Application) -> AsyncIterator[None]:
        # A kept connection may be closed just when a request is sent: always a new one.
        connector = TCPConnector(limit=0, force_close=True)
        limit = ClientTimeout(total=ANSWER)
        async with ClientSession(connector=connector, timeout=limit) as self._session:
            job = asdict(self.settings)
            starts = [Engine.start(job) for _ in self.engines]
            self.engines = list(await asyncio.gather(*starts))
            keepers = [
                asyncio.create_task(self._keep_running(i, job))
                for i in range(len(self.engines))
            ]
            yield
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)

    async def _keep_running(self, index: int, job: dict[str, Any]) -> None:
        """Watch an engine, and start it again when it is gone."""
        while True:
            why = await self.engines[index].watch(self._session)
            self.engines[index], pause = None, 0.0
            self.restarts += 1
            say(event="engine restarts", engine=index, why=why)
            while self.engines[index] is None:
                await asyncio.sleep(pause)
                pause = min(2 * pause + 1, 60)
                with contextlib.suppress(RuntimeError, OSError):
                    self.engines[index] = await Engine.start(job)
            self._changed.set()

    @contextlib.asynccontextmanager
    async def _place(self) -> AsyncIterator[Engine]:
        """Wait in turn for the engine that is least busy."""
        try:
            async with asyncio.timeout(WAIT), self._turn:
                while not (free := self._free()):
                    self._changed.clear()
                    await self._changed.wait()
                engine = min(free, key=lambda one: one.in_flight)
                engine.in_flight += 1
        except TimeoutError:
            why = f"no engine was free within {WAIT:.0f} s; try again"
            raise ApiError(503, why, Retry_After="5") from None
        try:
            yield engine
        finally:
            engine.in_flight -= 1
            self._changed.set()

    def _free(self) -> list[Engine]:
        ready = [one for one in self.engines if one]
        return [one for one in ready if one.in_flight < self.settings.slots]

    # Requests

    @web.middleware
    async def _outer(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Give the request an id, and log what became of it."""
        started = time.monotonic()
        given = request.headers.get("X-Request-Id", "")
        known = re.fullmatch(r"[\w.:-]{1,64}", given)
        name = given if known else f"req_{uuid.uuid4().hex}"
        record = {"id": name, "status": 499}  # the status where the client hangs up
        request[RECORD] = record
        request[MARKS] = {"X-Request-Id": name, "X-Model-Release": self.release}
        try:
            response = await self._answered(request, handler)
            record["status"] = response.status
        finally:
            if request.path not in ("/health", "/metrics"):
                self._log(record, time.monotonic() - started)
        if not response.prepared:
            response.headers.update(request[MARKS])
        return response

    async def _answered(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Check the key, and answer errors as OpenAI does."""
        try:
            if request.path != "/health":
                self._check_key(request)
            return await handler(request)
        except ApiError as error:
            return error.response()
        except web.HTTPException as error:  # no such path, too large
            return ApiError(error.status, f"{error.reason}: {request.path}").response()
        except ConnectionError:
            # The client hung up, and reads no answer: aiohttp drops this one without a
            # word, where it would write an error's traceback into the log.
            return web.Response(status=499)
        except Exception:
            traceback.print_exc()
            why = "an error of this server"
            return ApiError(500, why, X_Should_Retry="false").response()

    def _log(self, record: dict[str, Any], seconds: float) -> None:
        status = record["status"]
        self.counts[status] = self.counts.get(status, 0) + 1
        self.tokens += record.get("tokens", 0)
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        say(time=now, **record, seconds=round(seconds, 3))

    def _check_key(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "")
        given = given.removeprefix("Bearer ").encode(errors="replace")
        known = [hmac.compare_digest(given, key.encode()) for key in self.settings.keys]
        if self.settings.keys and not any(known):
            raise ApiError(401, "a wrong API key, or none")

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """Answer a chat, whole or in a stream."""
        try:
            async with asyncio.timeout(UPLOAD):  # before a place is taken
                body = await request.read()
            asked = requests.parse(body)
        except TimeoutError:
            raise ApiError(
                408, f"the request took longer than {UPLOAD:.0f} s"
            ) from None
        except web.RequestPayloadError:
            raise ApiError(400, "the body cannot be read") from None
        except ValueError as error:
            message, param = (*error.args, None)[:2]
            raise ApiError(400, message, param) from None
        if asked.model != self.settings.name:
            raise ApiError(404, f"no model {asked.model!r}", "model")
        ahead = self.inside + 1 - self.places  # who would wait, this one included
        wait = ahead * self.seconds / self.places
        if ahead > self.settings.waiting or wait > QUEUE:
            raise self._refusal()
        self.inside += 1
        try:
            if asked.stream:
                response = await self._stream(request, asked)
            else:
                response = await self._whole(request, asked)
        finally:
            self.inside -= 1
        return await self._finish(request, response)

    async def _finish(
        self, request: web.Request, response: web.StreamResponse
    ) -> web.StreamResponse:
        """See that the client reads its answer, or drop it; no engine works by now."""
        if (transport := request.transport) is None:
            raise ConnectionResetError("the client hung up")
        try:
            async with asyncio.timeout(DRAIN):
                await response.prepare(request)
                transport.set_write_buffer_limits(0)  # now wait for the client
                await response.write_eof()
        except TimeoutError:
            transport.abort()
        transport.set_write_buffer_limits()
        return response

    def _refusal(self) -> ApiError:
        """Say when there will be room: each who is refused finds the next place."""
        now = time.monotonic()
        self.next_place = max(self.next_place, now) + self.seconds / self.places
        pause = min(60, math.ceil(self.next_place - now))
        why = f"{self.inside} requests are inside; try again in {pause} s"
        return ApiError(429, why, Retry_After=str(pause))

    async def _whole(
        self, request: web.Request, asked: requests.ChatRequest
    ) -> web.Response:
        """Answer in one piece; several choices are made one after the other."""
        payload, answers = asked.payload(self.settings.max_tokens), []
        for index in range(asked.n or 1):
            if index and "seed" in payload:
                payload["seed"] += 1
            async with contextlib.aclosing(self._ask(payload, request)) as events:
                answers += [event async for event in events]
        answer = answers[0]
        choices = [one["choices"][0] | {"index": i} for i, one in enumerate(answers)]
        replies = sum(one["usage"]["completion_tokens"] for one in answers)
        answer["choices"], usage = choices, answer["usage"]
        usage["completion_tokens"] = replies
        usage["total_tokens"] = usage["prompt_tokens"] + replies
        return web.json_response(answer, headers=request[MARKS])

    async def _stream(
        self, request: web.Request, asked: requests.ChatRequest
    ) -> web.StreamResponse:
        """Answer event by event, at the engine's pace, also where nobody reads."""
        response = web.StreamResponse(headers=request[MARKS])
        response.content_type = "text/event-stream"
        response.headers["Cache-Control"] = "no-cache"
        payload = asked.payload(self.settings.max_tokens)
        try:
            async with contextlib.aclosing(self._ask(payload, request)) as events:
                async for event in events:
                    if not response.prepared:
                        await response.prepare(request)
                        request.transport.set_write_buffer_limits(BUFFER)
                    if event.get("choices") or asked.wants_usage:
                        await response.write(_sse(event))
            await response.write(b"data: [DONE]\n\n")
        except ApiError as error:
            if not response.prepared:
                raise
            request[RECORD]["broken"] = True
            await response.write(_sse(error.body))
        return response

    async def _ask(self, payload: dict[str, Any], request: web.Request) -> Events:
        """Yield an engine's answer, whole or by events.

        An engine that is lost before anything came is replaced by another one, once: a
        request that ends two engines may be the reason.
        """
        record = request[RECORD]
        for attempt in (1, 2):
            begun = False
            async with self._place() as engine:
                started = time.monotonic()
                try:
                    async with self._answer(engine, payload) as events:
                        async for event in events:
                            begun = True
                            event["model"] = self.settings.name
                            event["system_fingerprint"] = f"fp_{self.release}"
                            event.pop("timings", None)
                            if usage := event.get("usage"):
                                said = usage["completion_tokens"]
                                record["tokens"] = record.get("tokens", 0) + said
                                record["prompt_tokens"] = usage["prompt_tokens"]
                            yield event
                    taken = time.monotonic() - started
                    self.answers += 1
                    share = max(0.1, 1 / self.answers)  # of this one in the mean
                    self.seconds += share * (taken - self.seconds)
                    return
                except TimeoutError:
                    why = f"the answer took longer than {ANSWER:.0f} s"
                    raise ApiError(503, why, X_Should_Retry="false") from None
                except (ClientError, ConnectionError) as error:
                    record["lost"] = attempt
                    why = f"the engine was lost ({type(error).__name__})"
                    if begun:
                        raise ApiError(503, f"{why} in mid-answer") from None
            # Not before it has noticed that the engine is gone.
            await asyncio.sleep(0.1)
        raise ApiError(500, f"{why} twice at this request", X_Should_Retry="false")

    @contextlib.asynccontextmanager
    async def _answer(self, engine: Engine, payload: dict[str, Any]) -> Any:
        """Post to an engine; yields the iterator over what it says."""
        url = engine.address + "/v1/chat/completions"
        await self._leave_room(engine, payload)
        how = {"json": payload, "headers": engine.headers, "read_bufsize": 1 << 18}
        async with self._session.post(url, **how) as answer:
            if answer.status != 200:
                raise _engines_error(answer.status, await answer.read())
            yield _events(answer, payload["stream"])

    async def _leave_room(self, engine: Engine, payload: dict[str, Any]) -> None:
        """Check that prompt and reply fit into the context."""
        context, reply = self.settings.context, payload["max_tokens"]
        size = sum(len(one["content"]) for one in payload["messages"])
        if size > 16 * context:  # more characters than it may take to count
            raise ApiError(
                400, f"the prompt has {size:,} characters: too long", "messages"
            )
        url = engine.address + "/v1/chat/completions/input_tokens"
        body = {"messages": payload["messages"]}
        async with self._session.post(url, json=body, headers=engine.headers) as answer:
            said = await answer.read()
        if answer.status != 200:
            raise _engines_error(answer.status, said)
        tokens = json.loads(said)["input_tokens"]
        if tokens + reply > context:
            why = f"the prompt has {tokens:,} tokens, and the reply may have {reply}; "
            raise ApiError(400, f"{why}together at most {context:,}", "messages")

    async def models(self, request: web.Request) -> web.Response:
        """List the one model, or describe it."""
        name = request.match_info.get("name")
        model = {"id": self.settings.name, "object": "model", "owned_by": "you"}
        model |= {"created": 0, "release": self.release}
        if name is None:
            return web.json_response({"object": "list", "data": [model]})
        if name != self.settings.name:
            raise ApiError(404, f"no model {name!r}", "model")
        return web.json_response(model)

    async def health(self, request: web.Request) -> web.Response:
        """Say whether an engine is ready: 200, else 503."""
        ready = sum(1 for one in self.engines if one)
        body = {"status": "ok" if ready else "no engine", "engines": ready}
        return web.json_response(body, status=200 if ready else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """Write counters in Prometheus' format."""
        working = sum(one.in_flight for one in self.engines if one)
        lines = [
            f'serving_requests_total{{status="{status}"}} {n}'
            for status, n in sorted(self.counts.items())
        ]
        lines += [
            f"serving_tokens_total {self.tokens}",
            f"serving_answering {working}",
            f"serving_waiting {max(0, self.inside - working)}",
            f"serving_engines_ready {sum(1 for one in self.engines if one)}",
            f"serving_engine_restarts_total {self.restarts}",
            f"serving_answer_seconds {self.seconds:.3f}",
        ]
        return web.Response(text="\n".join(lines) + "\n")


async def _events(answer: Any, stream: bool) -> Events:
    """Yield the JSON objects of an engine's answer."""
    if not stream:
        yield json.loads(await answer.read())
        return
    while event := await answer.content.readuntil(b"\n\n"):
        text = event.strip().removeprefix(b"data: ")
        if text == b"[DONE]":
            return
        if text.startswith(b"{"):
            yield json.loads(text)
    raise ConnectionError("the stream ended early")


def _engines_error(status: int, body: bytes) -> ApiError:
    """Pass on why an engine refused; what broke it is not tried again."""
    try:
        message = json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "the engine refused"
    if status >= 500:
        return ApiError(500, message, X_Should_Retry="false")
    return ApiError(400, message)


def _sse(event: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(event).encode() + b"\n\n"


def sha256(file: str | Path) -> str:
    """Return the digest of a file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def say(**fields: Any) -> None:
    """Write a line of the log."""
    with contextlib.suppress(OSError):  # a full disk, or nobody reads it
        print(json.dumps(fields), flush=True)


def cores() -> int:
    """Count the cores that this process may use, in a container too."""
    known = hasattr(os, "sched_getaffinity")
    count = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):  # no such file; no quota
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, int(quota) // int(period)))
    return count


async def run(settings: Settings, host: str, port: int, until_eof: bool) -> None:
    """Serve until SIGTERM or Ctrl-C, or until the input ends; then finish in order."""
    # Each connection is an open file; 1,024 of them, as is usual, are soon taken.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a system with limits of its own
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    gate = Gate(settings)
    runner = web.AppRunner(
        gate.app(),
        # Cancelled with its client, so that nobody computes what nobody reads.
        handler_cancellation=True,
        access_log=None,
        shutdown_timeout=settings.grace,
        keepalive_timeout=30.0,  # also for a request's head
        lingering_time=1.0,
    )
    await runner.setup()
    site = web.TCPSite(runner, host, port, backlog=1024)
    await site.start()
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_eof:
        loop.add_reader(sys.stdin.fileno(), stop.set)
    port = site._server.sockets[0].getsockname()[1]
    pids = [one.process.pid for one in gate.engines]
    url = f"http://{host}:{port}/v1"
    say(event="serving", url=url, model=settings.name, engines=pids)
    await stop.wait()
    if until_eof:
        loop.remove_reader(sys.stdin.fileno())
    say(event="stopping", grace=settings.grace)
    await runner.cleanup()


@contextlib.contextmanager
def serve(
    gguf: Path | str,
    api_key: str | None = None,
    port: int = 0,
    log: Path | str | None = None,
    **settings: Any,
) -> Iterator[str]:
    """Serve a GGUF file in processes of their own; yields the base URL, ending in /v1.

    They end with the block, and also if this process dies.

    Args:
        gguf: the file, as `utils.serving.export` makes it.
        api_key: what clients must send; None: anything goes.
        port: on 127.0.0.1; 0 takes a free one.
        log: a file for the server's log.
        settings: further `Settings`, such as slots; name is tidewater, and there are
            as many engines as cores, if they do not say otherwise.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the server did not start; the message ends with what it said.

    """
    if not Path(gguf).is_file():
        raise FileNotFoundError(f"no model file {gguf}; export.to_gguf makes one")
    flags = {"name": "tidewater", "port": port, "grace": 1} | settings
    words = [f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()]
    env = os.environ | {"SERVING_API_KEY": api_key or ""}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        path = Path(log or f"{folder}/log")
        process = subprocess.Popen(
            [sys.executable, "-m", "utils.serving", str(gguf), "--until-eof", *words],
            env=env,
            stdin=subprocess.PIPE,
            stdout=stack.enter_context(path.open("w")),
            stderr=subprocess.STDOUT,
            cwd=Path(__file__).parents[2],
        )
        try:
            yield _wait_for_start(process, path)
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.stdin.close()
            process.wait()


def _wait_for_start(process: subprocess.Popen, log: Path) -> str:
    """Return the address that the server writes to its log when it has started."""
    late = time.monotonic() + START
    while time.monotonic() < late and process.poll() is None:
        for line in log.read_text(errors="replace").splitlines():
            if line.startswith('{"event": "serving"') and line.endswith("}"):
                return json.loads(line)["url"]
        time.sleep(0.05)
    last = log.read_text(errors="replace").strip().splitlines()[-5:]
    raise RuntimeError(f"the server did not start. It said: {last}")
