"""Traces: what the product was asked and what it did, one JSON line each.

A trace is one question. Its spans are the model calls (`llm`) and tool calls (`tool`)
made for it, under OpenTelemetry's GenAI attribute names (November 2026, status
"development"). Our own are: a span's `kind` and `seconds`, the attribute
`gen_ai.prompt.version`, and messages as `{"role", "content"}` where OpenTelemetry
has lists of parts. Foreign logs are read by `importers`, through `load`; a client of
your own is recorded by `record`.
"""

import contextlib
import json
import secrets
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError, WrapValidator

from utils.logs import importers, jsonl
from utils.logs.importers import ARGUMENTS, INPUT, OUTPUT, RESULT, TOKENS
from utils.logs.importers import span as span

VERDICTS = ("approved", "corrected", "thumbs_up", "thumbs_down")
FORMATS = importers.NAMES
_CUT = {"length", "maxtokens", "maxoutputtokens", "modellength", "maxlength"}


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
        """What came of it: the last model call's `error.type`, or one of these words.

        "truncated" (a reply cut at the limit of tokens, if no tool ran on it),
        "tool_error", "answered" (a tool was called, or there is text), "no_reply".
        """
        last = self.calls("llm")[-1]
        if last.get("error.type"):
            return last["error.type"]
        ends = last.get("gen_ai.response.finish_reasons") or []
        cut = {str(end).lower().replace("_", "") for end in ends} & _CUT
        after = self.spans[-1]["attributes"] if self.spans else {}
        if cut and RESULT not in after:
            return "truncated"
        if (self.result or {}).get("error"):
            return "tool_error"
        called = any(span["kind"] == "tool" for span in self.spans)
        return "answered" if called or self.reply.strip() else "no_reply"

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens in and out over all model calls; a count not recorded adds 0.

        The input holds what came from a cache, too, whoever the vendor is.
        """
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


class SkippedKeys(UserWarning):
    """Keys of a foreign log are not used; the message names them."""


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
    """Read a log of any form that `importers` knows, as `read` does.

    `format` is one of `FORMATS`; "auto" looks at each record. Warnings tell of faults,
    keys that are not used, counts that contradict each other, and a file without a
    trace. ValueError if the file holds no text.
    """
    if format not in FORMATS:
        raise ValueError(f"format should be one of {FORMATS}, not {format!r}")
    try:
        lines, kind = importers.records(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    found = _Found(lines)
    for number, line in enumerate(lines, 1):
        if isinstance(line, bytes) and not line.strip():
            continue
        with found.faults_of(number):
            record = json.loads(line.decode()) if isinstance(line, bytes) else line
            for one in importers.opened(record) if format == "auto" else [record]:
                found.add(one, number, format)
    found.assemble()
    for message, category in found.told(kind):
        warnings.warn(f"{path}: {message}", category, stacklevel=2)
    return list(found.traces.values()), found.bad


class _Found:
    """What `load` has found so far in a file's lines."""

    def __init__(self, lines: list) -> None:
        self.lines, self.bad, self.notes = lines, [], []
        self.traces: dict[str, Trace] = {}
        self.calls: list[importers.Call] = []
        self.export = importers.Export()

    @contextlib.contextmanager
    def faults_of(self, number: int) -> Iterator[None]:
        """Skip a line that cannot be read: a stranger's log may hold anything."""
        try:
            yield
        except Exception as error:
            plain = isinstance(error, ValueError)
            reason = str(error) if plain else f"a value is not as expected: {error!r}"
            if isinstance(error, UnicodeDecodeError):
                reason += "; save the file as UTF-8"
            if isinstance(error, json.JSONDecodeError):
                reason = f"no JSON: {reason}"
            self.skip(number, reason)

    def skip(self, number: int, reason: str) -> None:
        line = self.lines[number - 1]
        text = line if isinstance(line, bytes) else json.dumps(line).encode()
        self.bad.append(BadLine(number, reason, text[:80].decode(errors="replace")))

    def add(self, record: dict, number: int, format: str) -> None:
        if not isinstance(record, dict):
            raise ValueError("the line should be a JSON object")
        if set(record) == {"trace_id", "feedback"}:
            note = Trace.from_dict(record | {"time": "", "spans": []})
            if note.verdict is None:
                raise ValueError("feedback.verdict: Field required")
            self.notes.append((number, note))
            return
        name = importers.guess(record) if format == "auto" else format
        if name == "course":
            self.keep(record)
        elif name in ("otel", "phoenix"):
            self.export.add(record, number)
        else:
            for call in importers.calls(record, name or ""):
                call.line = number
                self.calls.append(call)
                for fault in call.faults:
                    self.skip(number, fault)

    def keep(self, record: dict) -> None:
        trace = Trace.from_dict(record)
        if self.traces.setdefault(trace.trace_id, trace) is not trace:
            raise ValueError(f"trace_id {trace.trace_id} came before")

    def assemble(self) -> None:
        """Make traces of the calls, and attach feedback to traces."""
        seen: dict[tuple[str, str], importers.Call] = {}
        ids: set[str] = set()
        calls = [*self.calls, *self.export.calls()]
        for number, fault in self.export.faults:
            self.skip(number, fault)
        for call in calls:
            if (call.trace_id, call.span_id) in seen:
                self.skip(call.line, f"trace_id {call.trace_id} came before")
                continue
            if call.alone and call.trace_id in ids:
                call.trace_id += f"-{call.line}"  # another row of the same id
            ids.add(call.trace_id)
            seen[call.trace_id, call.span_id] = call
        self.calls = list(seen.values())
        for group in importers.groups_of(self.calls):
            with self.faults_of(group[0].line):
                self.keep(importers.trace_of(group))
        by_id = _by_id(self.traces.values())
        for number, note in self.notes:
            if note.trace_id in by_id:
                by_id[note.trace_id].feedback = note.feedback
            else:
                self.skip(number, f"feedback on trace {note.trace_id}, not here")
        self.bad.sort()

    def told(self, kind: str) -> Iterator[tuple[str, type[Warning]]]:
        """Say what a reader should know of the file."""
        traces = self.traces.values()
        models = [call for trace in traces for call in trace.calls("llm") if call]
        if silent := sum(INPUT not in call for call in models):
            message = f"{silent} model calls have no messages; was capture off?"
            yield message, UserWarning
        asked = [call for call in models if INPUT in call and "error.type" not in call]
        if self.calls and (mute := sum(OUTPUT not in call for call in asked)):
            yield f"{mute} model calls have neither a reply nor an error", UserWarning
        if self.calls and (late := sum(not trace.time for trace in traces)):
            yield f"{late} of {len(traces)} traces have no time", UserWarning
        if unused := list(dict.fromkeys(key for c in self.calls for key in c.unused)):
            what = "CSV columns" if kind == "CSV" else "keys"
            yield f"{what} not used: {_listed(unused, 15, ', ')}", SkippedKeys
        if odd := [f"line {c.line}: {note}" for c in self.calls for note in c.notes]:
            yield f"counts and times that cannot be right: {_listed(odd)}", UserWarning
        other = Counter(c.name for c in self.calls if c.kind == "other")
        if other and self.traces:
            names = _listed(sorted(other), comma=", ")
            yield (
                f"{other.total()} spans are of kinds that are not known: {names}",
                UserWarning,
            )
        if self.bad:
            yield self.skipped(kind), SkippedLines
        elif not self.traces and (self.lines or kind != "lines"):
            names = sorted({call.name for call in self.calls if call.name})
            what = f"no span and no record; {importers.KNOWN}"
            if self.calls:
                what = f"{len(self.calls)} spans, none a model call; "
                what += f"their operation names are {_listed(names, 12, ', ')}"
            yield f"no trace: {what}", SkippedLines

    def skipped(self, kind: str) -> str:
        """Name what was skipped, each reason once."""
        spans = sum(bad.reason.startswith("span ") for bad in self.bad)
        counts = f"{len(self.bad) - spans} of {len(self.lines)} lines"
        counts += f" and {spans} spans" if spans else ""
        first = {bad.reason: bad.number for bad in reversed(self.bad)}
        named = []
        for reason, times in Counter(bad.reason for bad in self.bad).items():
            more = f" and {times - 1} more" if times > 1 else ""
            named.append(f"line {first[reason]}{more}: {reason}")
        message = f"{counts} skipped: {_listed(named)}"
        if not self.traces or "(keys: " in message:
            message += f"; {importers.KNOWN}"
        if kind == "CSV" and not self.traces:
            message += "; for a table of labels there is traces.labels"
        return message


