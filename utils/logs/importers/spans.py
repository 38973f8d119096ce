"""Spans of OpenTelemetry: OTLP/JSON in its spellings, Phoenix, and the dialects.

Message texts stand in attributes (GenAI old and new, OpenLLMetry, OpenInference,
Vercel, Langfuse), in events of the span, or in log records that name the span.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any

from utils.logs.importers import values as v
from utils.logs.importers.adapters import step
from utils.logs.importers.calls import ARGUMENTS, INPUT, KINDS, OUTPUT, RESULT, Call
from utils.logs.importers.chats import is_message
from utils.logs.importers.names import N
from utils.logs.importers.values import Fields, as_list, as_text, canon, decoded

_RESOURCES = ("resourcespans", "resourcelogs")
_SCOPES = ("scopespans", "instrumentationlibraryspans", "scopelogs")
_SCOPES += ("instrumentationlibrarylogs",)
# JSON around what was asked and said; elsewhere, a text that is JSON is a text.
_WRAPPED = (INPUT, OUTPUT, "ai.prompt", "traceloop.entity.input", "request_data")
_WRAPPED += ("traceloop.entity.output", "response_data")
_COUNT = re.compile("usage|_count|gen_ai.response.*_tokens")
# An event with one of these names ends a call.
_LAST = ("gen_ai.choice", "gen_ai.client.inference.operation.details")


def is_span(record: dict) -> bool:
    """Say whether a record is an export of spans or log records, or one of them."""
    names = set(map(canon, record))
    if names & {*_RESOURCES, *_SCOPES}:
        return True
    ids = {"traceid", "spanid"} <= names or "contexttraceid" in names
    held = {"starttimeunixnano", "eventname", "body"} & names
    held = held or any(name.startswith("attributes") for name in names)
    return bool(held) and (ids or isinstance(record.get("context"), dict))


class Export:
    """Spans and log records of a whole file: they belong together by their ids."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, dict, dict]] = []  # line, span, resource
        self.logs: list[tuple[int, dict]] = []
        self.faults: list[tuple[int, str]] = []

    def add(self, record: dict, line: int) -> None:
        """Take the spans and log records of an export, or one of either."""
        names = set(map(canon, record))
        if not names & {*_RESOURCES, *_SCOPES}:
            log = names & {"eventname", "body"} and "name" not in names
            record = {"scopespans": [{"logrecords" if log else "spans": [record]}]}
        for resource in self._under(line, record, *_RESOURCES) or [record]:
            about = _values(v.as_object(resource.get("resource")).get("attributes"))
            for scope in self._under(line, resource, *_SCOPES):
                for one in self._under(line, scope, "spans"):
                    self.spans.append((line, one, about))
                for log in self._under(line, scope, "logrecords"):
                    self.logs.append((line, log))

    def _under(self, line: int, holder: dict, *names: str) -> list[dict]:
        """List what stands under these names; what is no object is a fault."""
        found = []
        for name in names:
            held = holder.get(Fields(holder).names.get(name), [])
            for one in held if isinstance(held, list) else [held]:
                if isinstance(one, dict):
                    found.append(one)
                else:
                    what = as_text(one)[:40] or "null"
                    self.faults.append((line, f"span in {name} is {what}, no object"))
        return found

    def calls(self) -> list[Call]:
        """Make a call of each span; `faults` tells of those that cannot be read."""
        logged: dict[tuple[str, str], list] = {}
        turn = 0
        for line, log in self.logs:
            try:
                event = _event(log)
            except Exception as error:  # costs this record only
                self.faults.append((line, f"span {_ids(log)[1]}: {error!r}"))
                continue
            key = _ids(log)
            if not all(key):  # without ids: a choice ends a call
                key = ("", f"call {turn}")
                turn += event[0] in _LAST
            if "gen_ai" in event[0]:
                logged.setdefault(key, []).append((line, log, event))
        found = [(*one, logged.pop(_ids(one[1]), [])) for one in self.spans]
        for key, told in logged.items():  # records without their span
            line, first, _ = told[0]
            one = {**first, "name": "chat", "end": Fields(told[-1][1]).get(*N.time)}
            if not key[0]:
                one["trace_id"] = v.digest([log for _, log, _ in told])
            found.append((line, one, {}, told))
        made = []
        for line, one, about, told in found:
            try:
                made.append(_span_call(one, about, [event for *_, event in told]))
                made[-1].line = line
            except Exception as error:  # costs this span only
                known = isinstance(error, ValueError)
                why = str(error) if known else f"a value is not as expected: {error!r}"
                self.faults.append((line, f"span {_ids(one)[1]}: {why}"))
        return sorted(made, key=lambda call: call.time or 0)


def _ids(one: dict) -> tuple[str, str]:
    fields = Fields(one | Fields(one.get("context")).record)
    names = ("trace_id", "span_id")
    trace_id, span_id = (_id(fields.get(name, f"context.{name}")) for name in names)
    return trace_id, span_id


