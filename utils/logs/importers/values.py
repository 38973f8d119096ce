"""Values of foreign records: names, JSON within text, times, errors, tokens."""

import ast
import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from utils.logs.importers.names import N

EMPTY = (None, "", [], {})


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
        for name in map(canon, names if self.record else ()):
            value = self.record[self.names[name]] if name in self.names else None
            if value not in EMPTY:
                self.used.add(name)
                return value
        return None

    def unused(self) -> list[str]:
        """Name the keys with a value that nobody asked for."""
        left = (key for key in self.record if canon(key) not in self.used)
        return [key for key in left if self.record[key] not in (*EMPTY, False)]


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


def printed(text: str) -> Any:
    """Read what Python prints of a list or a dictionary; ValueError if it is none."""
    try:
        return json.loads(json.dumps(ast.literal_eval(text.strip())))
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise ValueError(f"no value that Python prints: {text[:40]!r}") from None


def as_object(value: Any) -> dict:
    """Decode a dictionary where there is one; anything else goes under `text`."""
    parsed = decoded(value)
    if isinstance(parsed, str) and parsed.lstrip()[:1] == "{":
        with contextlib.suppress(ValueError):
            parsed = printed(parsed)
    if isinstance(parsed, dict):
        return parsed
    return {} if value in (None, "") else {"text": value}


def as_list(value: Any) -> list:
    """Decode a list where there is one, else give an empty one."""
    parsed = decoded(value)
    return parsed if isinstance(parsed, list) else []


def present(values: dict) -> dict:
    """Leave out what is None."""
    return {key: value for key, value in values.items() if value is not None}