def _listed(words: list[str], most: int = 5, comma: str = "; ") -> str:
    return comma.join([*words[:most], *["..."] * (len(words) > most)])


def _by_id(traces: Iterable[Trace]) -> dict[str, Trace]:
    """Find a trace by its id, or by that of the response of one of its model calls."""
    traces = list(traces)
    calls = [
        (call.get("gen_ai.response.id"), t) for t in traces for call in t.calls("llm")
    ]
    found = {str(name): trace for name, trace in calls if name}
    return found | {trace.trace_id: trace for trace in traces}


def labels(
    found: Iterable[Trace],
    path: str | Path,
    id: str = "request_id",
    answer: str | Iterable[str] | None = None,
    verdict: str | Callable[[Trace, dict], str] | None = None,
    source: str = "analyst",
) -> tuple[int, list[str]]:
    """Attach the labels of a table or JSON lines to traces, as feedback.

    `id` names the column with the trace's id or its response's, `answer` that of the
    right answer, or several: then feedback's answer is a dictionary. `verdict` names a
    column, or is a function of trace and row; without one it is "corrected". Capitals
    of ids do not count. Returns how many traces got a label and the ids that no trace
    has. A warning tells these, rows without an id, and traces with two answers, of
    which the last counts.
    """
    by_id = {name.casefold(): trace for name, trace in _by_id(found).items()}
    labelled, unknown, problems, nameless = {}, [], [], 0
    names = [answer] if isinstance(answer, str) else list(answer or [])
    wanted = [id, *names, *([verdict] if isinstance(verdict, str) else [])]
    rows, _ = importers.records(Path(path).read_bytes())
    for number, row in enumerate(rows, 1):
        row = json.loads(row) if isinstance(row, bytes) and row.strip() else row
        if not row:
            continue
        if missing := [name for name in wanted if name not in row]:
            has = ", ".join(row)
            raise ValueError(f"{path}: row {number} has no {missing[0]!r}, only {has}")
        name = "" if row[id] is None else str(row[id]).strip()
        trace = by_id.get(name.casefold())
        nameless += not name
        if trace is None:
            unknown += [name] if name else []
            continue
        said = verdict(trace, row) if callable(verdict) else row.get(verdict)
        said = "corrected" if verdict is None else said
        if said not in VERDICTS:
            raise ValueError(
                f"{path}: row {number}: verdict should be one of {VERDICTS}, "
                f"not {said!r}; pass a function that gives one"
            )
        note = {"source": source, "verdict": said}
        if names:
            right = {name: row[name] for name in names}
            note["answer"] = row[answer] if isinstance(answer, str) else right
        if labelled.get(trace.trace_id, note) != note:
            problems.append(f"trace {trace.trace_id} has two answers; the last counts")
        trace.feedback = labelled[trace.trace_id] = note
    if unknown:
        listed = _listed(unknown, comma=", ")
        problems.append(f"{len(unknown)} labels are of no trace here: {listed}")
    if nameless:
        problems.append(f"{nameless} rows have no {id}")
    if problems:
        message = f"{path}: {_listed(problems)}"
        warnings.warn(message, SkippedLines, stacklevel=2)
    return len(labelled), unknown


def write(path: str | Path, traces: Iterable[Trace]) -> None:
    """Write a JSONL file; one that was there is replaced as a whole, at the end."""
    jsonl.write(path, (trace.to_dict() for trace in traces))


def append(path: str | Path, trace: Trace) -> None:
    """Add one trace to a JSONL file; threads and processes may do so at once.

    ValueError if `read` could not take the line back.
    """
    jsonl.append(path, Trace.from_dict(trace.to_dict()).to_dict())


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
    jsonl.append(path, {"trace_id": trace_id, "feedback": note})


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
