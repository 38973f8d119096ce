"""The harness: a question goes to a model, its tool call is run, the result comes back.

Every model is a callable from messages to a `Reply`, so the frontier API, a recording
of it, a tuned model and a model in training all sit behind the same `Assistant`.
Whatever goes wrong becomes a named outcome in the trace, never a lost question.
"""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from utils.logs import traces
from utils.logs.traces import Trace

Messages = list[dict[str, str]]

# Outcomes that say nothing about the model's quality: no reply came at all.
NO_REPLY = frozenset(
    "missing_key missing_model unauthorized rate_limit timeout unreachable overloaded "  # noqa: SIM905
    "bad_request bad_response not_recorded".split()
)

OUTCOMES = {
    "answered": "the model's tool call ran",
    "tool_error": "the tool call failed, and so did the repair turn if there was one",
    "no_query": "the reply holds no tool call (small talk, a refusal, a lost fence)",
    "empty_reply": "the model sent no text",
    "truncated": "the reply was cut at the token limit before its tool call ended",
    "missing_key": "no API key is set",
    "missing_model": "no model name is set",
    "unauthorized": "the server refused the key (401 or 403)",
    "rate_limit": "the server asked to slow down (429), and retries did not help",
    "timeout": "no answer within the time limit, retries included",
    "unreachable": "no connection to the server",
    "overloaded": "the server failed (5xx), and retries did not help",
    "bad_request": "the server rejected the request (4xx): often a wrong model name",
    "bad_response": "the server's answer is no chat completion",
    "model_error": "the model callable raised something else",
    "bad_call": "the reply's tool call cannot be read",
    "not_recorded": "a recorded model was asked something it has no reply to",
}


@dataclass(frozen=True)
class Reply:
    """One model reply: its text, tokens as billed (None: not told), and seconds."""

    text: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    seconds: float | None = None
    model: str = ""
    cached_tokens: int | None = None
    finish_reason: str = "stop"


Model = Callable[[Messages], Reply]


class ModelError(Exception):
    """A model could not reply. `outcome` is a name from `OUTCOMES`."""

    def __init__(self, outcome: str, message: str) -> None:
        super().__init__(message)
        self.outcome = outcome


