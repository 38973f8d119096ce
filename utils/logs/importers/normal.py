"""The normal form: what every adapter gives, and the one way from it to traces.

An adapter finds the parts of a call in its dialect and gives a `Call`. Here are the
readers that all dialects share, of times, errors and token counts; those of messages
are in `chats`.
"""

import contextlib
import functools
import hashlib
import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from utils.logs.importers.names import N

INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
ARGUMENTS, RESULT = "gen_ai.tool.call.arguments", "gen_ai.tool.call.result"
TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
CACHED = "gen_ai.usage.cache_read.input_tokens"
WRITTEN = "gen_ai.usage.cache_creation.input_tokens"
REASONING = "gen_ai.usage.reasoning.output_tokens"
_EMPTY = (None, "", [], {})


@dataclass
class Call:
    """A model call ("llm"), a tool call ("tool") or what encloses them ("outer").

    An outer span (an agent, a chain) stands in where its trace has no model call;
    one of kind "" is no call: it tells ids, time and, if nothing else was found, its
    name. `attributes` are those of our span, `results` the answers of tools that the
    provider itself ran. `alone` marks a row of a data set, whose id may come twice.
    """

    kind: str
    attributes: dict = field(default_factory=dict)
    results: list[dict] = field(default_factory=list)
    name: str = ""
    span_id: str = ""
    parent_id: str = ""
    trace_id: str = ""
    session_id: str | None = None
    user_id: str | None = None
    time: float | None = None  # seconds since 1970
    seconds: float | None = None
    alone: bool = False
    line: int = 0
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# Names and values


def canon(name: Any) -> str:
    """Spell a name in one way: `inputTokens` and `input_tokens` are one."""
    return _canon(str(name))


