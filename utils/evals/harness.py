"""The harness: a question goes to a model, its tool call is run, the result comes back.

Every model is a callable from messages to a `Reply`, so the frontier API, a recording
of it, a tuned model and a model in training all sit behind the same `Assistant`.
Whatever goes wrong becomes a named status in the trace, never a lost question.
"""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from utils.evals.types import Messages, Model, ModelError, Reply, Tool
from utils.logs import traces
from utils.logs.traces import Trace

# What `Trace.status` can be: few names, as OpenTelemetry asks of its `error.type`. The
# span's `error.message` has the details.
STATUSES = {
    "answered": "a reply came, and its tool call, if there was one, ran",
    "tool_error": "the tool call failed, and so did the retries if there were any",
    "no_answer": "the reply holds no answer that the product can read, or none",
    "no_reply": "nothing came back, not even a word",
    "truncated": "the reply was cut at the token limit before its tool call ended",
    "timeout": "no answer within the time limit, retries included",
    "rate_limit": "the server asked to slow down (429), and retries did not help",
    "overloaded": "the server failed (5xx), and retries did not help",
    "unreachable": "no connection to the server",
    "model_error": "no reply for another reason: a refused key, a wrong model name",
    "not_recorded": "a recorded model was asked something it has no reply to",
}
# What the openai SDK raises, retries included; anything else is a model_error.
SDK_ERRORS = {
    "APITimeoutError": "timeout",
    "RateLimitError": "rate_limit",
    "InternalServerError": "overloaded",
    "APIConnectionError": "unreachable",
}
# Statuses that say nothing about the model's quality: no reply came at all.
NO_REPLY = frozenset(STATUSES) - {"answered", "tool_error", "no_answer", "truncated"}
# Beside the version, which a person gives: the text may change under one version.
PROMPT_DIGEST = "prompt.sha256"


@dataclass
class Assistant:
    """A product's assistant: a model, a system prompt and a tool.

    `max_retries` is how often the model may correct a call that failed; each is one
    more turn, which shows the model its call and the error.
    """

    model: Model
    prompt: str
    tool: Tool
    prompt_version: str = ""
    max_retries: int = 1

    def ask(self, question: str) -> Trace:
        """Answer one question and return its trace, whatever goes wrong."""
        messages = [
            {"role": "system", "content": self.prompt},
            {"role": "user", "content": question},
        ]
        trace = traces.new_trace([])
        for _ in range(self.max_retries + 1):
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
        return trace

    def ask_all(
        self,
        questions: Iterable[str],
        workers: int = 8,
        progress: str | None = None,
        log: str | Path | None = None,
    ) -> list[Trace]:
        """Answer many questions, `workers` at a time; traces in the given order.

        `progress` labels a progress bar. Ctrl-C waits for the questions under way and
        asks no more. `log` is a JSONL file that keeps each trace as it comes; what has
        a reply there, from this model under this prompt, is not asked again.
        """
        from tqdm import tqdm

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on missing widgets, which nobody needs
            from tqdm.contrib.concurrent import thread_map

        questions = list(questions)
        known = _replied(log, self.prompt, self.model_name) if log else {}
        # A question that is asked twice takes two traces of the log.
        done = [known[q].pop(0) if known.get(q) else None for q in questions]

        def ask(question: str, trace: Trace | None) -> Trace:
            if trace is None:
                trace = self.ask(question)
                if log:
                    traces.append(log, trace)
            return trace

        bar = {"desc": progress, "disable": progress is None, "leave": False}
        bar |= {"tqdm_class": tqdm, "delay": 1.0}
        return thread_map(ask, questions, done, max_workers=workers, **bar)

    @property
    def model_name(self) -> str:
        """The model's own name, under which its traces are kept."""
        return getattr(self.model, "name", "model")

    def _call_model(
        self, trace: Trace, messages: Messages
    ) -> tuple[str, dict[str, Any] | None]:
        """Add the model's span to the trace; return its text and its tool call."""
        started = time.perf_counter()
        try:
            reply = self.model(messages)
            arguments, status, why = self._read_call(reply.text, reply.finish_reason)
            ends = [reply.finish_reason]
        except Exception as error:
            status, why = "model_error", f"{type(error).__name__}: {error}"
            if isinstance(error, ModelError):
                status, why = error.status, str(error)
            arguments, ends = None, None
            reply = Reply("", seconds=time.perf_counter() - started)
        name, digest = self.model_name, _digest(self.prompt)
        message = {"role": "assistant", "content": reply.text}
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": name,
            "gen_ai.prompt.version": self.prompt_version or digest,
            PROMPT_DIGEST: digest,
            "gen_ai.input.messages": messages[1:],
            "gen_ai.output.messages": [message] if reply.text.strip() else [],
            "error.type": status,
            "error.message": why,
            "gen_ai.response.model": reply.model or None,
            "gen_ai.usage.input_tokens": reply.input_tokens,
            "gen_ai.usage.output_tokens": reply.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": reply.cached_tokens,
            "gen_ai.response.finish_reasons": ends,
        }
        span = traces.span("llm", f"chat {name}", attributes, reply.seconds)
        trace.spans.append(span)
        return reply.text, arguments

    def _read_call(
        self, text: str, finish_reason: str
    ) -> tuple[dict[str, Any] | None, str | None, str | None]:
        """Return the call's arguments, or the status and why there are none."""
        try:
            arguments = self.tool.extract(text)
        except Exception as error:  # a call that cannot be read is the model's fault
            return None, "no_answer", f"{type(error).__name__}: {error}"
        if arguments is None and finish_reason == "length":
            return None, "truncated", "the reply hit the token limit; raise max_tokens"
        if arguments is None:
            return None, "no_answer", "the product finds no call in the reply"
        return arguments, None, None

    def _call_tool(self, trace: Trace, arguments: dict[str, Any]) -> str | None:
        """Add the tool's span to the trace; return the error the model should see."""
        started = time.perf_counter()
        try:
            # Through JSON now, so that a blob cannot spoil the log later.
            text = json.dumps(self.tool.run(arguments), default=repr, allow_nan=False)
            result = dict(json.loads(text))
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


