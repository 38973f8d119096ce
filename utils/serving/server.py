"""A model behind an OpenAI-compatible endpoint on this machine.

    with serve(gguf, api_key="a-secret") as url:
        ...                               # base_url=url for any client

Engine and protocol are those of llama.cpp's server. It queues without limit, so that
under load everybody waits for ever longer. Therefore a gate stands before it: it lets a
bounded number of requests in and answers 429 to the others, at once.
"""

import argparse
import asyncio
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, web

OPEN = ("/health", "/metrics", "/tokenize", "/apply-template", "/v1/models")
CONTEXT = 1024  # tokens of one conversation, its reply included
SEND, SILENT = 10.0, 120.0  # seconds for a request to arrive, for the engine to be mute


class Gate:
    """Passes requests on to a server; at most `capacity` questions are inside at once.

    A client that hangs up frees its place, and the server stops working for it.
    """

    def __init__(self, upstream: str, capacity: int) -> None:
        self.upstream, self.capacity, self.inside = upstream, capacity, 0
        self._session: ClientSession | None = None

    async def open(self, app: web.Application) -> None:
        """Open the connections to the server; a new one for each request."""
        # A kept one may be closed by the server just when a request is sent on it.
        connector = TCPConnector(limit=0, force_close=True)
        # No limit on an answer, but one on silence: what hangs frees its place.
        limit = ClientTimeout(total=None, sock_read=SILENT)
        self._session = ClientSession(self.upstream, connector=connector, timeout=limit)

    async def close(self, app: web.Application) -> None:
        """Close them."""
        await self._session.close()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Refuse a request, or pass it on and its answer back, piece by piece."""
        if request.path not in OPEN and not request.path.startswith("/v1/"):
            return _error(404, "not_found_error", f"no such path: {request.path}")
        if request.method != "POST":
            return await self._pass_on(request, b"")
        try:  # before a place is taken: who dawdles keeps nobody waiting
            async with asyncio.timeout(SEND):
                body = await request.read()
            json.loads(body)
        except web.HTTPRequestEntityTooLarge as error:
            return _error(413, "invalid_request_error", error.text)
        except TimeoutError:
            told = f"the request was not complete within {SEND:g} s"
            return _error(408, "invalid_request_error", told)
        except ValueError as error:
            return _error(400, "invalid_request_error", f"no JSON: {error}")
        if self.inside >= self.capacity:
            told = f"{self.inside} requests are being answered; try again in a second"
            refused = _error(429, "rate_limit_error", told)
            refused.headers["Retry-After"] = "1"
            return refused
        self.inside += 1
        try:
            return await self._pass_on(request, body)
        finally:
            self.inside -= 1

    async def _pass_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        kept = ("authorization", "content-type", "accept")
        headers = {k: v for k, v in request.headers.items() if k.lower() in kept}
        response = web.StreamResponse()
        try:
            async with self._session.request(
                request.method, request.path_qs, headers=headers, data=body
            ) as found:
                response.set_status(found.status)
                response.content_type = found.content_type
                await response.prepare(request)
                async for piece in found.content.iter_any():
                    await response.write(piece)
        except (ClientError, TimeoutError) as error:
            if response.prepared:
                raise  # half an answer is out: the connection breaks off
            told = f"the engine does not answer ({type(error).__name__}); try again"
            return _error(503, "overloaded_error", told)
        await response.write_eof()
        return response


def _error(status: int, kind: str, message: str) -> web.Response:
    told = {"error": {"code": status, "type": kind, "message": message}}
    return web.json_response(told, status=status)


@contextlib.contextmanager
def serve(
    gguf: Path | str,
    name: str = "tidewater",
    slots: int = 4,
    waiting: int = 16,
    max_tokens: int = 256,
    port: int = 0,
    api_key: str | None = None,
    seconds: float = 60.0,
) -> Iterator[str]:
    """Serve a GGUF file in a process of its own; yields the base URL, ending in /v1.

    The process ends with the block, and also if this process dies.

    Args:
        gguf: the file, as `utils.export` makes it.
        name: what the server calls the model.
        slots: conversations that are answered at once.
        waiting: requests that may wait besides; the next one gets a 429.
        max_tokens: longest reply, whatever a request asks for.
        port: on 127.0.0.1; 0 takes a free one.
        api_key: what clients must send; None: anything goes.
        seconds: how long the start may take.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: slots, waiting or max_tokens make no sense.
        RuntimeError: the server did not start; the message ends with what it said.

    """
    if not Path(gguf).is_file():
        raise FileNotFoundError(f"no model file {gguf}; utils.export.to_gguf makes one")
    if slots < 1 or waiting < 0 or not 1 <= max_tokens <= CONTEXT:
        raise ValueError(f"need slots > 0, waiting >= 0, max_tokens 1 to {CONTEXT}")
    job = {"gguf": str(gguf), "name": name, "slots": slots, "waiting": waiting}
    job |= {"max_tokens": max_tokens, "port": port, "api_key": api_key}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "utils.serving.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=Path(__file__).parents[2],
        )
        try:
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
            yield _address(process, log, seconds)
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()


def _address(process: subprocess.Popen, log: object, seconds: float) -> str:
    """Wait for the line in which the server says where it listens."""
    lines: queue.Queue[bytes] = queue.Queue()
    threading.Thread(
        target=lambda: lines.put(process.stdout.readline()), daemon=True
    ).start()
    try:
        line, why = lines.get(timeout=seconds), "it ended"
    except queue.Empty:
        line, why = b"", f"not within {seconds:g} s"
    if line:
        return json.loads(line)["url"]
    log.seek(0)
    said = log.read().decode(errors="replace").strip().splitlines()[-3:]
    raise RuntimeError(f"the server did not start ({why}). It said: {' '.join(said)}")


def _engine(job: dict) -> "object":
    """Start llama.cpp's server in threads of this process."""
    import xllamacpp

    cores = os.cpu_count() or 1
    settings = xllamacpp.CommonParams()
    settings.model.path = job["gguf"]
    settings.model_alias = {job["name"]}
    settings.n_parallel = job["slots"]
    settings.n_ctx = CONTEXT * job["slots"]
    settings.n_predict = job["max_tokens"]
    settings.n_threads_http = job["slots"] + job["waiting"] + 8
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = cores
    settings.endpoint_metrics, settings.ui = True, False
    settings.cache_ram_mib = 0  # prompts are short; no memory to keep them in
    settings.verbosity = 1  # errors; never a user's question
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    if job["api_key"]:
        settings.api_keys = [job["api_key"]]
    return xllamacpp.Server(settings)


async def _run(job: dict, upstream: str) -> None:
    gate = Gate(upstream, job["slots"] + job["waiting"])
    app = web.Application(client_max_size=1 << 20)
    app.on_startup.append(gate.open)
    app.on_cleanup.append(gate.close)
    app.router.add_route("*", "/{path:.*}", gate.answer)
    # Cancelled with its client, so that nobody computes what nobody reads.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", job["port"], backlog=1024)
    await site.start()
    port = runner.addresses[0][1]
    os.write(job["tell"], json.dumps({"url": f"http://127.0.0.1:{port}/v1"}).encode())
    os.write(job["tell"], b"\n")
    # Whoever started this holds the other end; when it dies, so does this.
    await asyncio.to_thread(sys.stdin.read)
    os._exit(0)


def main() -> None:
    """Serve what the first line on the input says, until the input ends."""
    argparse.ArgumentParser(description=main.__doc__).parse_args()
    job = json.loads(sys.stdin.readline())
    # Nobody reads this pipe after its first line; what the engine prints goes on.
    job["tell"] = os.dup(1)
    os.dup2(2, 1)
    engine = _engine(job)
    asyncio.run(_run(job, engine.listening_address))


if __name__ == "__main__":
    main()
