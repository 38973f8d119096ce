"""Traces: what the product was asked and what it did, one JSON line each.

A trace is one question. Its spans are the model calls (`llm`) and tool calls (`tool`)
made for it, under OpenTelemetry's GenAI attribute names (November 2026, status
"development"). Our own are: a span's `kind` and `seconds`, the attribute
`gen_ai.prompt.version`, and messages as `{"role", "content"}` where OpenTelemetry
has lists of parts. Foreign logs are read by `importers`, through `load`; a client of
your own is recorded by `record`.
"""

import json
import os
import secrets
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator

from utils.logs import importers
from utils.logs.importers import ARGUMENTS, INPUT, OUTPUT, RESULT, TOKENS
from utils.logs.importers import span as span

VERDICTS = ("approved", "corrected", "thumbs_up", "thumbs_down")
FORMATS = ("auto", "course", "openai", "anthropic", "otel")


class _Checked(BaseModel):
    """What must be there, and of which type, for every property of a trace to work."""

    model_config = ConfigDict(strict=True)


class _Message(_Checked):
    role: str
    content: str


class _Attributes(_Checked):
    input: list[_Message] | None = Field(None, alias=INPUT)
    output: list[_Message] | None = Field(None, alias=OUTPUT)
    arguments: dict | None = Field(None, alias=ARGUMENTS)
    result: dict | None = Field(None, alias=RESULT)
    tokens_in: int | None = Field(None, alias=TOKENS[0])
    tokens_out: int | None = Field(None, alias=TOKENS[1])
    error: str | None = Field(None, alias="error.type")


class _Span(_Checked):
    name: str
    span_id: str
    kind: Literal["llm", "tool"]
    attributes: _Attributes
    seconds: float | None = None


class _Feedback(_Checked):
    verdict: str | None = None


def _keep(value: dict, check: Callable[[dict], object]) -> dict:
    """Check a dictionary and keep it as it came, with keys that are not known here."""
    check(value)
    return value


