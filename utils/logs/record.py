"""The collect-now kit: wrap the client that you have, and each call leaves a trace.

    client = record(OpenAI(), "logs.jsonl", user_id="u01")

Whatever method you call, an SDK sends it through one function, `client.request`: that
is where we listen. OpenTelemetry does the same for a whole process, and `traces.load`
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
import operator
import secrets
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
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
# Where a client that is no SDK's has `create` and `parse`; what else it may have there.
_PARTS = ("chat.completions", "beta.chat.completions")
_PARTS += ("responses", "completions", "messages")
_READ_ONLY = {"list", "retrieve", "update", "delete", "cancel"}
_SECRET = ("authorization", "authentication", "headers", "api_key", "password")
_SECRET += ("secret", "_token", "data_sources")


def as_client(model: Callable[[list[dict]], Any]) -> Any:
    """Give a model callable (of `utils.evals.harness`) an OpenAI client's face."""
    from openai.types.chat import ChatCompletion

    def create(*, messages: list[dict], **request: Any) -> ChatCompletion:
        reply = model(messages)
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "finish_reason": reply.finish_reason, "message": message}
        sent, came = reply.input_tokens or 0, reply.output_tokens or 0
        used = {"prompt_tokens": sent, "completion_tokens": came}
        body = {"id": secrets.token_hex(8), "object": "chat.completion"}
        body |= {"created": int(time.time()), "model": request["model"]}
        body |= {"choices": [choice], "usage": used | {"total_tokens": sent + came}}
        return ChatCompletion.model_validate(body)

    completions = SimpleNamespace(create=create)
    return SimpleNamespace(chat=SimpleNamespace(completions=completions))


def record(client: Any, path: str | Path, **who: str | None) -> Any:
    """Give a copy of a client that also leaves a trace of each call in `path`.

    The client is one of the openai SDK or of a like one (anthropic), asynchronous or
    not, or any object with `chat.completions.create`; TypeError if it is none. Chat,
    Responses, legacy completions and Anthropic's messages are recorded, by whichever
    method. Another call that asks a model warns once; embeddings, images and files
    pass. `who` is user_id, session_id and prompt_version; a call's `user=` comes first.
    The copy is light: make one per session, and before other tools wrap the client.

    The product sees what it saw before: response, stream or exception. If a trace
    cannot be written, one warning says so. A trace holds the SDK's retries and their
    pauses. A stream is recorded when it ends, is closed or is dropped; as error
    "incomplete" if that was early. OpenAI's API tells the tokens of a chat stream only
    under `stream_options={"include_usage": True}`.
    """
    if unknown := set(who) - {"user_id", "session_id", "prompt_version"}:
        raise TypeError(f"record() has no argument {min(unknown)!r}")
    recorder = _Recorder(path, who)
    if all(hasattr(type(client), name) for name in ("request", "post", "copy")):
        return _copy_of_sdk_client(client, recorder)
    for part in _PARTS:
        with contextlib.suppress(AttributeError):
            operator.attrgetter(f"{part}.create")(client)
            return _Lookalike(client, recorder)
    raise TypeError(
        "record() wraps a client of the openai or anthropic SDK, or an object with "
        f"chat.completions.create, not {type(client).__name__}"
    )


def _copy_of_sdk_client(client: Any, recorder: "_Recorder") -> Any:
    twin = copy.copy(client)
    for name, part in list(vars(twin).items()):
        if getattr(part, "_client", None) is client:  # `chat`, say, if used already
            del vars(twin)[name]
    twin.request = recorder.wrap(twin.request, _Call.read_options)

    def copied(**options: Any) -> Any:
        return _copy_of_sdk_client(client.copy(**options), recorder)

    twin.copy = twin.with_options = copied

    def websocket_base_url(self: Any) -> Any:
        recorder.warn_of("WebSockets (realtime, responses.connect)")
        return vars(self)["websocket_base_url"]

    if "websocket_base_url" in vars(client):  # every socket asks the client for it
        seen = {"websocket_base_url": property(websocket_base_url)}
        twin.__class__ = type(type(client).__name__, (type(client),), seen)
    return twin


