"""Traces: what the product was asked and what it did, one JSON line each.

A trace is one question. Its spans are the model calls (`llm`) and tool calls (`tool`)
made for it, under OpenTelemetry's GenAI attribute names (November 2026, status
"development"). Our own are: a span's `kind` and `seconds`, the attribute
`gen_ai.prompt.version`, and messages as `{"role", "content"}` where OpenTelemetry
has lists of parts. Foreign logs are read by `utils.importers`, through `load`; a
client of your own is recorded by `utils.collect`.
"""

import json
import os
import secrets
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.logs import importers
from utils.logs.importers import ARGUMENTS, INPUT, OUTPUT, RESULT, TOKENS
from utils.logs.importers import span as span

VERDICTS = ("approved", "corrected", "thumbs_up", "thumbs_down")
FORMATS = ("auto", "course", "openai", "anthropic", "otel")

# What must be there, and of which type, for every property of a trace to work.
_TRACE = {"trace_id": str, "time": str, "spans": list, "feedback": dict | None}
_TRACE |= dict.fromkeys(("session_id", "user_id"), str | None)
_SPAN = {"name": str, "span_id": str, "kind": str, "attributes": dict}
_SPAN |= {"seconds": float | int | None}
_ATTRIBUTES = dict.fromkeys((INPUT, OUTPUT), list | None) | {"error.type": str | None}
_ATTRIBUTES |= dict.fromkeys((ARGUMENTS, RESULT), dict | None)
_ATTRIBUTES |= dict.fromkeys(TOKENS, int | None)


class SkippedLines(UserWarning):
    """Lines of a log could not be used; the message says which and why."""


@dataclass(frozen=True)
class BadLine:
    """A skipped line: its number from 1, the reason, its first 80 characters."""

    number: int
    reason: str
    text: str


