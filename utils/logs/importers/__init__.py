"""Foreign logs as traces: what vendors, gateways, tracing tools and data sets write.

Each adapter finds the parts of a call in its dialect and gives a `Call`, the normal
form; `trace_of` makes a trace of them, in the form of data/traces.jsonl. Messages
become `{"role", "content"}` with the content as text, tool calls and their ids beside
it in OpenAI's form, the system prompt first. What is no model or tool call (a web
request, an agent's summary span) is left out; so is thinking. A record without a time
gives a trace with time "".

Which adapter reads a record, the record's own keys decide: see `FORMATS`. To add a
dialect, write a function from a record to calls and a row of that table; to add a
name, a word in `names`.
"""

# ruff: noqa: F401 - the names that the rest of `utils` takes from here

from collections.abc import Callable
from typing import Any

from utils.logs.importers.chats import is_message, messages
from utils.logs.importers.files import records
from utils.logs.importers.names import N
from utils.logs.importers.normal import (
    ARGUMENTS,
    INPUT,
    OUTPUT,
    RESULT,
    TOKENS,
    Call,
    Fields,
    canon,
    decoded,
    error_type,
    groups_of,
    span,
    timestamp,
    trace_of,
    usage,
)
from utils.logs.importers.spans import Export, is_span
from utils.logs.importers.streams import joined, joined_blocks, joined_events, whole
from utils.logs.importers.tools import observation, row
from utils.logs.importers.vendors import REQUEST, UnknownShapeError, body_in, exchange

KNOWN = (
    "known shapes: OpenAI chat, OpenAI Responses, Anthropic, OTel/OTLP, Langfuse, "
    "LangSmith, Helicone, LiteLLM, Phoenix/OpenInference, fine-tuning rows, ShareGPT, "
    "gateway lines (request and response or error), CSV of these"
)
# Rows of plain texts: one of the first, one of the second.
_ASKED = {"prompt", "question", "query", "instruction", "input", "user", "human"}
_SAID = {"completion", "answer", "output", "response", "reply", "assistant", "bot"}
_SAID |= {"chosen", "preferredoutput"}
_BODIES = ("choices", "candidates", "generations", "proxy_server_request")
_ENVELOPES = ("data", "observations", "runs", "rows", "items", "traces", "results")
_ENVELOPES += ("records", "logs", "requests", "spans", "events", "hits", "log", "trace")
_ENVELOPES += ("message", "msg", "jsonPayload", "payload", "_source", "event", "body")
_ENVELOPES += ("record", "standard_logging_object", "run", "span", "kwargs", "examples")
_ENVELOPES += ("row",)
_STEPS = ("generation", "span", "event", "tool", "agent", "chain", "retriever")


def _has(*names: str) -> Callable[[dict], bool]:
    return lambda record: Fields(record).get(*names) is not None


def _course(record: dict) -> bool:
    spans = record.get("spans")
    kinds = [s.get("kind") for s in spans or [] if isinstance(s, dict)]
    named = isinstance(spans, list) and {"trace_id", "time"} <= set(record)
    return named or (bool(kinds) and set(kinds) <= {"llm", "tool"})


def _langfuse(record: dict) -> bool:
    names = {canon(key) for key in record}
    if isinstance(record.get("observations"), list):
        return True
    if canon(record.get("type")) in _STEPS and names & {"input", "output"}:
        return True
    own = {"traceid", "parentobservationid", "sessionid", "userid", "usagedetails"}
    own |= {"bookmarked", "environment", "costdetails"}
    return {"input", "output"} <= names and bool(own & names) and "object" not in names


def _responses(record: dict) -> bool:
    got = Fields(body_in(Fields(record), *N.response))
    kinds = (got.get("object"), record.get("object"))
    asked = Fields(body_in(Fields(record), *N.request)).get("input") and not got.get(
        "choices"
    )
    return "response" in kinds or bool(asked)


def _anthropic(record: dict) -> bool:
    bodies = (body_in(Fields(record), *N.response), record)
    return any(Fields(body).get("type") in ("message", "error") for body in bodies)


def _exchange(record: dict) -> bool:
    fields = Fields(record)
    bodies = (fields.get(*N.request), fields.get(*N.response), fields.get(*_BODIES))
    if any(isinstance(whole(body), dict | list) for body in bodies):
        return True
    if fields.get("messages", "contents", "request"):
        return (
            any(bodies) or fields.get("error", "usage", "output", "status") is not None
        )
    return not _pair(record) and fields.get("input") and fields.get("usage", "error")


def _chat(record: dict) -> bool:
    chat = decoded(Fields(record).get("messages", "contents"))
    return isinstance(chat, list) and all(map(is_message, chat))


def _pair(record: dict) -> bool:
    names = {canon(key) for key, value in record.items() if value is not None}
    return bool(_ASKED & names) and bool(_SAID & names)


Adapter = Callable[[dict], list[Call]] | None
# Name, whether a record is of this form, and the function that reads it. The first
# that fits is taken. Those without a function `traces.load` reads: the course's own
# form, and spans, which have to be collected from the whole file.
FORMATS: tuple[tuple[str, Callable[[dict], bool], Adapter], ...] = (
    ("course", _course, None),
    ("otel", is_span, None),
    ("phoenix", is_span, None),
    ("langsmith", _has("run_type", "dotted_order"), observation),
    ("litellm", _has("call_type", "litellm_call_id"), exchange),
    ("helicone", _has("request_body", "response_body"), exchange),
    ("responses", _responses, exchange),
    ("anthropic", _anthropic, exchange),
    ("openai", _exchange, exchange),
    ("gateway", _exchange, exchange),
    ("langfuse", _langfuse, observation),
    ("finetuning", _chat, row),
    ("sharegpt", _has("conversations", "conversation"), row),
    ("rows", _pair, row),
)
NAMES = ("auto", *(name for name, _, _ in FORMATS))


def guess(record: dict) -> str | None:
    """Name the format of a record, None if it has none that is known."""
    return next((name for name, fits, _ in FORMATS if fits(record)), None)


def opened(record: Any, depth: int = 0) -> list:
    """Take records out of the envelopes that exports and log shippers put around.

    A record of a known form, and one with nothing known in it, come back as they are.
    """
    record = decoded(record)
    if isinstance(record, list) and depth < 4:
        return [one for item in record for one in opened(item, depth + 1)]
    if not isinstance(record, dict) or guess(record):
        return [record]
    for key in _ENVELOPES if depth < 4 else ():
        inner = decoded(record.get(key))
        found = opened(inner, depth + 1) if isinstance(inner, dict | list) else []
        known = [isinstance(one, dict) and guess(one) for one in found]
        if found and all(known):
            return found
    return [record]


def calls(record: dict, format: str) -> list[Call]:
    """Read a record by the adapter of that name; "" has none: ValueError."""
    read = {name: function for name, _, function in FORMATS}.get(format)
    if read is None:
        raise UnknownShapeError(record)
    return read(record)


def openai(record: dict) -> dict:
    """Make a trace of one logged call of OpenAI's chat completions.

    `record` has "request" and "response" or "error"; beside them, where the log has
    them, time, seconds, session_id, user_id, prompt_version and trace_id. Without an
    id the trace gets a hash of the record, so that importing twice gives the same.
    Tool calls of this turn become tool spans, without a result where the log ends
    before it. ValueError says what is missing.
    """
    return trace_of(exchange(record))


# The same for one logged call of OpenAI's Responses API, of Anthropic's Messages API.
# Anthropic counts cached input apart from `input_tokens`; OpenTelemetry counts it in.
responses = anthropic = openai