class Tool(Protocol):
    """What a product gives its assistant to act with; Tidewater's runs SQL."""

    name: str

    def extract(self, reply: str) -> dict[str, Any] | None:
        """Read the call's arguments out of a reply; None if there is no call."""

    def run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Run the call; the result has "error": None, or what to tell the model."""

    def repair(self, error: str) -> str:
        """Word the message that asks the model to mend its call."""


@dataclass
class Assistant:
    """A product's assistant: a model, a system prompt and a tool.

    `repairs` is how often the model may mend a failing call. `log` is a JSON-lines
    file to which every trace is appended as soon as it is complete.
    """

    model: Model
    prompt: str
    tool: Tool
    prompt_version: str = ""
    repairs: int = 1
    log: Path | str | None = None
    user_id: str | None = None
    session_id: str = field(default_factory=lambda: secrets.token_hex(8))

    def ask(self, question: str) -> Trace:
        """Answer one question and return its trace.

        Raises:
            ValueError: `question` is empty or not text.

        """
        if not isinstance(question, str) or not question.strip():
            raise ValueError("ask a question: a text that is not empty")
        messages = [
            {"role": "system", "content": self.prompt},
            {"role": "user", "content": question},
        ]
        trace = traces.new_trace([], session_id=self.session_id, user_id=self.user_id)
        for _ in range(self.repairs + 1):
            text, arguments = self._call_model(trace, messages)
            if arguments is None:
                break
            error = self._call_tool(trace, arguments)
            if error is None:
                break
            # A new list: the span of the turn before keeps the messages that it saw.
            messages = [
                *messages,
                {"role": "assistant", "content": text},
                {"role": "user", "content": self.tool.repair(error)},
            ]
        if self.log:
            traces.append(self.log, trace)
        return trace

    def ask_all(
        self, questions: Iterable[str], workers: int = 8, progress: str | None = None
    ) -> list[Trace]:
        """Answer many questions, `workers` at a time; traces in the given order."""
        from tqdm import tqdm

        questions = list(questions)
        with ThreadPoolExecutor(workers) as pool:
            try:
                return list(
                    tqdm(
                        pool.map(self.ask, questions),
                        desc=progress,
                        total=len(questions),
                        disable=progress is None,
                        leave=False,
                        delay=1.0,
                    )
                )
            except BaseException:
                # Ctrl-C stops what has not started; finished traces are in the log.
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _call_model(
        self, trace: Trace, messages: Messages
    ) -> tuple[str, dict[str, Any] | None]:
        """Add the model's span to the trace; return its text and its tool call."""
        version = self.prompt_version or _fingerprint(self.prompt)
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": getattr(self.model, "name", "model"),
            "gen_ai.prompt.version": version,
            "gen_ai.input.messages": messages[1:],
            "gen_ai.output.messages": [],
        }
        started, reply, arguments = time.perf_counter(), Reply(""), None
        try:
            answer = self.model(messages)
            if not isinstance(answer, Reply) or not isinstance(answer.text, str):
                raise TypeError(f"a model returns a Reply with text, not {answer!r}")
            reply, failure = answer, None
        except ModelError as error:
            failure = (error.outcome, str(error))
        except Exception as error:
            failure = ("model_error", f"{type(error).__name__}: {error}")
        if not failure:
            arguments, failure = self._read_call(reply)
        if failure:
            attributes["error.type"], attributes["error.message"] = failure
        if reply.text.strip():
            said = {"role": "assistant", "content": reply.text}
            attributes["gen_ai.output.messages"] = [said]
        told = {
            "gen_ai.response.model": reply.model or None,
            "gen_ai.usage.input_tokens": reply.input_tokens,
            "gen_ai.usage.output_tokens": reply.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": reply.cached_tokens,
        }
        attributes |= {key: value for key, value in told.items() if value is not None}
        if not failure:
            attributes["gen_ai.response.finish_reasons"] = [reply.finish_reason]
        # A recording has no latency of its own; a failed call has the time it took.
        seconds = time.perf_counter() - started if failure else reply.seconds
        name = f"chat {attributes['gen_ai.request.model']}"
        trace.spans.append(traces.span("llm", name, attributes, seconds))
        return reply.text, arguments

    def _read_call(
        self, reply: Reply
    ) -> tuple[dict[str, Any] | None, tuple[str, str] | None]:
        """Return the call's arguments, or the outcome and message of what is wrong."""
        if not reply.text.strip():
            reason = f"no text; finish reason {reply.finish_reason!r}"
            return None, ("empty_reply", reason)
        try:
            arguments = self.tool.extract(reply.text)
            if not isinstance(arguments, dict | None):
                raise TypeError(f"a tool call is a dictionary, not {arguments!r}")
        except Exception as error:
            return None, ("bad_call", f"{type(error).__name__}: {error}")
        if arguments is None and reply.finish_reason == "length":
            reason = "the reply hit the token limit; raise max_tokens"
            return None, ("truncated", reason)
        return arguments, None

    def _call_tool(self, trace: Trace, arguments: dict[str, Any]) -> str | None:
        """Add the tool's span to the trace; return the error the model should see."""
        started = time.perf_counter()
        try:
            # Through JSON now, so that a blob cannot spoil the log later.
            ran = json.dumps(self.tool.run(arguments), default=repr, allow_nan=False)
            result = dict(json.loads(ran))
        except Exception as error:
            # The product's own tool broke: the question and the call must survive it.
            result = {"error": f"{type(error).__name__}: {error}"}
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": self.tool.name,
            "gen_ai.tool.call.arguments": arguments,
            "gen_ai.tool.call.result": result,
        }
        seconds = time.perf_counter() - started
        name = f"execute_tool {self.tool.name}"
        trace.spans.append(traces.span("tool", name, attributes, seconds))
        return result.get("error")