def _id(value: Any) -> str:
    """Spell an id in hexadecimal digits, be it those, `0x` or base64."""
    text = str(value or "").removeprefix("0x")
    if re.fullmatch("[0-9a-fA-F]{32}|[0-9a-fA-F]{16}", text):
        return text.lower()
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return text
    return raw.hex() if len(raw) in (8, 16) else text


def _values(pairs: Any) -> dict:
    """Make a dictionary of a span's attributes: typed pairs, flat or nested names."""
    pairs = decoded(pairs)
    if isinstance(pairs, list):
        known = [pair for pair in pairs if isinstance(pair, dict) and "key" in pair]
        pairs = {str(pair["key"]): _typed(pair) for pair in known}
    if not isinstance(pairs, dict | None) and pairs != "":
        raise ValueError(f"attributes are {pairs!r:.40}, no list of keys and values")
    found = dict(_flat(pairs if isinstance(pairs, dict) else {}))
    return {key: value for key, value in found.items() if value not in (None, "")}


def _typed(pair: dict) -> Any:
    try:
        return _value(pair.get("value"))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"attribute {pair['key']} is broken: {error}") from None


def _value(typed: Any) -> Any:
    """Decode OTLP's typed value, in either spelling; a plain value stays."""
    if not isinstance(typed, dict) or len(typed) != 1:
        return typed or None
    [(kind, value)] = typed.items()
    kind = canon(kind)
    if kind == "intvalue":  # 64 bits: JSON carries it as text
        return int(value)
    inner = as_list(value.get("values")) if isinstance(value, dict) else []
    if kind == "arrayvalue":
        return [_value(item) for item in inner]
    if kind == "kvlistvalue":
        return {str(pair["key"]): _value(pair.get("value")) for pair in inner}
    return value if kind.endswith("value") else typed


def _flat(nested: dict, name: str = "") -> Iterator[tuple[str, Any]]:
    whole = (ARGUMENTS, RESULT, INPUT, OUTPUT, "input.value", "output.value")
    for key, value in nested.items():
        full = f"{name}.{key}" if name else str(key)
        if isinstance(value, dict) and value and full not in whole:
            yield from _flat(value, full)
        else:
            yield full, value


def _tree(node: Any) -> Any:
    """Build what dotted names spell out; a level of numbers is a list."""
    if isinstance(node, list):
        return list(map(_tree, node))
    if not isinstance(node, dict):
        return node
    groups: dict = {}
    for key, value in node.items():
        first, _, rest = key.partition(".")
        if rest:
            groups.setdefault(first, {})[rest] = value
        else:
            groups[first] = value
    made = {key: _tree(value) for key, value in groups.items()}
    if made and all(key.isdecimal() for key in made):
        return [made[key] for key in sorted(made, key=int)]
    return made


def _indexed(values: dict, name: str) -> list:
    """List what `name.0.role`, `name.0.content`, ... spell out."""
    start = len(name) + 1
    found = {k[start:]: v for k, v in values.items() if k.startswith(f"{name}.")}
    return as_list(_tree(found))


def _content(values: dict, names: tuple[str, ...]) -> Any:
    """Find a span's messages under the first name that has them."""
    for name in names:
        held = decoded(values.get(name)) if name in _WRAPPED else values.get(name)
        _check_whole(name, held)
        if isinstance(held, list):
            held = [decoded(item) for item in held]
        held = held or _indexed(values, name)
        if isinstance(held, list) and name.startswith("llm."):  # OpenInference
            held = [m.get("message", m) for m in _tree(held) if isinstance(m, dict)]
        if held:
            return list(map(_with_blocks, held)) if isinstance(held, list) else held
    return None


def _check_whole(name: str, held: Any) -> None:
    """Refuse messages whose JSON was cut; replies may be broken JSON by themselves."""
    lists = (*N.span_in, OUTPUT, "llm.output_messages", ARGUMENTS)
    starts = ("[{", '{"', '"[{', '"{')
    text = held.lstrip() if isinstance(held, str) and name in lists else ""
    if text.startswith(starts) and decoded(held) == held:
        raise ValueError(f"{name} is cut off or no JSON: {held[:40]!r}")


def _with_blocks(message: Any) -> Any:
    """Decode the content of a message, if it is the JSON of blocks, and its calls."""
    if not isinstance(message, dict):
        return message
    blocks, calls = (as_list(message.get(key)) for key in ("content", "tool_calls"))
    typed = blocks and all(isinstance(block, dict) for block in blocks)
    blocks = {"content": blocks} if typed else {}
    return message | blocks | ({"tool_calls": calls} if calls else {})


def _event(one: dict) -> tuple[str, dict]:
    """Name an event of a span, or a log record, and give all that it holds."""
    fields = Fields(one)
    held, body = _values(fields.get("attributes")), _value(fields.get("body"))
    for inner in (decoded(body), decoded(held.get("gen_ai.event.content"))):
        held |= inner if isinstance(inner, dict) else {}  # the second: Azure's
    if isinstance(body, str):
        held.setdefault("content", body)
    name = fields.get("event_name", "name") or held.get("event.name")
    return as_text(name), held