def sdk_client(base_url: str | None, **settings: Any) -> Any:
    """Make an OpenAI client that asks a server on this machine without a proxy."""
    import openai

    host = urlsplit(base_url or "").hostname or ""
    if host in ("localhost", "::1") or host.startswith("127."):
        settings["http_client"] = openai.DefaultHttpxClient(trust_env=False)
    return openai.OpenAI(base_url=base_url, **settings)


class ApiModel:
    """Any server that speaks chat completions, through the openai SDK.

    Arguments left out come from OPENAI_BASE_URL, OPENAI_API_KEY (the SDK raises where
    there is none) and MODEL. The SDK retries lost connections, 408, 409, 429 and 5xx.
    `options` go into the request (temperature, max_tokens and so on). A server on this
    machine is asked directly, even where HTTP_PROXY is set.
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
        url = base_url or os.environ.get("OPENAI_BASE_URL")
        how = {"api_key": api_key, "timeout": timeout, "max_retries": max_retries}
        self._client = sdk_client(url, **how)

    def __call__(self, messages: Messages) -> Reply:
        """Ask the server once. Raises ModelError with a named status."""
        started = time.perf_counter()
        try:
            response = self._client.chat.completions.create(
                model=self.name, messages=messages, **self.options
            )
            choice, usage = response.choices[0], response.usage
            text, reason = choice.message.content, choice.finish_reason
        except Exception as error:
            kind = type(error).__name__
            message = f"{self.name!r} at {self._client.base_url}: {kind}: {error}"
            status = SDK_ERRORS.get(kind, "model_error")
            raise ModelError(status, message) from error
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
    """Replays replies that a model once gave to these questions under this prompt.

    The key of a reply to a retry is the question, the first reply and the retry's
    message, a line break between them.
    """

    replies: Mapping[str, Reply]
    prompt: str
    name: str = "recorded"

    def __call__(self, messages: Messages) -> Reply:
        """Return the recorded reply. Raises ModelError with status not_recorded."""
        asked = "\n".join(message["content"] for message in messages[1:])
        same = messages[0]["content"] == self.prompt
        if same and asked in self.replies:
            return self.replies[asked]
        what = "to this question" if len(messages) == 2 else "to this retry"
        what = what if same else "under this system prompt"
        hint = "set OPENAI_API_KEY and MODEL to ask a live model"
        raise ModelError("not_recorded", f"no reply {what} was recorded; {hint}")


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:12]


def _replied(log: str | Path, prompt: str, model: str) -> dict[str, list[Trace]]:
    """Read a log's traces by question: those with a reply, of this prompt and model."""
    known: dict[str, list[Trace]] = {}
    for trace in traces.read(log)[0] if Path(log).exists() else []:
        call = trace.calls("llm")[0]
        same = call.get(PROMPT_DIGEST) == _digest(prompt)
        same = same and call.get("gen_ai.request.model") == model
        if same and trace.status not in NO_REPLY:
            known.setdefault(trace.question, []).append(trace)
    return known


def live_model() -> ApiModel | None:
    """Return the reader's own API if OPENAI_API_KEY and MODEL are set, else None.

    Raises ValueError where MODEL and OPENAI_BASE_URL are set without a key.
    """
    names = ("OPENAI_API_KEY", "MODEL", "OPENAI_BASE_URL")
    key, model, url = (os.environ.get(name) for name in names)
    if model and url and not key:
        raise ValueError(
            "MODEL and OPENAI_BASE_URL are set and OPENAI_API_KEY is not. Set it (any "
            "text will do for a server without keys), or unset them to replay."
        )
    return ApiModel() if key and model else None
