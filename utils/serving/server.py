"""A model behind an OpenAI-compatible endpoint on this machine.

    with serve(gguf, api_key="a-secret") as url:
        ...                               # base_url=url for any client

Engine and protocol are those of llama.cpp's server. It queues without limit, so that
under load everybody waits for ever longer. Therefore a concurrency limiter stands
before it: it lets a bounded number of requests in and answers 429 to the others.
"""

import asyncio
import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

CONTEXT = 1024  # tokens of one conversation, its reply included
SILENT = 120.0  # seconds that the engine may be mute
START = 60.0  # seconds that the start may take


class ConcurrencyLimiter:
    """Passes requests on to a server; at most `capacity` questions are in flight.

    A client that hangs up frees its place, and the server stops working for it.
    """

    def __init__(self, upstream: str, capacity: int) -> None:
        self.upstream, self.capacity, self.in_flight = upstream, capacity, 0

    def app(self) -> web.Application:
        """Make the aiohttp application, which takes requests of up to a megabyte."""
        app = web.Application(client_max_size=1 << 20)
        app.cleanup_ctx.append(self._connect)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def _connect(self, app: web.Application) -> AsyncIterator[None]:
        # A kept connection may be closed just when a request is sent: always a new one.
        connector = TCPConnector(limit=0, force_close=True)
        # No limit on an answer, but one on silence: what hangs frees its place.
        limit = ClientTimeout(total=None, sock_read=SILENT)
        async with ClientSession(connector=connector, timeout=limit) as self._session:
            yield

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Refuse a request, or pass it on and its answer back."""
        if not request.path.startswith(("/v1/", "/health", "/metrics")):
            return _error(404, "not_found_error", f"no such path: {request.path}")
        if request.method != "POST":  # takes no time of the engine
            return await self._pass_on(request, b"")
        try:
            body = await request.read()  # before a place is taken
        except web.HTTPRequestEntityTooLarge as error:
            return _error(413, "invalid_request_error", error.text)
        if self.in_flight >= self.capacity:
            why = f"{self.in_flight} requests are being answered; try again in a second"
            refused = _error(429, "rate_limit_error", why)
            refused.headers["Retry-After"] = "1"
            return refused
        self.in_flight += 1
        try:
            return await self._pass_on(request, body)
        finally:
            self.in_flight -= 1

    async def _pass_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Send a request to the engine, and its answer back piece by piece."""
        kept = ("authorization", "content-type", "accept")
        headers = {k: v for k, v in request.headers.items() if k.lower() in kept}
        url = self.upstream + request.path_qs
        response = web.StreamResponse()
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=body
            ) as answer:
                response.set_status(answer.status)
                response.content_type = answer.content_type
                await response.prepare(request)
                async for piece in answer.content.iter_any():
                    await response.write(piece)
        except (ClientError, TimeoutError) as error:
            if response.prepared:
                raise  # half an answer is out: the connection breaks off
            why = f"the engine does not answer ({type(error).__name__}); try again"
            return _error(503, "overloaded_error", why)
        await response.write_eof()
        return response


def _error(status: int, kind: str, message: str) -> web.Response:
    error = {"code": status, "type": kind, "message": message}
    return web.json_response({"error": error}, status=status)


@contextlib.contextmanager
def serve(
    gguf: Path | str,
    name: str = "tidewater",
    n_parallel: int = 4,
    max_queue: int = 16,
    max_tokens: int = 256,
    port: int = 0,
    api_key: str | None = None,
) -> Iterator[str]:
    """Serve a GGUF file in a process of its own; yields the base URL, ending in /v1.

    The process ends with the block, and also if this process dies.

    Args:
        gguf: the file, as `utils.serving.export` makes it.
        name: what the server calls the model.
        n_parallel: conversations that are answered at once.
        max_queue: requests that may wait besides; the next one gets a 429.
        max_tokens: longest reply, whatever a request asks for.
        port: on 127.0.0.1; 0 takes a free one.
        api_key: what clients must send; None: anything goes.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: the server did not start; the message ends with what it said.

    """
    if not Path(gguf).is_file():
        raise FileNotFoundError(f"no model file {gguf}; export.to_gguf makes one")
    job = {"gguf": str(gguf), "name": name, "api_key": api_key}
    job |= {"n_parallel": n_parallel, "max_queue": max_queue, "max_tokens": max_tokens}
    with (
        tempfile.TemporaryFile() as log,
        # The socket is opened here and handed on, so that the port is known.
        socket.create_server(("127.0.0.1", port), backlog=1024) as listener,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "utils.serving.server", str(listener.fileno())],
            # Threads that spin while they wait for each other are many times slower as
            # soon as anything else runs on their cores.
            env={"OMP_WAIT_POLICY": "passive"} | os.environ,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=[listener.fileno()],
            cwd=Path(__file__).parents[2],
        )
        address = listener.getsockname()
        listener.close()  # here; if the process dies, who waits for it is told
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            _wait_for_start(address, log)
            yield f"http://127.0.0.1:{address[1]}/v1"
        finally:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _wait_for_start(address: tuple[str, int], log: object) -> None:
    """Ask once: the answer comes when the engine has started."""
    connection = http.client.HTTPConnection(*address, timeout=START)
    try:
        connection.request("GET", "/health")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException) as error:
        log.seek(0)
        last = log.read().decode(errors="replace").strip().splitlines()[-3:]
        raise RuntimeError(f"the server did not start. It said: {last}") from error
    finally:
        connection.close()


def start_engine(job: dict) -> object:
    """Start llama.cpp's server in threads of this process."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.model_alias = job["gguf"], {job["name"]}
    settings.n_parallel = job["n_parallel"]
    settings.n_ctx = CONTEXT * job["n_parallel"]
    settings.n_predict = job["max_tokens"]
    settings.n_threads_http = job["n_parallel"] + job["max_queue"] + 8
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.endpoint_metrics, settings.ui = True, False
    settings.cache_ram_mib = 0  # prompts are short; no memory to keep them in
    settings.verbosity = 1  # errors; never a user's question
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    if job["api_key"]:
        settings.api_keys = [job["api_key"]]
    return xllamacpp.Server(settings)


async def main(listener: socket.socket) -> None:
    """Serve what the first line on the input says, until the input ends."""
    job = json.loads(sys.stdin.readline())
    engine = start_engine(job)
    capacity = job["n_parallel"] + job["max_queue"]
    app = ConcurrencyLimiter(engine.listening_address, capacity).app()
    # Cancelled with its client, so that nobody computes what nobody reads.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    # Whoever started this holds the other end; when it dies, so does this.
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(socket.socket(fileno=int(sys.argv[1]))))
