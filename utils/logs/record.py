"""The collect-now kit: wrap the client that you have, and each call leaves a trace.

    client = record(OpenAI(), "logs.jsonl", user_id="u01")

Whatever method you call, an SDK sends it through one HTTP client: that is where we
listen. OpenTelemetry does the same for a whole process, and `traces.load`
reads its exports. We tried opentelemetry-instrumentation-genai-openai 1.3b0: it misses
the reply where `with_streaming_response` streams, legacy completions, `client.post`,
`tool_choice` and `reasoning_effort`, and other calls pass without a word. It keeps
texts only where two environment variables ask for it, and knows no user.
"""

import contextlib
import copy
import functools
import inspect
import json
import secrets
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from utils.logs import importers
from utils.logs.traces import Trace, append

# What is recorded, by the end of the address that it is sent to.
_ADDRESSES = ("/chat/completions", "/responses", "/completions", "/v1/messages")
# A request with one of these asks a model, unless it goes to one of the others.
_ASKS = {"model", "prompt", "assistant_id", "tool_outputs", "session", "requests"}
_ASKS |= {"input_file_id"}
_SILENT = {"embeddings", "images", "files", "moderations", "fine_tuning", "assistants"}
_SILENT |= {"evals", "vector_stores", "input_tokens", "count_tokens"}
_SECRET = ("authorization", "authentication", "headers", "api_key", "password")
_SECRET += ("secret", "_token", "data_sources")


def as_client(model: Callable[[list[dict]], Any]) -> Any:
    """Make an OpenAI client that asks a model callable (of `utils.evals.harness`)."""
    import httpx2
    from openai import OpenAI

    def answer(request: httpx2.Request) -> httpx2.Response:
        asked = json.loads(request.content)
        reply = model(asked["messages"])
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "finish_reason": reply.finish_reason, "message": message}
        sent, came = reply.input_tokens or 0, reply.output_tokens or 0
        used = {"prompt_tokens": sent, "completion_tokens": came}
        body = {"id": secrets.token_hex(8), "object": "chat.completion"}
        body |= {"created": int(time.time()), "model": asked["model"]}
        body |= {"choices": [choice], "usage": used | {"total_tokens": sent + came}}
        return httpx2.Response(200, json=body)

    http = httpx2.Client(transport=httpx2.MockTransport(answer))
    url = "http://a.model.callable/v1"
    return OpenAI(api_key="none", base_url=url, http_client=http, max_retries=0)


def record(client: Any, path: str | Path, **who: str | None) -> Any:
    """Give a copy of a client that also leaves a trace of each call in `path`.

    The client is one of the openai SDK or of one made alike (anthropic, groq),
    asynchronous or not; TypeError else. Chat, Responses, legacy completions and
    Anthropic's messages are recorded, by whichever method. Another call that asks a
    model warns once; embeddings, images, files and WebSockets pass. `who` is user_id,
    session_id and prompt_version; a call's `user=` comes first. The copy is light: make
    one per session.

    The product sees what it saw before: response, stream or exception. If a trace
    cannot be written, one warning says so. Each try of the SDK's retries leaves a
    trace. A stream is recorded when it ends, is closed or is dropped; as error
    "incomplete" if that was early. OpenAI's API tells the tokens of a chat stream only
    under `stream_options={"include_usage": True}`.
    """
    if unknown := set(who) - {"user_id", "session_id", "prompt_version"}:
        raise TypeError(f"record() has no argument {min(unknown)!r}")
    http = getattr(client, "_client", None)
    if not hasattr(http, "send"):
        kind = type(client).__name__
        raise TypeError(f"record() wraps a client of an SDK like openai's, not {kind}")
    twin = copy.copy(http)
    twin.send = _Recorder(path, who).wrap(http.send)
    twin.close, twin.aclose = _stay_open, _stay_open_async  # it is the client's own
    return client.copy(http_client=twin)


def _stay_open() -> None: ...


async def _stay_open_async() -> None: ...