def digest(value: Any) -> str:
    """Give 32 hexadecimal digits that only this value has."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]


def moment(when: Any) -> float | None:
    """Give seconds since 1970 for text or a number in any unit, None if it is none."""
    if isinstance(when, str):
        text = when.strip().removesuffix(" UTC")
        for read in (float, datetime.fromisoformat, parsedate_to_datetime):
            with contextlib.suppress(ValueError, TypeError):
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


# Seconds in a unit; a number without one is told by its size.
_UNITS = {"ms": 1e-3, "milliseconds": 1e-3, "us": 1e-6, "ns": 1e-9}
_UNITS |= {"s": 1.0, "sec": 1.0, "seconds": 1.0, "": None}


def clock(fields: Fields) -> tuple[float | None, float | None]:
    """Find when a call began and how many seconds it took, None where unknown.

    A duration without a unit is taken for seconds, above 300 for milliseconds.
    """
    began, ended = moment(fields.get(*N.time)), moment(fields.get(*N.end))
    for unit in _UNITS:
        value = fields.get(*(name + unit for name in (*N.took, "")))
        text = f"{value} {unit}".strip()
        match = re.fullmatch(r"(\d*\.?\d+(?:e-?\d+)?) *([a-z]*)", text)
        if match and match[2] in _UNITS:
            number = float(match[1])
            return began, number * (_UNITS[match[2]] or 1e-3 ** (number > 300))
    known = began is not None and ended is not None and ended >= began
    return began, round(ended - began, 6) if known else None


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
    return name if re.fullmatch(r"[^\s{]{1,60}", name) else "_OTHER"


def failure(error: Any, status: Any = None) -> str | None:
    """Give the `error.type` of a logged error of any form, None if there is none."""
    error, code = decoded(error), str(status or "")
    coded = code if re.fullmatch(r"[45]\d\d", code) else ""
    if not error:
        return error_type("", coded) if coded or canon(code) in _FAILED else None
    known = error_type("" if error is True else as_text(error), code)
    if known in (*_ERRORS.values(), *_CODES.values()) or not isinstance(error, dict):
        return known
    inner = Fields(decoded(error.get("error")) or error)
    kind = inner.get("code", "error_code", "type", "error_class", "name", "status")
    return error_type(as_text(kind), coded)


_VERDICTS = {"thumbs_up": "thumbsup up true 1 positive good like correct right"}
_VERDICTS |= {"thumbs_down": "thumbsdown down false negative bad dislike wrong"}
_VERDICTS |= {"approved": "approved accepted", "corrected": "corrected edited"}
_SAID = {word: said for said, words in _VERDICTS.items() for word in words.split()}


def feedback(value: Any) -> dict | None:
    """Read what a user said, in any form; None if no verdict of ours is in it.

    Of scores by name, those of users count: others may be a judge's.
    """
    value, comment = decoded(value), None
    if isinstance(value, list):
        value = {as_text(Fields(one).get("name", "key")): one for one in value}
    if isinstance(value, dict):
        fields = Fields(value)
        said, comment = fields.get(*N.said), fields.get("comment")
        if said is None:
            users = re.compile("user|feedback|thumb|rating", re.I)
            held = (feedback(one) for key, one in value.items() if users.search(key))
            return next(filter(None, held), None)
        value = said
    text = as_text(value).removesuffix(".0")
    verdict = _SAID.get("down" if text == "-1" else canon(text))
    found = {"source": "user", "verdict": verdict, "comment": comment}
    return present(found) if verdict else None


TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")
_KINDS = ("cache_read.input", "cache_creation.input", "reasoning.output")
_NAMES = (*TOKENS, *(f"gen_ai.usage.{kind}_tokens" for kind in _KINDS))
_TOTALS = set(map(canon, (*N.sent, *N.got, *N.total)))
_PREFIX = re.compile(r"^((gen_ai|llm|ai)\.(usage|response|token_count))\.")


def usage(counts: Any) -> tuple[dict, list[str]]:
    """Read token counts under any name; give OpenTelemetry's, and contradictions.

    OpenAI and OpenTelemetry count cached input within the input, Anthropic and
    Langfuse beside it: there it is added, as is more cached input than there is input.
    A total decides where there is one. A count that cannot be true is told.
    """
    flat: dict[str, int] = {}
    notes: list[str] = []
    spans = False  # OpenTelemetry's own names
    for name, value in _leaves(counts):
        plain, prefixed = _PREFIX.subn("", str(name))
        spans = spans or bool(prefixed)
        name = canon(plain)
        if re.fullmatch(r"\d+(\.0*)?(e\+?\d)?", str(value).strip()):
            flat.setdefault(name, int(float(value)))
        elif value not in EMPTY and (name.endswith("tokens") or name in _TOTALS):
            notes.append(f"{plain} is {value!r:.20}, no count")

    def find(names: tuple[str, ...], end: bool = False) -> int | None:
        for name in map(canon, names):
            for key, value in flat.items():
                if key == name or (end and key.endswith(name)):
                    return value
        return None

    sent, got, total = find(N.sent), find(N.got), find(N.total)
    read, wrote, thought = (find(n, end=True) for n in (N.read, N.wrote, N.thought))
    if wrote is None:  # Anthropic counts by how long it keeps them
        wrote = sum(n for key, n in flat.items() if "ephemeral" in key) or None
    cached = (read or 0) + (wrote or 0)
    # What stands beside the input, and beside the output. Langfuse: every kind.
    buckets = "input" in flat or "output" in flat
    anthropic = {"cachereadinputtokens", "cachecreationinputtokens"} & flat.keys()
    anthropic = anthropic and "inputtokens" in flat and not spans
    if "prompttokens" in flat:  # the AI SDK's fourth version
        anthropic = anthropic or any("anthropic" in key for key in flat)
    beside = cached if buckets or anthropic else 0
    apart = (thought or 0) if buckets else 0
    if None not in (sent, got, total):
        ways = [(beside, apart)]
        ways += [(a, b) for a in (0, cached) for b in (0, thought or 0)]
        fits = [way for way in ways if sent + got + sum(way) == total]
        if not fits:
            notes.append(f"{sent} + {got} tokens make no total of {total}")
        beside, apart = [*fits, ways[0]][0]
    if sent is not None:
        openai = any("prompttokensdetails" in key for key in flat)  # a part, for sure
        if cached > sent and not openai:  # a part cannot be more than the whole
            beside = cached
        sent += beside
        if cached > sent:
            notes.append(f"{cached} cached tokens are more than the input of {sent}")
            read = wrote = None
    if got is not None:
        got += apart
        if (thought or 0) > got:
            notes.append(f"{thought} reasoning tokens exceed the output of {got}")
            thought = None
    found = zip(_NAMES, (sent, got, read, wrote, thought), strict=True)
    return present(dict(found)), notes


def _leaves(counts: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(counts, dict):
        yield name, counts
        return
    for key, value in counts.items():
        yield from _leaves(value, f"{name}.{key}" if name else key)