class _Lookalike:
    """A client that is no SDK's, or a part of one: its methods are known by name."""

    def __init__(self, target: Any, recorder: "_Recorder", name: str = "") -> None:
        self._target, self._recorder, self._name = target, recorder, name

    def __getattr__(self, part: str) -> Any:
        found, recorder = getattr(self._target, part), self._recorder
        name = f"{self._name}.{part}".lstrip(".")
        if self._name in _PARTS and part in ("create", "parse"):
            return recorder.wrap(found, _Call.read_arguments)
        if name in ("copy", "with_options"):
            return lambda **options: _Lookalike(found(**options), recorder)
        if any(f"{one}.".startswith(f"{name}.") for one in _PARTS):
            return _Lookalike(found, recorder, name)
        if self._name and part not in _READ_ONLY:
            recorder.warn_of(name)
        return found


class _Recorder:
    """Makes a trace of each call of the functions that it wraps. It never raises."""

    def __init__(self, path: str | Path, who: dict) -> None:
        self.path, self.who, self.warned = path, who, set()

    def wrap(self, call: Callable, read: Callable) -> Callable:
        """Record the calls of a function; `read` tells a `_Call` what is asked."""

        @functools.wraps(call)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            with _Call(self, read, args, kwargs) as one:
                return one.answered(call(*args, **kwargs))

        @functools.wraps(call)
        async def recorded_async(*args: Any, **kwargs: Any) -> Any:
            with _Call(self, read, args, kwargs) as one:
                return one.answered(await call(*args, **kwargs))

        is_async = inspect.iscoroutinefunction(inspect.unwrap(call))
        return recorded_async if is_async else recorded

    @contextlib.contextmanager
    def safely(self) -> Iterator[None]:
        try:
            yield
        except Exception as problem:
            self.warn("", f"calls go unrecorded, the first for {problem!r}")

    def warn_of(self, door: str) -> None:
        known = "chat, Responses, completions and messages"
        self.warn(door, f"calls of {door} go unrecorded; recorded are {known}")

    def warn(self, key: str, message: str) -> None:
        if key not in self.warned:
            self.warned.add(key)
            with contextlib.suppress(Warning):  # warnings may be set to raise
                warnings.warn(f"{self.path}: {message}", RuntimeWarning, stacklevel=4)