class ApiModel:
    """Any server that speaks chat completions, through the openai SDK.

    Arguments left out come from OPENAI_BASE_URL, OPENAI_API_KEY and MODEL. The SDK
    retries connection errors, 408, 409, 429 and 5xx with growing pauses. `options` are
    passed on to the request (temperature, max_tokens and so on).
    """

    def __init__(
        self,
        model: str | None = None,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout: float = 60.0,
        max_retries: int = 2,
        **options: Any,
    ) -> None:
        self.name = model or os.environ.get("MODEL", "")
        self.options = options
        self._key = api_key or os.environ.get("OPENAI_API_KEY", "")
        self._settings = {"timeout": timeout, "max_retries": max_retries}
        self._base_url = base_url or os.environ.get("OPENAI_BASE_URL") or None
        self._client: Any = None

    def __call__(self, messages: Messages) -> Reply:
        """Ask the server once. Raises ModelError with a named outcome."""
        import openai

        if not self._key:
            raise ModelError(
                "missing_key",
                "set OPENAI_API_KEY (any text will do for a local server without keys)",
            )
        if not self.name:
            raise ModelError("missing_model", "set MODEL to the server's model name")
        started = time.perf_counter()
        try:
            if self._client is None:
                self._client = openai.OpenAI(
                    api_key=self._key, base_url=self._base_url, **self._settings
                )
            response = self._client.chat.completions.create(
                model=self.name, messages=messages, **self.options
            )
            choice, usage = response.choices[0], response.usage
            text, reason = choice.message.content, choice.finish_reason
        except openai.APITimeoutError as error:
            raise ModelError("timeout", str(error)) from error
        except openai.APIConnectionError as error:
            where = self._base_url or "the API"
            message = f"cannot reach {where}: {error}; check OPENAI_BASE_URL"
            raise ModelError("unreachable", message) from error
        except openai.APIStatusError as error:
            raise ModelError(_outcome(error.status_code), str(error)) from error
        except Exception as error:
            message = f"no chat completion came back: {type(error).__name__}: {error}"
            raise ModelError("bad_response", message) from error
        details = getattr(usage, "prompt_tokens_details", None)
        return Reply(
            text=text or "",
            input_tokens=getattr(usage, "prompt_tokens", None),
            output_tokens=getattr(usage, "completion_tokens", None),
            seconds=time.perf_counter() - started,
            model=response.model or self.name,
            cached_tokens=getattr(details, "cached_tokens", None),
            finish_reason=reason or "stop",
        )


@dataclass
class RecordedModel:
    """Replays replies that a model once gave to these questions under this prompt."""

    replies: Mapping[str, Reply]
    prompt: str
    name: str = "recorded"

    def __call__(self, messages: Messages) -> Reply:
        """Return the recorded reply. Raises ModelError('not_recorded')."""
        if messages[0]["content"] != self.prompt:
            why = "these replies were recorded under another system prompt"
        elif len(messages) > 2:
            why = "no repair turn was recorded"
        elif messages[-1]["content"] in self.replies:
            return self.replies[messages[-1]["content"]]
        else:
            why = "no reply to this question was recorded"
        raise ModelError(
            "not_recorded",
            f"{why}; set OPENAI_API_KEY and MODEL to ask a live model",
        )


def live_model() -> ApiModel | None:
    """Return the reader's own API if OPENAI_API_KEY and MODEL are set, else None.

    Raises:
        ValueError: MODEL and OPENAI_BASE_URL are set without a key.

    """
    names = ("OPENAI_API_KEY", "MODEL", "OPENAI_BASE_URL")
    key, model, url = (os.environ.get(name) for name in names)
    if model and url and not key:
        raise ValueError(
            "MODEL and OPENAI_BASE_URL are set and OPENAI_API_KEY is not. Set it (any "
            "text will do for a server without keys), or unset them to replay."
        )
    return ApiModel() if key and model else None


def _outcome(status: int) -> str:
    known = {
        401: "unauthorized",
        403: "unauthorized",
        408: "timeout",
        429: "rate_limit",
    }
    return known.get(status, "overloaded" if status >= 500 else "bad_request")


def _fingerprint(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]