class _Recorder:
    """Makes a trace of each request that asks a model. It never raises."""

    def __init__(self, path: str | Path, who: dict) -> None:
        self.path, self.who, self.warned = path, who, set()

    def wrap(self, send: Callable) -> Callable:
        """Record what the `send` of an HTTP client sends, and what comes back."""

        def recorded(request: Any, **options: Any) -> Any:
            with self.follow(request) as answered:
                return answered(send(request, **options))

        async def recorded_async(request: Any, **options: Any) -> Any:
            with self.follow(request) as answered:
                return answered(await send(request, **options))

        return recorded_async if inspect.iscoroutinefunction(send) else recorded

    @contextlib.contextmanager
    def follow(self, request: Any) -> Iterator[Callable]:
        """Follow a request; yields what is to be given its response."""
        start, asked = time.perf_counter(), None
        with self.safely():
            asked = self.read(request)
        log = self.who | {"trace_id": secrets.token_hex(16), "time": time.time()}
        log["request"] = asked

        def finish(**more: Any) -> None:
            if asked is None:
                return
            with self.safely():
                done = log | {"seconds": time.perf_counter() - start} | more
                try:
                    trace = importers.openai(done)
                except ValueError:  # no reply in it, as from one in the background
                    done["error"] = done.get("error") or "no_reply"
                    trace = importers.openai(done)
                append(self.path, Trace.from_dict(trace))

        def answered(response: Any) -> Any:
            with self.safely():
                if response.is_closed:
                    finish(**_read(response.content, response.status_code))
                else:
                    response.stream = _tee(response, finish)
            return response

        try:
            yield answered
        except BaseException as error:  # a cancelled call may cost money, too
            finish(error=importers.error_type(type(error).__name__))
            raise

    def read(self, request: Any) -> dict | None:
        """Return what a model is asked, None where none is."""
        path = request.url.path
        if "json" not in request.headers.get("content-type", ""):
            return None
        asked = json.loads(request.content)
        if not path.endswith(_ADDRESSES):
            if _ASKS & set(asked) and not _SILENT & set(path.split("/")):
                known = "chat, Responses, completions and messages"
                self.warn(path, f"calls of {path} go unrecorded; recorded are {known}")
            return None
        asked = _without_secrets(asked)
        if isinstance(asked.get("tools"), list):
            asked["tools"] = [_without_secrets(tool) for tool in asked["tools"]]
        return asked

    @contextlib.contextmanager
    def safely(self) -> Iterator[None]:
        try:
            yield
        except Exception as problem:
            self.warn("", f"calls go unrecorded, the first for {problem!r}")

    def warn(self, key: str, message: str) -> None:
        if key not in self.warned:
            self.warned.add(key)
            with contextlib.suppress(Warning):  # warnings may be set to raise
                warnings.warn(f"{self.path}: {message}", RuntimeWarning, stacklevel=4)


def _tee(response: Any, finish: Callable) -> Any:
    """Make a response keep its body as it is read, and tell when that ends."""
    status, kept = response.status_code, []
    unzipped = functools.partial(type(response), 200, headers=response.headers)

    def ended() -> None:
        finish(**_read(unzipped(content=b"".join(kept)).content, status))

    end = weakref.finalize(response, ended)  # once, and at the latest now
    kind = type(response.stream)  # stays what it is: a synchronous body, or not
    kinds = (kind,) if issubclass(kind, _Tee) else (_Tee, kind)
    return type(kind.__name__, kinds, {})(response.stream, kept, end)


class _Tee:
    """The body of an HTTP response, kept as it is read, recorded when it is closed."""

    def __init__(self, body: Any, kept: list[bytes], end: Callable) -> None:
        self.body, self.kept, self.end = body, kept, end

    def __iter__(self) -> Iterator[bytes]:
        for piece in self.body:
            self.kept.append(piece)
            yield piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self.body:
            self.kept.append(piece)
            yield piece

    def close(self) -> None:
        self.body.close()
        self.end()

    async def aclose(self) -> None:
        await self.body.aclose()
        self.end()


def _read(body: bytes, status: int) -> dict[str, Any]:
    """Read a body, be it JSON or a stream's events, and say whether it is cut."""
    text, error = body.decode(errors="replace"), None
    try:
        whole = json.loads(text)
    except ValueError:
        whole = importers.whole(text)
        if isinstance(whole, dict):
            error = None if _ended(whole) else "incomplete"
        else:
            whole, error = None, "not_json" if "<" in text else "incomplete"
    return {"response": whole, "status": status, "error": error}


def _ended(whole: dict) -> bool:
    """Say whether a stream came to its end."""
    ends = [choice.get("finish_reason") for choice in whole.get("choices") or [{}]]
    cut = whole.get("status") == "incomplete" and not whole.get("incomplete_details")
    ended = all(ends) or whole.get("stop_reason") or ("output" in whole and not cut)
    return bool(ended or whole.get("error"))


def _without_secrets(part: Any) -> Any:
    """Leave out what a request, or a tool, has under names of secrets, or as None."""
    if not isinstance(part, dict):
        return part
    names = {key: key.lower().replace("-", "_") for key in part}
    kept = [key for key in part if not names[key].endswith(_SECRET)]
    return {key: part[key] for key in kept if part[key] is not None}