class Trace(_Checked):
    """One question and what was done for it. `time` is ISO 8601 in UTC, no offset.

    Each of `spans` is a dictionary with name, span_id, kind, attributes and perhaps
    seconds; `feedback` is one with a verdict and what else was said.
    """

    model_config = ConfigDict(extra="forbid")

    trace_id: str
    session_id: str | None = None
    user_id: str | None = None
    time: str
    spans: list[Annotated[_Span, WrapValidator(_keep)]]
    feedback: Annotated[_Feedback, WrapValidator(_keep)] | None = None

    def calls(self, kind: str) -> list[dict]:
        """Return the attributes of each "llm" or "tool" span; [{}] if there is none."""
        return [s["attributes"] for s in self.spans if s["kind"] == kind] or [{}]

    @property
    def question(self) -> str:
        """The last user message of the first model call."""
        chat = self.calls("llm")[0].get(INPUT) or []
        return next((m["content"] for m in reversed(chat) if m["role"] == "user"), "")

    @property
    def reply(self) -> str:
        """The text that the last model call returned, "" if none."""
        replies = self.calls("llm")[-1].get(OUTPUT)
        return replies[0]["content"] if replies else ""

    @property
    def arguments(self) -> dict | None:
        """The arguments of the last tool call, None if no tool was called."""
        return self.calls("tool")[-1].get(ARGUMENTS)

    @property
    def result(self) -> dict | None:
        """The result of the last tool call, None if there is none."""
        return self.calls("tool")[-1].get(RESULT)

    @property
    def status(self) -> str:
        """The last model call's `error.type`, or no_query, tool_error or answered."""
        error = self.calls("llm")[-1].get("error.type")
        if error:
            return error
        if not any(span["kind"] == "tool" for span in self.spans):
            return "no_query"
        return "tool_error" if (self.result or {}).get("error") else "answered"

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens in and out over all model calls; a count not recorded adds 0."""
        return tuple(sum(a.get(k) or 0 for a in self.calls("llm")) for k in TOKENS)

    @property
    def seconds(self) -> float | None:
        """Seconds summed over the spans that have them, None if none has."""
        known = [s["seconds"] for s in self.spans if s.get("seconds") is not None]
        return sum(known) if known else None

    @property
    def verdict(self) -> str | None:
        """What a user or an analyst said of it, None if nobody did."""
        return (self.feedback or {}).get("verdict")

    def to_dict(self) -> dict:
        """Make one JSON object, its keys in the order of data/traces.jsonl."""
        return dict(self)

    @classmethod
    def from_dict(cls, d: dict) -> "Trace":
        """Check and take one JSON object; ValueError names the key that is wrong."""
        try:
            return cls.model_validate(d)
        except ValidationError as error:
            first = error.errors()[0]
            parts = [f"[{p}]" if isinstance(p, int) else f".{p}" for p in first["loc"]]
            place = "".join(parts).removeprefix(".") or "the line"
            raise ValueError(f"{place}: {first['msg']}") from None


class SkippedLines(UserWarning):
    """Lines of a log could not be used; the message says which and why."""


class BadLine(NamedTuple):
    """A skipped line: its number from 1, the reason, its first 80 characters."""

    number: int
    reason: str
    text: str


def new_trace(spans: list[dict], **who: str | None) -> Trace:
    """Make a trace of now under a random id; `who` is session_id and user_id."""
    now = importers.timestamp(time.time())
    return Trace(trace_id=secrets.token_hex(16), time=now, spans=spans, **who)


def read(path: str | Path) -> tuple[list[Trace], list[BadLine]]:
    """Read a file of traces: the traces, feedback attached, and the lines skipped.

    Skipped are lines that hold no trace, a trace id that came before, and feedback
    on no trace; one `SkippedLines` warning names them. The last feedback wins.
    """
    return load(path, "course")


def load(path: str | Path, format: str = "auto") -> tuple[list[Trace], list[BadLine]]:
    """Read a log as `read` does: JSON lines, one JSON list, or one OTLP document.

    `format` is one of `FORMATS`; "auto" looks at each record. What a record should
    hold, `importers` says.
    """
    if format not in FORMATS:
        raise ValueError(f"format should be one of {FORMATS}, not {format!r}")
    lines, bad, notes, exported = _lines(path), [], [], []
    traces: dict[str, Trace] = {}

    def skip(number: int, reason: str) -> None:
        start = lines[number - 1][:80].decode(errors="replace")
        bad.append(BadLine(number, reason, start))

    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode())
            if not isinstance(record, dict):
                raise ValueError("the line should be a JSON object")
            kind = importers.guess(record) if format == "auto" else format
            if set(record) == {"trace_id", "feedback"}:
                note = Trace.from_dict(record | {"time": "", "spans": []})
                if note.verdict is None:
                    raise ValueError("feedback.verdict: Field required")
                notes.append((number, note))
            elif kind == "otel":
                for d in importers.otel(record):  # raises here, where the line is known
                    Trace.from_dict(d)
                exported += record["resourceSpans"]
            else:
                make = {"openai": importers.openai, "anthropic": importers.anthropic}
                trace = Trace.from_dict(make[kind](record) if kind in make else record)
                if trace.trace_id in traces:
                    raise ValueError(f"trace_id {trace.trace_id} came before")
                traces[trace.trace_id] = trace
        except Exception as error:  # a stranger's log may hold anything: read on
            skip(number, str(error) if isinstance(error, ValueError) else repr(error))
    # The spans of one trace may lie in several exports.
    for d in importers.otel({"resourceSpans": exported}):
        traces[d["trace_id"]] = Trace.from_dict(d)

    # Feedback names a trace, or the response of one of its model calls.
    calls = [(call, t) for t in traces.values() for call in t.calls("llm") if call]
    by_id = {str(call.get("gen_ai.response.id")): t for call, t in calls} | traces
    for number, note in notes:
        if note.trace_id in by_id:
            by_id[note.trace_id].feedback = note.feedback
        else:
            skip(number, f"feedback on trace {note.trace_id}, which is not here")

    silent = sum(INPUT not in call for call, _ in calls)
    if silent:
        message = f"{path}: {silent} model calls have no messages; was capture off?"
        warnings.warn(message, UserWarning, stacklevel=2)
    bad.sort()
    if bad:
        named = "; ".join(f"line {b.number}: {b.reason}" for b in bad[:5])
        message = f"{path}: {len(bad)} of {len(lines)} lines skipped: {named}"
        warnings.warn(message + "; ..." * (len(bad) > 5), SkippedLines, stacklevel=2)
    return list(traces.values()), bad


def _lines(path: str | Path) -> list[bytes]:
    """Split a file into lines, a JSON list into items; one document is one line."""
    data = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf")
    try:
        whole = json.loads(data)
    except (ValueError, RecursionError):
        return data.splitlines()
    items = whole if isinstance(whole, list) else [whole]
    return [json.dumps(item).encode() for item in items]


def write(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write a JSONL file; one that was there is replaced as a whole, at the end."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".draft")
    draft.write_bytes(b"".join(_line(trace.to_dict()) for trace in traces))
    draft.replace(path)


def append(path: str | Path, trace: Trace) -> None:
    """Add one trace to a JSONL file; threads and processes may do so at once.

    ValueError if `read` could not take the line back.
    """
    _append(path, Trace.from_dict(trace.to_dict()).to_dict())


def _append(path: str | Path, record: dict) -> None:
    line = _line(record)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a crash cut the last line: do not join it
                line = b"\n" + line
        if file.write(line) != len(line):  # a single write, so lines never mix
            raise OSError(f"{path}: the disk took only part of a line")


def _line(record: dict) -> bytes:
    # A lone surrogate, which broken streams contain, leaves as its JSON escape.
    line = json.dumps(record, ensure_ascii=False) + "\n"
    return line.encode("utf-8", "backslashreplace")


def feedback(
    path: str | Path, trace_id: str, verdict: str, source: str, **more: str
) -> None:
    """Add what a user or an analyst (`source`) said of a trace; `read` attaches it.

    `trace_id` is the trace's, or the `id` of the model's response. `verdict` is one
    of `VERDICTS`. `more` is a comment, and the right answer as sql or answer.
    """
    if verdict not in VERDICTS:
        raise ValueError(f"verdict should be one of {VERDICTS}, not {verdict!r}")
    note = {"source": source, "verdict": verdict, **more}
    _append(path, {"trace_id": trace_id, "feedback": note})


def to_messages(trace: Trace, answer: str | None = None) -> list[dict]:
    """Make the chat to train on: what the last model call saw, then its reply.

    With `answer`, a correction: the first call up to the question, then the answer.
    ValueError if there is no question, or neither an answer nor a complete reply.
    """
    call = trace.calls("llm")[0 if answer else -1]
    chat, reply = call.get(INPUT) or [], (call.get(OUTPUT) or [{}])[0]
    complete = bool(reply.get("content") or "tool_calls" in reply)
    complete = complete and "error.type" not in call
    if answer:
        # What came after the last user message led to the answer that was wrong.
        users = [i for i, message in enumerate(chat) if message["role"] == "user"]
        chat = chat[: users[-1] + 1] if users else []
        reply, complete = {"role": "assistant", "content": answer}, True
    if not trace.question or not complete:
        raise ValueError(f"trace {trace.trace_id}: no question, or no complete reply")
    return [dict(message) for message in (*chat, reply)]
