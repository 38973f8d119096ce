"""Foreign logs as traces: what vendors, gateways, tracing tools and data sets write.

An adapter finds the parts of a call in its dialect and gives a `Call`; `trace_of`
makes a trace of calls, in the form of data/traces.jsonl. Messages become
`{"role", "content"}`, the content as text, tool calls beside it in OpenAI's form, the
system prompt first. Left out are thinking, and spans that are no model or tool call.
A record without a time gives a trace with time "".

To add a name that your logs use, add a word to the table in `names`. To add a shape,
write a function from a record to calls (see `adapters`) and a row of `FORMATS`.
"""

# ruff: noqa: F401, I001 - the names that the rest of `utils` takes from here
from collections.abc import Callable
from typing import Any

from utils.logs.importers.adapters import UnknownShapeError, exchange, row, step
from utils.logs.importers.calls import ARGUMENTS, INPUT, OUTPUT, REQUEST, RESULT
from utils.logs.importers.calls import KINDS, Call, groups_of, span, trace_of
from utils.logs.importers.chats import is_message, messages
from utils.logs.importers.files import records
from utils.logs.importers.names import N
from utils.logs.importers.spans import Export, is_span
from utils.logs.importers.streams import joined, whole
from utils.logs.importers.values import TOKENS, Fields, canon, decoded
from utils.logs.importers.values import error_type, timestamp, usage

KNOWN = (
    "known shapes: OpenAI chat, OpenAI Responses, Anthropic, OTel/OTLP, Langfuse, "
    "LangSmith, Helicone, LiteLLM, Phoenix/OpenInference, fine-tuning rows, ShareGPT, "
    "gateway lines (request and response or error), CSV of these"
)
_LANGFUSE = {"traceid", "parentobservationid", "sessionid", "userid", "usagedetails"}
_LANGFUSE |= {"bookmarked", "environment", "costdetails"}


def _is_course(record: dict) -> bool:
    spans = record.get("spans")
    kinds = [s.get("kind") for s in spans or [] if isinstance(s, dict)]
    named = isinstance(spans, list) and {"trace_id", "time"} <= record.keys()
    return named or (bool(kinds) and set(kinds) <= {"llm", "tool"})


def _is_step(record: dict) -> bool:
    fields = Fields(record)
    if fields.get("run_type") or isinstance(fields.get("observations"), list):
        return True
    if canon(fields.get("type")) in KINDS:
        return fields.get("input", "output") is not None
    own = _LANGFUSE & fields.names.keys() and "object" not in fields.names
    return bool(own) and {"input", "output"} <= fields.names.keys()


def _is_exchange(record: dict) -> bool:
    fields = Fields(record)
    bodies = [whole(fields.get(*names)) for names in (N.request, N.response)]
    inside = fields.get("choices", "generations", "call_type", "proxy_server_request")
    if inside or any(isinstance(body, dict | list) for body in bodies):
        return True
    if fields.get("object") == "response" or fields.get("type") in ("message", "error"):
        return True
    came = fields.get(*N.response, "error", "usage", "status")
    asked = fields.get("messages", "request", "input")
    return bool(asked and came) or bool(fields.get("messages") and fields.get("output"))


def _is_row(record: dict) -> bool:
    fields = Fields(record)
    chat = decoded(fields.get(*N.chat))
    if isinstance(chat, list) and all(map(is_message, chat)):
        return True
    pair = (fields.get(*N.weak_chat, "instruction"), fields.get(*N.reply))
    return None not in pair


# Names, whether a record is of this form, and the function that reads it. The first
# that fits is taken. Those without a function `traces.load` reads: the course's own
# form, and spans, which have to be collected from the whole file.
FORMATS: tuple[tuple[str, Callable, Callable | None], ...] = (
    ("course", _is_course, None),
    ("otel phoenix", is_span, None),
    ("langfuse langsmith", _is_step, step),
    ("openai responses anthropic helicone litellm gateway", _is_exchange, exchange),
    ("finetuning sharegpt rows", _is_row, row),
)
_READERS = {name: read for names, _, read in FORMATS for name in names.split()}
NAMES = ("auto", *_READERS)


def guess(record: dict) -> str | None:
    """Name the format of a record, None if it has none that is known."""
    found = (names.split()[0] for names, fits, _ in FORMATS if fits(record))
    return next(found, None)


def opened(record: Any, depth: int = 0) -> list:
    """Take records out of the envelopes that exports and log shippers put around.

    A record of a known form, and one with nothing known in it, come back as they are.
    """
    record = decoded(record)
    if isinstance(record, list) and depth < 4:
        return [one for item in record for one in opened(item, depth + 1)]
    if not isinstance(record, dict) or guess(record):
        return [record]
    for key in N.envelope if depth < 4 else ():
        inner = decoded(record.get(key))
        found = opened(inner, depth + 1) if isinstance(inner, dict | list) else []
        if found and all(isinstance(one, dict) and guess(one) for one in found):
            return found
    return [record]


def calls(record: dict, format: str) -> list[Call]:
    """Read a record by the adapter of that name; "" has none: ValueError."""
    read = _READERS.get(format)
    if read is None:
        raise UnknownShapeError(record)
    return read(record)


def openai(record: dict) -> dict:
    """Make a trace of one logged call: chat completions, Responses or Anthropic's.

    `record` has "request" and "response" or "error"; beside them, where the log has
    them, time, seconds, session_id, user_id, prompt_version and trace_id. Without an
    id the trace gets a hash of the record. ValueError says what is missing.
    """
    return trace_of(exchange(record))
