"""The collect-now kit: wrap the client that you have, and each call leaves a trace.

    client = record(OpenAI(), "logs.jsonl", user_id="u01")
    response = client.chat.completions.create(model=..., messages=...)

What people say of the answer follows with `traces.feedback`.

Whatever method you call, an SDK sends it through one function, `client.request`: that
is where we listen. OpenTelemetry does the same job for a whole process. We tried
opentelemetry-instrumentation-genai-openai 1.3b0: it records `create`, `parse`, `stream`
and raw responses of chat and Responses, asynchronous ones too. It misses the reply
where `with_streaming_response` streams, legacy completions, `client.post`,
`tool_choice` and `reasoning_effort`, and other calls pass without a word. It keeps
texts only where two environment variables ask for it, and does not know whose client
it is. If you run it already, `traces.load` reads its exports.
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

# What is recorded, by the end of the address that it is sent to; and who in `importers`
# reads it, and puts its streams together.
_ADDRESSES = {"/chat/completions": ("openai", "joined")}
_ADDRESSES |= {"/responses": ("responses", "joined_events")}
_ADDRESSES |= {"/completions": ("openai", "joined")}
_ADDRESSES |= {"/v1/messages": ("anthropic", "joined_blocks")}
# A request with one of these asks a model, unless it goes to one of the others.
_ASKS = {"model", "prompt", "assistant_id", "tool_outputs", "session", "requests"}
_ASKS |= {"input_file_id"}
_SILENT = {"embeddings", "images", "files", "moderations", "fine_tuning", "assistants"}
_SILENT |= {"evals", "vector_stores", "input_tokens", "count_tokens"}
# What is recorded of a client that is no SDK's, by the names of its methods.
_CHAT = ("chat.completions.create", "chat.completions.parse")
_METHODS = dict.fromkeys(_CHAT, "/chat/completions")
_METHODS |= {f"beta.{name}": address for name, address in _METHODS.items()}
_METHODS |= dict.fromkeys(("responses.create", "responses.parse"), "/responses")
_METHODS |= {"completions.create": "/completions", "messages.create": "/v1/messages"}
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
        used = {"prompt_tokens": reply.input_tokens or 0}
        used["completion_tokens"] = reply.output_tokens or 0
        body = {"id": secrets.token_hex(8), "created": int(time.time())}
        body |= {"object": "chat.completion", "model": request["model"]}
        body["usage"] = used | {"total_tokens": sum(used.values())}
        return ChatCompletion.model_validate(body | {"choices": [choice]})

    completions = SimpleNamespace(create=create)
    return SimpleNamespace(chat=SimpleNamespace(completions=completions))


def record(client: Any, path: str | Path, **who: str | None) -> Any:
    """Give a copy of a client that also leaves a trace of each call in `path`.

    The client is one of the openai SDK (OpenAI, AzureOpenAI, the async ones), of a
    like SDK (anthropic), or any object with `chat.completions.create`; TypeError if it
    is none. Recorded are chat, Responses, legacy completions and Anthropic's messages,
    by whichever method: create, parse, stream, raw responses, copies of the client.
    Another call that asks a model warns once; embeddings, images and files pass. `who`
    is user_id, session_id and prompt_version; a call's own `user=` comes first. The
    copy is light and shares the connections: make one per session, and before other
    tools wrap the client.

    The product sees what it saw before, be it the response, the stream or the
    exception. If a trace cannot be written, one warning says so. The SDK's retries and
    their pauses are part of one trace. A stream is recorded when it ends, is closed or
    is dropped; as error "incomplete" if that was early. OpenAI's API gives the tokens
    of a chat stream only under `stream_options={"include_usage": True}`.
    """
    if unknown := set(who) - {"user_id", "session_id", "prompt_version"}:
        raise TypeError(f"record() has no argument {min(unknown)!r}")
    recorder = _Recorder(path, who)
    if all(hasattr(type(client), name) for name in ("request", "post", "copy")):
        return _copy_of_sdk_client(client, recorder)
    for name in _METHODS:
        with contextlib.suppress(AttributeError):
            operator.attrgetter(name)(client)
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
        if name in _METHODS:
            read = functools.partial(_Call.read_arguments, address=_METHODS[name])
            return recorder.wrap(found, read)
        if name in ("copy", "with_options"):
            return lambda **options: _Lookalike(found(**options), recorder)
        if any(method.startswith(f"{name}.") for method in _METHODS):
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
            with self.watch(read, args, kwargs) as one:
                return one.answered(call(*args, **kwargs))

        @functools.wraps(call)
        async def recorded_async(*args: Any, **kwargs: Any) -> Any:
            with self.watch(read, args, kwargs) as one:
                return one.answered(await call(*args, **kwargs))

        is_async = inspect.iscoroutinefunction(inspect.unwrap(call))
        return recorded_async if is_async else recorded

    @contextlib.contextmanager
    def watch(self, read: Callable, args: tuple, kwargs: dict) -> Iterator["_Call"]:
        one = _Call(self)
        with self.safely():
            read(one, args, kwargs)
        try:
            yield one
        except BaseException as error:  # a cancelled call may cost money, too
            one.finish(error=error)
            raise

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
    """One call, which becomes one trace. Without an `address` it passes unrecorded."""

    def __init__(self, recorder: _Recorder) -> None:
        self.recorder, self.address, self.error = recorder, None, None
        self.log = recorder.who | {"time": time.time()}
        self.log["trace_id"] = secrets.token_hex(16)
        self.start = time.perf_counter()

    def read_options(self, args: tuple, kwargs: dict) -> None:
        """Take address and request from the arguments of an SDK's `request`."""
        options = args[1] if len(args) > 1 else kwargs["options"]
        path, body = str(options.url).partition("?")[0], options.json_data
        if options.method.lower() != "post" or not isinstance(body, dict):
            return
        if path.endswith(tuple(_ADDRESSES)):
            self.read(path, body | (options.extra_json or {}))
            parse = options.post_parser
            if callable(parse):  # it may raise at a reply that came and was paid for
                options.post_parser = functools.partial(self.parsed, parse)
        elif _ASKS & set(body) and not _SILENT & set(path.split("/")):
            self.recorder.warn_of(path)

    def read_arguments(self, args: tuple, kwargs: dict, address: str) -> None:
        """Take the request from a call of `chat.completions.create` or the like."""
        self.read(address, kwargs | (kwargs.get("extra_body") or {}))

    def read(self, path: str, request: dict) -> None:
        given = _without_secrets(_plain(request))  # a copy: the chat may grow later
        if isinstance(given.get("tools"), list):
            given["tools"] = [_without_secrets(tool) for tool in given["tools"]]
        prompts = given.get("prompt")
        if isinstance(prompts, list) and [str] != [type(one) for one in prompts]:
            self.recorder.warn_of("completions with several prompts, or with tokens")
            return
        self.log["request"] = given
        self.address = next(end for end in _ADDRESSES if path.endswith(end))

    def parsed(self, parse: Callable, response: Any) -> Any:
        self.log["response"] = response
        return parse(response)

    def answered(self, response: Any) -> Any:
        """Record the response, or follow it while the product reads it."""
        if self.address is not None:
            with self.recorder.safely():
                body = _http_response(response)
                if body is None:
                    if isinstance(response, str):  # what an SDK gives for HTML
                        self.log["error"] = "not_json"
                    self.finish(response)
                elif body.is_closed:
                    self.ended([body.content], SimpleNamespace)
                else:
                    self.follow(body)
        return response

    def follow(self, body: Any) -> None:
        """Let an HTTP response keep its body as the product reads it."""
        kept: list[bytes] = []
        again = functools.partial(type(body), 200, headers=body.headers)
        end = weakref.finalize(body, self.ended, kept, again)  # once, at the latest now
        kind = type(body.stream)  # stays what it is: a synchronous body, or not
        kinds = (kind,) if issubclass(kind, _Tee) else (_Tee, kind)
        body.stream = type(kind.__name__, kinds, {})(body.stream, self, kept, end)

    def ended(self, kept: list[bytes], again: Callable) -> None:
        """Record a body; `again` makes a response of it, which unzips it."""
        if self.address is None:
            return
        with self.recorder.safely():
            body = again(content=b"".join(kept)).content
            join = getattr(importers, _ADDRESSES[self.address][1])
            response, self.log["error"] = _read(body, join)
            self.finish(response, self.error)

    def finish(self, response: Any = None, error: BaseException | None = None) -> None:
        if self.address is None:
            return
        address, self.address = self.address, None
        with self.recorder.safely():
            self.log["seconds"] = time.perf_counter() - self.start
            if error is not None:
                status = getattr(error, "status_code", "")
                self.log["error"] = importers.error_type(type(error).__name__, status)
            self.log.setdefault("response", response)
            self.log["response"] = _plain(self.log["response"])
            make = getattr(importers, _ADDRESSES[address][0])
            try:
                trace = make(self.log)
            except ValueError:  # nothing in it, as from a response in the background
                trace = make(self.log | {"error": "no_reply"})
            append(self.recorder.path, Trace.from_dict(trace))


class _Tee:
    """The body of an HTTP response, kept as it is read, recorded when it is closed."""

    def __init__(self, body: Any, call: _Call, kept: list, end: Callable) -> None:
        self.body, self.call, self.kept, self.end = body, call, kept, end

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self.body:
                self.kept.append(piece)
                yield piece
        except Exception as error:
            self.call.error = error
            self.end()
            raise

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self.body:
                self.kept.append(piece)
                yield piece
        except Exception as error:
            self.call.error = error
            self.end()
            raise

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


def _read(body: bytes, join: Callable) -> tuple[dict | None, str | None]:
    """Read a body, be it JSON or a stream's events, and say what is wrong with it."""
    with contextlib.suppress(ValueError):
        return json.loads(body), None
    text = body.decode(errors="replace")
    if text.strip() and "data:" not in text:
        return None, "not_json"  # a gateway's page, or a body left half read
    whole = join(text.replace("\r", "\n").split("\n"))  # other breaks are text
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