@functools.lru_cache(10_000)  # logs repeat their names line by line
def _canon(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


class Fields:
    """A record's values by any spelling of a name; it knows which were asked for."""

    def __init__(self, record: Any) -> None:
        self.record = record if isinstance(record, dict) else {}
        self.used = {"object", "type", "role", "calltype", "stopreason"}
        self.names: dict[str, str] = {}
        for key in self.record:
            self.names.setdefault(canon(key), key)

    def get(self, *names: str) -> Any:
        """Return the first value that is there and not empty, else None."""
        for name in map(canon, names):
            value = self.record[self.names[name]] if name in self.names else None
            if value not in _EMPTY:
                self.used.add(name)
                return value
        return None

    def unused(self) -> list[str]:
        """Name the keys with a value that nobody asked for."""
        left = (key for key in self.record if canon(key) not in self.used)
        return [key for key in left if self.record[key] not in (*_EMPTY, False)]


def as_text(value: Any) -> str:
    """Give text as it is, anything else as JSON, None as ""."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def decoded(value: Any) -> Any:
    """Decode JSON text, even if encoded twice; other text stays as it is."""
    for _ in range(3):
        if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "[", '"'):
            break
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            break
    return value


def as_object(value: Any) -> dict:
    """Decode a dictionary where there is one; anything else goes under `text`."""
    parsed = decoded(value)
    if isinstance(parsed, dict):
        return parsed
    return {} if value in (None, "") else {"text": value}


def present(values: dict) -> dict:
    """Leave out what is None."""
    return {key: value for key, value in values.items() if value is not None}


def digest(value: Any) -> str:
    """Give 32 hexadecimal digits that only this value has."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


# Times


def moment(when: Any) -> float | None:
    """Give seconds since 1970 for text or a number in any unit, None if it is none."""
    if isinstance(when, dict):  # as a document store writes it
        when = next(iter(when.values()), None)
    if isinstance(when, str):
        text = when.strip().removesuffix(" UTC")
        for read in (float, datetime.fromisoformat, parsedate_to_datetime):
            with contextlib.suppress(ValueError, TypeError, IndexError):
                when = read(text)
                break
    if isinstance(when, datetime):
        when = when.replace(tzinfo=when.tzinfo or UTC).timestamp()
    if isinstance(when, bool) or not isinstance(when, int | float) or not when > 0:
        return None
    while 1e11 < when < float("inf"):  # milliseconds, microseconds or nanoseconds
        when /= 1000
    return float(when) if when < 1e11 else None


def timestamp(when: float | str | None) -> str:
    """Give a trace's `time` for text or a number since 1970; "" where there is none."""
    seconds = moment(when)
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


_UNITS = {"ms": 1e-3, "milliseconds": 1e-3, "us": 1e-6, "ns": 1e-9}
_UNITS |= {"s": 1.0, "sec": 1.0, "seconds": 1.0}


def clock(fields: Fields) -> tuple[float | None, float | None]:
    """Find when a call began and how many seconds it took, None where unknown.

    A duration without a unit is taken for seconds, above 300 for milliseconds.
    """
    began, ended = moment(fields.get(*N.time)), moment(fields.get(*N.end))
    took = [(fields.get("seconds"), "s")]
    for unit in _UNITS:
        took.append((fields.get(*(f"{name}_{unit}" for name in N.took)), unit))
    took.append((fields.get(*N.took), ""))
    for value, unit in took:
        match = re.fullmatch(r"\s*([\d.]+(?:e-?\d+)?)\s*([a-z]*)\s*", str(value))
        if match and (match[2] or unit) in ("", *_UNITS):
            number, unit = float(match[1]), match[2] or unit
            return began, number * (_UNITS[unit] if unit else 1e-3 ** (number > 300))
    if began is not None and ended is not None and ended >= began:
        return began, round(ended - began, 6)
    return began, None


# Errors

_ERRORS = {"timeout": "timeout", "timedout": "timeout", "ratelimit": "rate_limit"}
_ERRORS |= {"toomanyrequests": "rate_limit", "overloaded": "overloaded"}
_CODES = {"408": "timeout", "504": "timeout", "429": "rate_limit"}
_CODES |= {"503": "overloaded", "529": "overloaded"}
_FAILED = ("failure", "failed", "error", "cancelled", "canceled", "timeout")


def error_type(name: str, status: int | str = "") -> str:
    """Say `timeout`, `rate_limit` or `overloaded`, however a provider spells it.

    Other names stay; a whole sentence becomes `_OTHER`, OpenTelemetry's fallback.
    """
    for part, word in _ERRORS.items():
        if part in canon(name):
            return word
    for code in (str(status), *re.findall(r"(?<!\d)\d{3}(?!\d)", name)):
        if code in _CODES:
            return _CODES[code]
    name = name.strip() or str(status)
    return name if name and " " not in name and len(name) < 60 else "_OTHER"


def failure(error: Any, status: Any = None) -> str | None:
    """Give the `error.type` of a logged error of any form, None if there is none."""
    error, code = decoded(error), str(status or "")
    coded = re.fullmatch(r"[45]\d\d", code)
    if not error:
        failed = coded or canon(code) in _FAILED
        return error_type("", code if coded else "") if failed else None
    if not isinstance(error, dict):
        return error_type("" if error is True else as_text(error), code)
    inner = decoded(error.get("error"))
    fields = Fields(inner if isinstance(inner, dict) else error)
    keys = ("code", "error_code", "type", "error_class", "name", "status", "message")
    kinds = [error_type(str(fields.get(k)), code) for k in keys if fields.get(k)]
    known = [kind for kind in kinds if kind in {*_ERRORS.values(), *_CODES.values()}]
    return [*known, *kinds, "_OTHER"][0]


# Token counts

_PREFIX = re.compile(r"^(gen_ai\.usage|llm\.usage|llm\.token_count|ai\.usage|usage)\.")


def usage(counts: dict, inside: bool = False) -> tuple[dict, list[str]]:
    """Read token counts under any name; give OpenTelemetry's, and contradictions.

    OpenAI counts cached input within the input, and so does OpenTelemetry (`inside`);
    Anthropic and Langfuse count it beside: here it is then added. A total decides
    where there is one. A count that cannot be true is left out and told.
    """
    flat: dict[str, int] = {}
    for name, value in _leaves(counts):
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            flat.setdefault(canon(_PREFIX.sub("", name)), int(float(value)))

    def find(names: tuple[str, ...], ends: bool = False) -> int | None:
        for name in map(canon, names):
            for key, value in flat.items():
                if value >= 0 and (key == name or (ends and key.endswith(name))):
                    return value
        return None

    sent, got, total = find(N.sent), find(N.got), find(N.total)
    read, wrote, thought = (find(n, True) for n in (N.read, N.wrote, N.thought))
    if wrote is None:  # Anthropic's counts by how long they are kept
        wrote = sum(v for k, v in flat.items() if "ephemeral" in k) or None
    cached, notes = (read or 0) + (wrote or 0), []
    langfuse = "input" in flat or "output" in flat  # a bucket for each kind
    anthropic = {"cachereadinputtokens", "cachecreationinputtokens"} & set(flat)
    beside = langfuse or bool(anthropic and "inputtokens" in flat and not inside)
    apart = langfuse or "thoughtstokencount" in flat  # Gemini
    if sent is not None and got is not None and total is not None:
        ways = ((beside, apart), (False, False), (True, False), (False, True))
        for way in (*ways, (True, True)):
            if total == sent + way[0] * cached + got + way[1] * (thought or 0):
                beside, apart = way
                break
        else:
            notes.append(f"{sent} + {got} tokens make no total of {total}")
    if sent is not None:
        sent += cached if beside else 0
        if cached > sent:
            notes.append(f"{cached} cached tokens are more than the input of {sent}")
            read = wrote = None
    if got is not None:
        got += (thought or 0) if apart else 0
        if (thought or 0) > got:
            notes.append(f"{thought} reasoning tokens exceed the output of {got}")
            thought = None
    names = (*TOKENS, CACHED, WRITTEN, REASONING)
    return present(dict(zip(names, (sent, got, read, wrote, thought), strict=True))), (
        notes
    )


def _leaves(counts: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(counts, dict):
        yield name, counts
        return
    for key, value in counts.items():
        yield from _leaves(value, f"{name}.{key}" if name else key)


# Spans and traces


def span(kind: str, name: str, attributes: dict, seconds: float | None = None) -> dict:
    """Make a span with a random id; `kind` is "llm" or "tool". None is left out."""
    if kind not in ("llm", "tool"):
        raise ValueError(f"kind should be 'llm' or 'tool', not {kind!r}")
    new = {"name": name, "span_id": secrets.token_hex(8), "kind": kind}
    new["attributes"] = present(attributes)
    return new if seconds is None else new | {"seconds": round(float(seconds), 6)}


def tool_spans(chat: list[dict], results: list[dict] = ()) -> Iterator[dict]:
    """Make a span of each tool call since the last user message, with any result."""
    asked = max((i for i, m in enumerate(chat, 1) if m["role"] == "user"), default=0)
    answers = [m for m in [*chat[asked:], *results] if m["role"] == "tool"]
    answered = {m.get("tool_call_id"): m["content"] for m in answers}
    for message in chat[asked:]:
        for call in message.get("tool_calls") or []:
            name = call["function"]["name"]
            attributes = {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": name,
                "gen_ai.tool.call.id": call["id"],
                ARGUMENTS: as_object(call["function"]["arguments"]),
            }
            if call["id"] in answered:
                attributes[RESULT] = as_object(answered[call["id"]])
            yield span("tool", f"execute_tool {name}", attributes)


def groups_of(calls: list[Call]) -> list[list[Call]]:
    """Group the calls of each trace, leaving out groups with no call that counts."""
    groups: dict[str, list[Call]] = {}
    for call in calls:
        groups.setdefault(call.trace_id, []).append(call)
    return [group for group in groups.values() if _chosen(group)]


def trace_of(group: list[Call]) -> dict:
    """Make a trace of the calls that share a trace id.

    Where tools were called but left no span, the messages tell of the calls. A call
    that stands inside another (a library's around the vendor's) counts once.
    """
    chosen, spans = _chosen(group), []
    for call in chosen:
        kind = "tool" if call.kind == "tool" else "llm"
        spans.append(span(kind, call.name, call.attributes, call.seconds))
        spans[-1]["span_id"] = call.span_id
    if all(one["kind"] == "llm" for one in spans):
        last = spans[-1]["attributes"]
        asked = tool_spans(last.get(INPUT) or [])
        said = tool_spans(last.get(OUTPUT) or [], chosen[-1].results)
        spans = [*spans[:-1], *asked, spans[-1], *said]
    times = [call.time for call in group if call.time is not None]
    trace = {"trace_id": group[0].trace_id}
    for who in ("session_id", "user_id"):
        ids = (getattr(call, who) for call in group)
        trace[who] = next((str(one) for one in ids if one is not None), None)
    return trace | {"time": timestamp(min(times, default=None)), "spans": spans}


def _chosen(group: list[Call]) -> list[Call]:
    """Choose the calls of a trace that count, in the order of their times."""
    models = [c for c in group if c.kind == "llm"]
    around = {c.parent_id for c in models if INPUT in c.attributes}
    models = [c for c in models if c.span_id not in around]
    if not models:
        outer = [c for c in group if c.kind == "outer" and c.attributes.get(INPUT)]
        models = [c for c in outer if c.attributes.get(OUTPUT)][:1]
    chosen = [c for c in group if c in models or c.kind == "tool"]
    if all(c.time is not None for c in chosen):
        chosen.sort(key=lambda c: c.time)
    return chosen
