"""The collect-now kit: wrap the client that you have, and each call leaves a trace.

    client = record(OpenAI(), "logs.jsonl", user_id="u01")
    response = client.chat.completions.create(model=..., messages=...)

What people say of the answer follows with `traces.feedback`.
"""

import contextlib
import inspect
import json
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from utils.logs import importers
from utils.logs.traces import Trace, append


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
    """Wrap an OpenAI-style client so that each chat completion also leaves a trace.

    Covered are `chat.completions.create` and `.parse` of a synchronous client, also
    with `stream=True`; the rest passes through unrecorded. `who` is user_id,
    session_id and prompt_version; a call's own `user=` comes first. The wrapper is
    light: make one per session. The product sees what it saw before, be it the
    response or the exception. If a trace cannot be written, one warning says so.

    A stream, once read from, is recorded when it ends, is closed or is dropped; as
    error "incomplete" if that was early. OpenAI's API gives the tokens of a stream
    only under `stream_options={"include_usage": True}`.
    """
    if unknown := set(who) - {"user_id", "session_id", "prompt_version"}:
        raise TypeError(f"record() has no argument {min(unknown)!r}")
    calls = client.chat.completions
    if inspect.iscoroutinefunction(inspect.unwrap(calls.create)):
        raise TypeError("record() cannot wrap an asynchronous client")
    recorder = _Recorder(path, who)
    names = [name for name in ("create", "parse") if hasattr(calls, name)]
    calls = _Proxy(calls, **{n: recorder.wrap(getattr(calls, n)) for n in names})

    def with_options(**options: Any) -> Any:
        return record(client.with_options(**options), path, **who)

    chat = _Proxy(client.chat, completions=calls)
    return _Proxy(client, chat=chat, with_options=with_options)


class _Recorder:
    """Makes a trace of each call of the functions it wraps. It never raises."""

    def __init__(self, path: str | Path, who: dict) -> None:
        self.path, self.who, self.failed = path, who, False

    def wrap(self, call: Callable) -> Callable:
        def recorded(*args: Any, **kwargs: Any) -> Any:
            log = self.who | {"time": time.time(), "trace_id": secrets.token_hex(16)}
            with contextlib.suppress(Exception):  # a copy: the chat may grow later
                # OpenAI's sign for "not given" is false, but so is temperature 0.
                given = {k: v for k, v in kwargs.items() if v or v == 0}
                log["request"] = _plain({k: given.get(k) for k in importers.REQUEST})
            start = time.perf_counter()
            try:
                response = call(*args, **kwargs)
            except Exception as error:
                self.finish(log, start, None, error)
                raise
            if kwargs.get("stream") and not hasattr(response, "choices"):
                return _Stream(response, _chunks=self.watch(log, start, response))
            self.finish(log, start, response)
            return response

        return recorded

    def watch(self, log: dict, start: float, stream: Iterable) -> Iterator:
        chunks, error = [], None
        try:
            for chunk in stream:
                chunks.append(chunk)
                yield chunk
        except Exception as caught:
            error = caught
            raise
        finally:  # at the end, on an error, when closed, when dropped
            self.finish(log, start, chunks, error)

    def finish(
        self, log: dict, start: float, response: Any, error: Exception | None = None
    ) -> None:
        try:
            log["seconds"] = time.perf_counter() - start
            log["response"] = _plain(response)
            if isinstance(response, list):
                log["response"] = importers.joined(log["response"])
                ends = [c["finish_reason"] for c in log["response"]["choices"]]
                log["error"] = None if ends and all(ends) else "incomplete"
            if error is not None:
                status = getattr(error, "status_code", "")
                log["error"] = importers.error_type(type(error).__name__, status)
            append(self.path, Trace.from_dict(importers.openai(log)))
        except Exception as problem:
            if not self.failed:
                self.failed = True
                what = f"{self.path}: calls go unrecorded, the first for {problem!r}"
                with contextlib.suppress(Warning):  # warnings may be set to raise
                    warnings.warn(what, RuntimeWarning, stacklevel=4)


class _Proxy:
    """Another object, some of its attributes replaced."""

    def __init__(self, target: Any, **replaced: Any) -> None:
        self.__dict__.update(replaced, _target=target)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._target, name, value)

    def __enter__(self) -> "_Proxy":
        self._target.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()


class _Stream(_Proxy):
    """A stream whose chunks come through `_chunks`."""

    def __iter__(self) -> Iterator:
        return self._chunks

    def __next__(self) -> Any:
        return next(self._chunks)

    def close(self) -> None:
        self._chunks.close()
        self._target.close()


def _plain(value: Any) -> Any:
    """Copy a response, or whatever else a client takes and gives, as plain JSON."""

    def as_plain(value: Any) -> Any:
        if hasattr(value, "model_dump"):
            return value.model_dump(warnings=False)
        return getattr(value, "__dict__", None) or None

    return json.loads(json.dumps(value, default=as_plain))