def _told(events: list[tuple[str, dict]], values: dict) -> tuple[list, list]:
    """Read a span's events: the chat and the replies.

    Other events (details, gen_ai.content.prompt) carry attributes of the span.
    """
    chat, replies = [], []
    for name, held in events:
        if name.startswith("gen_ai.") and name.endswith(".message"):
            chat.append(_with_blocks({"role": name.split(".")[1], **held}))
        elif name == "gen_ai.choice":
            said = held.get("message", held.get("content"))
            inner = decoded(said)
            inner = inner if isinstance(inner, dict) else {}
            if not {"content", "tool_calls", "role"} & inner.keys():
                inner = {"content": said}  # JSON of a product is text
            beside = {k: held[k] for k in ("tool_calls", "finish_reason") if k in held}
            replies.append(_with_blocks({"role": "assistant", **inner, **beside}))
        elif "gen_ai" in name or name == "exception":
            values |= {k: value for k, value in held.items() if k not in values}
    return chat, replies


def _span_call(one: dict, about: dict, logged: list[tuple[str, dict]]) -> Call:
    """Make a call of a span in any dialect, by way of a step of a tracing tool."""
    fields = Fields(one)
    values = _values(fields.get("attributes"))
    columns = {k: value for k, value in one.items() if k.startswith("attributes.")}
    values |= {k.removeprefix("attributes."): v for k, v in _values(columns).items()}
    if fields.get("span_kind"):
        values.setdefault("openinference.span.kind", fields.get("span_kind"))
    events = [_event(event) for event in as_list(fields.get("events"))]
    for event in as_list(values.pop("events", None)):  # Logfire's
        events.append((as_text(event.get("event.name")), event))
    chat, replies = _told([*events, *logged], values)
    given, every = Fields(values), Fields(about | values)
    word = as_text(decoded(given.get(*N.kind)))
    kind = KINDS.get(canon(word))
    # An operation of a name that is not known, which has messages or a model.
    texts = (*N.span_in[:4], *N.span_out[:4])
    known = chat or replies or given.get(*N.model)
    if kind is None and (known or any(key.startswith(texts) for key in values)):
        word = kind = "llm"
    error, status = given.get("error.type", "exception.type"), Fields(one.get("status"))
    code = as_text(status.get("code", "status_code") or fields.get("status_code"))
    if code.upper().endswith(("2", "ERROR")):
        error = error or "_OTHER"
    name, asked, got = fields.get("name"), None, None
    if kind == "tool":
        _check_whole(ARGUMENTS, values.get(ARGUMENTS))
        name = given.get(*N.tool) or name
        asked, got = given.get(*N.tool_in), given.get(*N.tool_out)
        if got is None and error and status.get("message"):
            got = {"error": status.get("message")}
    elif kind:
        asked = _content(values, N.span_in) or chat
        got = _replies(values, given) or replies
    else:
        name = given.get("gen_ai.operation.name") or name
    sent = v.as_object(given.get("llm.invocation_parameters"))
    tools = given.get("gen_ai.tool.definitions", "ai.prompt.tools")
    tools = tools or _indexed(values, "llm.request.functions") or sent.get("tools")
    bulk = (*N.span_in, *N.span_out, *N.span_bulk)
    kept = {key: value for key, value in values.items() if not key.startswith(bulk)}
    kept["gen_ai.provider.name"] = given.get(*N.provider)
    kept["gen_ai.response.id"] = given.get("gen_ai.response.id", "ai.response.id")
    kept["gen_ai.response.model"] = given.get(*N.response_model)
    kept["gen_ai.response.finish_reasons"] = given.get(*N.span_ends)
    counts = {k: value for k, value in values.items() if _COUNT.search(k)}
    counts["caches"] = decoded(values.get("ai.response.providerMetadata"))
    trace_id, span_id = _ids(one)
    record = {
        "run_type": word or "event",
        "name": name,
        "trace_id": trace_id,
        "id": span_id,
        "parent_run_id": _id(fields.get("parent_span_id", "parent_id")),
        "session_id": every.get(*N.session_id),
        "user_id": every.get(*N.user_id),
        "start_time": fields.get(*N.time),
        "end_time": fields.get(*N.end),
        "system": decoded(values.get("gen_ai.system_instructions")),
        "inputs": asked,
        "outputs": got,
        "error": error,
        "model": given.get(*N.model),
        "model_parameters": sent | {"tools": tools},
        "usage": counts,
        "attributes": kept,
    }
    [call] = step(record)
    call.unused = []
    return call


def _replies(values: dict, given: Fields) -> Any:
    """Find what a span says came back; replies without a role are the assistant's."""
    got = _content(values, N.span_out)
    calls = as_list(given.get("ai.response.toolCalls"))
    if calls and isinstance(got, str | None):  # Vercel
        got = [{"role": "assistant", "content": got, "tool_calls": calls}]
    if isinstance(got, list) and not all(map(is_message, got)):
        got = [{"role": "assistant", **m} if isinstance(m, dict) else m for m in got]
    return got