class _Call:
    """One call, which becomes one trace once its request is read."""

    def __init__(
        self, recorder: _Recorder, read: Callable, args: tuple, kwargs: dict
    ) -> None:
        self.recorder, self.is_open = recorder, False
        self.log = recorder.who | {"time": time.time()}
        self.log["trace_id"] = secrets.token_hex(16)
        self.start = time.perf_counter()
        with recorder.safely():
            read(self, args, kwargs)

    def __enter__(self) -> "_Call":
        return self

    def __exit__(self, kind: Any, error: Any, _: Any) -> None:
        if error is not None:  # a cancelled call may cost money, too
            status = getattr(error, "status_code", "")
            self.finish(None, importers.error_type(kind.__name__, status))

    def read_options(self, args: tuple, kwargs: dict) -> None:
        """Take the request from the arguments of an SDK's `request`."""
        options = args[1] if len(args) > 1 else kwargs["options"]
        path, body = str(options.url).partition("?")[0], options.json_data
        if options.method.lower() != "post" or not isinstance(body, dict):
            return
        if path.endswith(_ADDRESSES):
            self.read(body | (options.extra_json or {}))
            parse = options.post_parser
            if callable(parse):  # it may raise at a reply that came and was paid for
                options.post_parser = functools.partial(self.parsed, parse)
        elif _ASKS & set(body) and not _SILENT & set(path.split("/")):
            self.recorder.warn_of(path)

    def read_arguments(self, args: tuple, kwargs: dict) -> None:
        """Take the request from a call of `chat.completions.create` or the like."""
        self.read(kwargs | (kwargs.get("extra_body") or {}))

    def read(self, request: dict) -> None:
        given = _without_secrets(_plain(request))  # a copy: the chat may grow later
        if isinstance(given.get("tools"), list):
            given["tools"] = [_without_secrets(tool) for tool in given["tools"]]
        self.log["request"], self.is_open = given, True

    def parsed(self, parse: Callable, response: Any) -> Any:
        self.log["response"] = response
        return parse(response)

    def answered(self, response: Any) -> Any:
        """Record the response, or follow it while the product reads it."""
        if self.is_open:
            with self.recorder.safely():
                body = _http_response(response)
                if body is None:
                    page = isinstance(response, str)  # what an SDK gives for HTML
                    self.finish(response, "not_json" if page else None)
                elif body.is_closed:
                    self.finish(*_read(body.content))
                else:
                    self.follow(body)
        return response

    def follow(self, body: Any) -> None:
        """Let an HTTP response keep its body as the product reads it."""
        kept: list[bytes] = []
        unzipped = functools.partial(type(body), 200, headers=body.headers)

        def ended() -> None:
            with self.recorder.safely():
                self.finish(*_read(unzipped(content=b"".join(kept)).content))

        end = weakref.finalize(body, ended)  # once, and at the latest now
        kind = type(body.stream)  # stays what it is: a synchronous body, or not
        kinds = (kind,) if issubclass(kind, _Tee) else (_Tee, kind)
        body.stream = type(kind.__name__, kinds, {})(body.stream, kept, end)

    def finish(self, response: Any, error: str | None = None) -> None:
        """Write the trace. What came before the product's parsing failed, is kept."""
        if not self.is_open:
            return
        self.is_open = False
        with self.recorder.safely():
            self.log["seconds"] = time.perf_counter() - self.start
            self.log["response"] = _plain(self.log.get("response", response))
            try:
                trace = importers.openai(self.log | {"error": error})
            except ValueError:  # nothing in it, as from a response in the background
                trace = importers.openai(self.log | {"error": error or "no_reply"})
            append(self.recorder.path, Trace.from_dict(trace))


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


def _http_response(response: Any) -> Any:
    """Find the HTTP response behind what an SDK gives; None if it is parsed."""
    names = ("http_response", "response")
    parts = [*(getattr(response, name, None) for name in names), response]
    return next((part for part in parts if hasattr(type(part), "aiter_bytes")), None)


def _read(body: bytes) -> tuple[Any, str | None]:
    """Read a body, be it JSON or a stream's events, and say whether it is cut."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError):
        return json.loads(text), None
    whole = importers.whole(text)
    if not isinstance(whole, dict):
        return None, "incomplete"
    ends = [choice.get("finish_reason") for choice in whole.get("choices") or [{}]]
    cut = whole.get("status") == "incomplete" and not whole.get("incomplete_details")
    ended = all(ends) or whole.get("stop_reason") or ("output" in whole and not cut)
    return whole, None if ended or whole.get("error") else "incomplete"


def _without_secrets(part: Any) -> Any:
    """Leave out what a request, or a tool, has under names of secrets, or as None."""
    if not isinstance(part, dict):
        return part
    names = {key: key.lower().replace("-", "_") for key in part}
    kept = [key for key in part if not names[key].endswith(_SECRET)]
    return {key: part[key] for key in kept if part[key] is not None}


def _plain(value: Any) -> Any:
    """Copy a response, or whatever else a client takes and gives, as plain JSON."""

    def as_plain(value: Any) -> Any:
        if hasattr(value, "model_dump"):
            return value.model_dump(by_alias=True, warnings=False)
        given = type(value).__name__ not in ("Omit", "NotGiven")
        return getattr(value, "__dict__", None) or None if given else None

    return json.loads(json.dumps(value, default=as_plain))