@dataclass
class Trace:
    """One question and what was done for it. `time` is ISO 8601 in UTC, no offset."""

    trace_id: str
    time: str
    spans: list[dict]
    session_id: str | None = None
    user_id: str | None = None
    feedback: dict | None = None

    def _of(self, kind: str) -> list[dict]:
        return [s["attributes"] for s in self.spans if s["kind"] == kind] or [{}]

    @property
    def question(self) -> str:
        """The last user message of the first model call."""
        chat = self._of("llm")[0].get(INPUT) or []
        return next((m["content"] for m in reversed(chat) if m["role"] == "user"), "")

    @property
    def reply(self) -> str:
        """The text that the last model call returned, "" if none."""
        said = self._of("llm")[-1].get(OUTPUT)
        return said[0]["content"] if said else ""

    @property
    def arguments(self) -> dict | None:
        """The arguments of the last tool call, None if no tool was called."""
        return self._of("tool")[-1].get(ARGUMENTS)

    @property
    def result(self) -> dict | None:
        """The result of the last tool call, None if there is none."""
        return self._of("tool")[-1].get(RESULT)

    @property
    def outcome(self) -> str:
        """The last model call's `error.type`, or no_query, tool_error or answered."""
        if error := self._of("llm")[-1].get("error.type"):
            return error
        if not any(s["kind"] == "tool" for s in self.spans):
            return "no_query"
        return "tool_error" if (self.result or {}).get("error") else "answered"

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens in and out over all model calls; a count not recorded adds 0."""
        return tuple(sum(a.get(k) or 0 for a in self._of("llm")) for k in TOKENS)

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
        keys = ("trace_id", "session_id", "user_id", "time", "spans", "feedback")
        return {key: getattr(self, key) for key in keys}

    @classmethod
    def from_dict(cls, d: dict) -> "Trace":
        """Check and take one JSON object; ValueError names the key that is wrong."""
        _check("", d, _TRACE)
        if unknown := set(d) - set(_TRACE):
            raise ValueError(f"{min(unknown)} is no key of a trace")
        for i, one in enumerate(d["spans"]):
            _check(f"spans[{i}].", one, _SPAN)
            if one["kind"] not in ("llm", "tool"):
                raise ValueError(f"spans[{i}].kind should be llm or tool")
            _check(f"spans[{i}] ", one["attributes"], _ATTRIBUTES)
            for key in (INPUT, OUTPUT):
                for message in one["attributes"].get(key) or []:
                    _check(f"spans[{i}] {key} ", message, {"role": str, "content": str})
        _check("feedback.", d.get("feedback") or {}, {"verdict": str | None})
        return cls(**d)


def _check(where: str, value: Any, shape: dict) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the line '}should be a JSON object")
    for key, kind in shape.items():
        if not isinstance(value.get(key), kind):
            found = type(value[key]).__name__ if key in value else "missing"
            wanted = getattr(kind, "__name__", kind)
            raise ValueError(f"{where}{key} should be {wanted}, is {found}")


def new_trace(spans: list[dict], **who: str | None) -> Trace:
    """Make a trace of now under a random id; `who` is session_id and user_id."""
    now = importers.timestamp(time.time())
    return Trace(secrets.token_hex(16), now, spans, **who)


def read(path: str | Path) -> tuple[list[Trace], list[BadLine]]:
    """Read a file of traces: the traces, feedback attached, and the lines skipped.

    Skipped are lines that hold no trace, a trace id that came before, and feedback
    on no trace; one `SkippedLines` warning names them. The last feedback wins.
    """
    return load(path, "course")


def load(path: str | Path, format: str = "auto") -> tuple[list[Trace], list[BadLine]]:
    """Read a log as `read` does: JSON lines, one JSON list, or one OTLP document.

    `format` is one of `FORMATS`; "auto" looks at each record. What a record should
    hold, `utils.importers` says.
    """
    if format not in FORMATS:
        raise ValueError(f"format should be one of {FORMATS}, not {format!r}")
    makers = {"openai": from_openai, "anthropic": from_anthropic}
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
            _check("", record, {})
            kind = importers.guess(record) if format == "auto" else format
            if set(record) == {"trace_id", "feedback"}:
                _check("", record, {"trace_id": str, "feedback": dict})
                _check("feedback.", record["feedback"], {"verdict": str})
                notes.append((number, record))
            elif kind == "otel":
                from_otel(record)  # raises here, where the line is known
                exported += record["resourceSpans"]
            else:
                trace = makers.get(kind, Trace.from_dict)(record)
                if trace.trace_id in traces:
                    raise ValueError(f"trace_id {trace.trace_id} came before")
                traces[trace.trace_id] = trace
        except Exception as error:  # a stranger's log may hold anything: read on
            skip(number, str(error) if isinstance(error, ValueError) else repr(error))
    # The spans of one trace may lie in several exports.
    traces |= {t.trace_id: t for t in from_otel({"resourceSpans": exported})}
    calls = [(a, t) for t in traces.values() for a in t._of("llm")]
    by_id = {str(a.get("gen_ai.response.id")): t for a, t in calls} | traces
    for number, note in notes:
        if note["trace_id"] in by_id:
            by_id[note["trace_id"]].feedback = note["feedback"]
        else:
            skip(number, f"feedback on trace {note['trace_id']}, which is not here")
    if silent := sum(INPUT not in a for a, _ in calls if a):
        message = f"{path}: {silent} model calls have no messages; was capture off?"
        warnings.warn(message, UserWarning, stacklevel=2)
    bad.sort(key=lambda line: line.number)
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


def from_openai(record: dict) -> Trace:
    """Make a trace of a logged chat-completions call (see `importers.openai`)."""
    return Trace.from_dict(importers.openai(record))


def from_anthropic(record: dict) -> Trace:
    """Make a trace of a logged Messages call (see `importers.anthropic`)."""
    return Trace.from_dict(importers.anthropic(record))


def from_otel(document: dict) -> list[Trace]:
    """Make the traces of an OTLP/JSON export (see `importers.otel`)."""
    return [Trace.from_dict(d) for d in importers.otel(document)]


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
    path: str | Path, trace_id: str, verdict: str, source: str, **more: str | None
) -> None:
    """Add what a user or an analyst (`source`) said of a trace; `read` attaches it.

    `trace_id` is the trace's, or the `id` of the model's response. `verdict` is one
    of `VERDICTS`. `more` is comment and, with the right answer, sql or answer.
    """
    if verdict not in VERDICTS:
        raise ValueError(f"verdict should be one of {VERDICTS}, not {verdict!r}")
    if unknown := set(more) - {"comment", "sql", "answer"}:
        raise TypeError(f"feedback() has no argument {min(unknown)!r}")
    said = {key: value for key, value in more.items() if value is not None}
    note = {"source": source, "verdict": verdict} | said
    _append(path, {"trace_id": trace_id, "feedback": note})


def to_messages(
    trace: Trace, system: str | None = None, answer: str | None = None
) -> list[dict]:
    """Make the chat to train on: what the last model call saw, then its reply.

    With `answer`, a correction: the first call up to the question, then the answer.
    `system` replaces the system prompt. ValueError if there is no question, or
    neither an answer nor a complete reply.
    """
    call = trace._of("llm")[0 if answer else -1]
    chat, reply = call.get(INPUT) or [], (call.get(OUTPUT) or [{}])[0]
    if answer:
        end = max((i for i, m in enumerate(chat, 1) if m["role"] == "user"), default=0)
        chat, reply = chat[:end], {"role": "assistant", "content": answer}
    empty = not (reply.get("content") or "tool_calls" in reply)
    if not trace.question or empty or ("error.type" in call and not answer):
        raise ValueError(f"trace {trace.trace_id}: no question, or no complete reply")
    if system is not None:
        chat = [m for m in chat if m["role"] not in ("system", "developer")]
        chat.insert(0, {"role": "system", "content": system})
    return [dict(message) for message in (*chat, reply)]
