"""Spans of OpenTelemetry: OTLP/JSON in its spellings, Phoenix, Jaeger, the dialects.

Message texts stand in attributes (GenAI old and new, OpenLLMetry, OpenInference,
Vercel, Langfuse), in events of the span, or in log records that name the span.
"""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Any

from utils.logs.importers.chats import is_message
from utils.logs.importers.names import N
from utils.logs.importers.normal import (
    ARGUMENTS,
    INPUT,
    OUTPUT,
    RESULT,
    Call,
    Fields,
    as_text,
    canon,
    clock,
    decoded,
    digest,
    error_type,
    failure,
    present,
)
from utils.logs.importers.tools import tool_call
from utils.logs.importers.vendors import definitions, model_call, raws, replies_in
from utils.logs.importers.vendors import settings_in as settings_of

_KINDS = dict.fromkeys(("chat", "generate_content", "text_completion"), "llm")
_KINDS |= dict.fromkeys(("completion", "llm", "generation", "chat_model"), "llm")
_KINDS |= dict.fromkeys(("execute_tool", "tool", "ai.toolcall"), "tool")
_KINDS |= dict.fromkeys(("invoke_agent", "chain", "agent", "workflow"), "outer")
_KINDS |= dict.fromkeys(("ai.generatetext", "ai.streamtext", "span", "task"), "outer")
_KINDS |= dict.fromkeys(("ai.generateobject", "ai.streamobject"), "outer")
_RESOURCES = ("resourcespans", "batches", "resourcelogs")
_SCOPES = ("scopespans", "instrumentationlibraryspans", "ilspans", "scopelogs")
_SCOPES += ("instrumentationlibrarylogs",)
_SYSTEM, _TOOLS = "gen_ai.system_instructions", "gen_ai.tool.definitions"
# Functions' arguments and results: JSON around what was asked and said.
_WRAPPED = ("ai.prompt", "traceloop.entity.input", "traceloop.entity.output")
_WRAPPED += ("mlflow.spanInputs", "mlflow.spanOutputs", "request_data", "response_data")
_DETAILS = "gen_ai.client.inference.operation.details"


def is_span(record: dict) -> bool:
    """Say whether a record is an export of spans or log records, or one of them."""
    names = {canon(key) for key in record}
    if names & {*_RESOURCES, *_SCOPES}:
        return True
    ids = {"traceid", "spanid"} <= names or "contexttraceid" in names
    ids = ids or isinstance(record.get("context"), dict)
    held = {"attributes", "starttimeunixnano", "eventname", "body", "tags"} & names
    return ids and (bool(held) or any(str(k).startswith("attributes.") for k in record))


class Export:
    """Spans and log records of a whole file: they belong together by their ids."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, dict, dict]] = []  # line, span, resource
        self.logs: list[tuple[int, dict]] = []
        self.faults: list[tuple[int, str]] = []

    def add(self, record: dict, line: int) -> None:
        """Take the spans and log records of an export, or one of either."""
        exports = _under(record, *_RESOURCES)
        exports = exports or ([record] if _under(record, *_SCOPES) else [])
        for resource in exports:
            about = _values((resource.get("resource") or {}).get("attributes"))
            for scope in _under(resource, *_SCOPES):
                self.spans += [(line, one, about) for one in _under(scope, "spans")]
                self.logs += [
                    (line, log) for log in _under(scope, "logrecords", "logs")
                ]
        names = {canon(key) for key in record}
        if not exports and not names & {*_RESOURCES, *_SCOPES}:
            if names & {"eventname", "body"} and "name" not in names:
                self.logs.append((line, record))
            else:
                self.spans.append((line, record, {}))

    def calls(self) -> list[Call]:
        """Make a call of each span; `faults` tells of those that cannot be read."""
        logged: dict[tuple[str, str], list] = {}
        turn = 0
        for line, log in self.logs:
            try:
                event = _event(log)
            except Exception as error:  # costs this record only
                why = f"span {_ids(log)[1]}: a log record is broken: {error!r}"
                self.faults.append((line, why))
                continue
            key = _ids(log)
            if not all(key):  # without ids: a choice ends a call
                key = (f"log {turn}", "")
                turn += event[0] in ("gen_ai.choice", _DETAILS)
            if "gen_ai" in event[0]:
                logged.setdefault(key, []).append((line, log, event))
        made: list[Call] = []
        for line, one, about in self.spans:
            told = [event for *_, event in logged.pop(_ids(one), [])]
            self._make(made, line, one, about, told)
        for (trace_id, span_id), records in logged.items():  # without their span
            line, first, _ = records[0]
            trace_id = trace_id if span_id else digest([log for _, log, _ in records])
            one = {"trace_id": trace_id, "span_id": span_id or trace_id[:16]}
            one |= {"name": "chat", "attributes": first.get("attributes")}
            one["time"] = Fields(first).get("time_unix_nano", *N.time)
            one["end"] = Fields(records[-1][1]).get("time_unix_nano", *N.time)
            self._make(made, line, one, {}, [event for *_, event in records])
        return sorted(made, key=lambda call: call.time or 0)

    def _make(self, made: list, line: int, one: dict, about: dict, told: list) -> None:
        try:
            made.append(_span_call(one, about, told))
            made[-1].line = line
        except Exception as error:  # costs this span only
            known = isinstance(error, ValueError)
            why = str(error) if known else f"a value is not as expected: {error!r}"
            self.faults.append((line, f"span {_ids(one)[1]}: {why}"))


def _under(holder: dict, *names: str) -> list[dict]:
    fields = Fields(holder)
    lists = [fields.get(name) for name in names]
    found = [one for held in lists if isinstance(held, list) for one in held]
    return [one for one in found if isinstance(one, dict)]


def _ids(one: dict) -> tuple[str, str]:
    fields, inner = Fields(one), Fields(one.get("context"))
    found = []
    for name in ("trace_id", "span_id"):
        found.append(_id(fields.get(name, f"context.{name}") or inner.get(name)))
    return found[0], found[1]


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


# Attributes and events


def _values(pairs: Any) -> dict:
    """Make a dictionary of a span's attributes: typed pairs, flat or nested names."""
    pairs = decoded(pairs)
    if isinstance(pairs, list):
        known = [pair for pair in pairs if isinstance(pair, dict) and "key" in pair]
        pairs = {str(pair["key"]): _typed(pair) for pair in known}
    found = dict(_flat(pairs if isinstance(pairs, dict) else {}))
    return {key: value for key, value in found.items() if value not in (None, "")}


def _typed(pair: dict) -> Any:
    try:
        return _value(pair.get("value"))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"attribute {pair['key']} is broken: {error}") from None


def _flat(nested: dict, name: str = "") -> Iterator[tuple[str, Any]]:
    whole = (ARGUMENTS, RESULT, INPUT, OUTPUT, "input.value", "output.value")
    for key, value in nested.items():
        full = f"{name}.{key}" if name else str(key)
        if isinstance(value, dict) and value and full not in whole:
            yield from _flat(value, full)
        else:
            yield full, value


def _value(typed: Any) -> Any:
    """Decode OTLP's typed value, in either spelling; a plain value stays."""
    if not isinstance(typed, dict) or len(typed) != 1:
        return typed or None
    [(kind, value)] = typed.items()
    kind = canon(kind)
    if kind == "intvalue":  # 64 bits: JSON carries it as text
        return int(value)
    if kind in ("stringvalue", "boolvalue", "doublevalue", "bytesvalue"):
        return value
    inner = value.get("values") or [] if isinstance(value, dict) else []
    if kind == "arrayvalue":
        return [_value(item) for item in inner]
    if kind == "kvlistvalue":
        return {str(pair["key"]): _value(pair.get("value")) for pair in inner}
    return typed


def _event(one: dict) -> tuple[str, dict]:
    """Name an event of a span, or a log record, and give all that it holds."""
    fields = Fields(one)
    held, body = _values(fields.get("attributes")), decoded(_value(fields.get("body")))
    for inner in (body, decoded(held.get("gen_ai.event.content"))):  # the second: Azure
        held |= inner if isinstance(inner, dict) else {}
    if isinstance(body, str):
        held["content"] = body
    name = fields.get("event_name", "name") or held.get("event.name")
    return as_text(name), held


def _told(events: list[tuple[str, dict]], values: dict) -> tuple[list, list, list]:
    """Read a span's events: the chat, the replies and why they ended.

    Other events (details, gen_ai.content.prompt) carry attributes of the span.
    """
    chat, replies, ends = [], [], []
    for name, held in events:
        if name.startswith("gen_ai.") and name.endswith(".message"):
            message = {"role": name.split(".")[1], **held}
            message["content"] = _parts(held.get("content"))
            message["tool_calls"] = decoded(held.get("tool_calls"))
            chat.append(message)
        elif name == "gen_ai.choice":
            inner = _parts(held.get("message", held.get("content")))
            inner = inner if isinstance(inner, dict) else {"content": inner}
            calls = decoded(held.get("tool_calls") or inner.get("tool_calls"))
            replies.append([{"role": "assistant", **inner, "tool_calls": calls}])
            ends.append(held.get("finish_reason"))
        elif "gen_ai" in name or name == "exception":
            values |= {k: v for k, v in held.items() if k not in values}
    return chat, replies, ends


def _parts(content: Any) -> Any:
    """Decode a text that holds blocks, or a message; other JSON is text."""
    parsed = decoded(content)
    if isinstance(parsed, list) and parsed:
        blocks = all(isinstance(part, dict) for part in parsed)
        return parsed if blocks else content
    message = isinstance(parsed, dict) and {"content", "tool_calls", "role"} & set(
        parsed
    )
    return parsed if message else content


def _indexed(values: dict, name: str) -> list:
    """Build the list that `name.0.role`, `name.0.content`, ... spell out."""
    tree: dict = {}
    for key, value in values.items():
        if re.match(re.escape(name) + r"\.\d", key):
            *path, last = key[len(name) + 1 :].split(".")
            node = tree
            for step in path:
                node = node.setdefault(step, {})
            node[last] = value
    built = _built(tree)
    return built if isinstance(built, list) else []


def _built(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    made = {key: _built(value) for key, value in node.items()}
    if made and all(key.isdigit() for key in made):
        return [made[key] for key in sorted(made, key=int)]
    return made


def _content(values: dict, names: tuple[str, ...]) -> Any:
    """Find a span's messages under the first name that has them."""
    for name in names:
        held = values.get(name, values.get(name.lower()))
        if name in (INPUT, OUTPUT, *_WRAPPED):
            held = decoded(held)
        _check_whole(name, held)
        if isinstance(held, list):
            held = [decoded(item) for item in held]
        held = held or _indexed(values, name)
        if held:
            return (
                [_indexed_message(m) for m in held] if isinstance(held, list) else held
            )
    return None


def _check_whole(name: str, held: Any) -> None:
    """Refuse messages whose JSON was cut; replies may be broken JSON by themselves."""
    lists = (*N.span_in, OUTPUT, "llm.output_messages", ARGUMENTS)
    starts = ("[{", '{"', '"[{', '"{')
    text = held.lstrip() if isinstance(held, str) and name in lists else ""
    if text.startswith(starts) and decoded(held) == held:
        raise ValueError(f"{name} is cut off or no JSON: {held[:40]!r}")


def _indexed_message(message: Any) -> Any:
    """Decode the content of a message, if it is the JSON of blocks."""
    if not isinstance(message, dict):
        return message
    for key in ("prompt", "completion"):  # OpenInference's plain texts
        if isinstance(message.get(key), dict) and "text" in message[key]:
            return {"content": message[key]["text"]}
    if isinstance(message.get("content"), str):
        blocks = _parts(message["content"])
        typed = isinstance(blocks, list) and all("type" in block for block in blocks)
        return message | {"content": blocks} if typed else message
    return message


# A span as a call


def _span_call(one: dict, about: dict, logged: list[tuple[str, dict]]) -> Call:
    """Make a call of a span in any dialect; of kind "" if it is none."""
    fields = Fields(one)
    values = _values(fields.get("attributes", "tags"))
    columns = {k: v for k, v in one.items() if k.startswith("attributes.")}
    values |= {k.removeprefix("attributes."): v for k, v in _values(columns).items()}
    if fields.get("span_kind"):
        values.setdefault("openinference.span.kind", fields.get("span_kind"))
    listed = decoded(fields.get("events"))
    listed = listed if isinstance(listed, list) else []
    events = [_event(event) for event in listed if isinstance(event, dict)]
    more = decoded(
        values.pop("events", None) or values.pop("all_messages_events", None)
    )
    for event in more if isinstance(more, list) else []:  # Logfire's
        events.append((as_text(event.get("event.name")), event))
    chat, replies, ends = _told([*events, *logged], values)
    name, kind = as_text(fields.get("name", "operation_name")), _kind(values)
    if kind is None:
        kind = "llm" if chat or replies or _holds_chat(values) else ""
    status = fields.get("status")
    status = status if isinstance(status, dict) else {"code": fields.get("status_code")}
    error = _error(status, values)
    if kind == "tool":
        call = _tool(values, name, chat, replies, error)
        if error and "error" in call.attributes[RESULT] and status.get("message"):
            call.attributes[RESULT] = {"error": status["message"]}
    elif kind:
        call = _model(values, chat, replies, ends, error)
    else:
        call = Call("", name=str(values.get("gen_ai.operation.name") or name))
    call.kind, call.name = kind, (name or call.name) if kind else call.name
    trace_id, span_id = _ids(one)
    call.trace_id, call.span_id = trace_id or digest(one), span_id or digest(one)[:16]
    call.parent_id = _id(fields.get("parent_span_id", "parent_id"))
    call.time, call.seconds = clock(fields)
    if isinstance(fields.get("duration"), int | float):  # Jaeger's microseconds
        call.seconds = fields.get("duration") / 1e6
    every = Fields(about | values)
    call.session_id = every.get("gen_ai.conversation.id", *N.session_id)
    call.user_id = every.get("user.id", *N.user_id)
    return call


def _kind(values: dict) -> str | None:
    """Say what the span calls itself: "llm", "tool", "outer", "" or None: nothing."""
    fields = Fields(values)
    for name in N.kind:
        kind = str(decoded(fields.get(name)) or "").lower()
        if kind.endswith((".dogenerate", ".dostream")):
            return "llm"
        if kind:
            return _KINDS.get(kind, "")
    return None


def _holds_chat(values: dict) -> bool:
    return any(key.startswith((*N.span_in[:4], *N.span_out[:4])) for key in values)


def _error(status: dict, values: dict) -> str | None:
    named = values.get("error.type") or values.get("exception.type")
    code = str(status.get("code", status.get("status_code")))
    if named or code.upper().endswith(("2", "ERROR")):
        return error_type(str(named or "_OTHER"))
    return failure(values.get("error"))  # Jaeger's tag


def _model(values: dict, chat: list, replies: list, ends: list, error: Any) -> Call:
    fields = Fields(values)
    asked, said = _content(values, N.span_in), _content(values, N.span_out)
    chat = raws(asked) or chat
    calls = decoded(fields.get("ai.response.toolCalls"))
    if calls and isinstance(said, str | None):  # Vercel
        said = [{"role": "assistant", "content": said, "tool_calls": calls}]
    if isinstance(said, list) and not all(map(is_message, said)):
        said = [{"role": "assistant", **m} if isinstance(m, dict) else m for m in said]
    if said:
        replies, found = replies_in(said)
        ends = found if any(found) else ends
    if not any(ends):
        whys = decoded(fields.get("gen_ai.response.finish_reasons"))
        whys = whys or fields.get("ai.response.finishReason")
        ends = whys if isinstance(whys, list) else [whys]
    system = decoded(values.get(_SYSTEM))
    first = chat[0] if chat and isinstance(chat[0], dict) else {}
    if system and first.get("role") != "system":
        chat = [*raws(system, "system"), *chat]
    tools = decoded(values.get(_TOOLS)) or fields.get("ai.prompt.tools")
    tools = tools or _indexed(values, "llm.request.functions")
    for tool in [] if tools else _indexed(values, "llm.tools"):  # OpenInference
        tools.append(tool.get("tool", tool).get("json_schema", tool))
    bulk = (*N.span_in, *N.span_out, *N.span_bulk)
    given = decoded(values.get("llm.invocation_parameters"))
    more = {
        **settings_of(given if isinstance(given, dict) else {}, known_only=True),
        **{key: value for key, value in values.items() if not key.startswith(bulk)},
        "gen_ai.request.model": fields.get(*N.model),
        "gen_ai.provider.name": fields.get(*N.provider),
        "gen_ai.response.id": fields.get("gen_ai.response.id", "ai.response.id"),
        "gen_ai.response.model": fields.get(
            "gen_ai.response.model", "ai.response.model"
        ),
        _TOOLS: definitions(tools),
        "error.type": error,
    }
    counts = {k: v for k, v in values.items() if "usage" in k or "token_count" in k}
    call = model_call(chat, replies, ends, counts, inside=True, **more)
    for key in (INPUT, OUTPUT):
        if not call.attributes[key] and not error:
            del call.attributes[key]
    return call


def _tool(values: dict, name: str, chat: list, replies: list, error: Any) -> Call:
    fields = Fields(values)
    _check_whole(ARGUMENTS, values.get(ARGUMENTS))
    asked, got = fields.get(*N.tool_in), fields.get(*N.tool_out)
    if asked is None and chat:
        asked = chat[-1].get("content")
    if got is None and replies:
        got = replies[0][0].get("content")
    call = tool_call(as_text(fields.get(*N.tool)) or name, asked, got, error)
    kept = {k: v for k, v in values.items() if k.startswith("gen_ai.")}
    call.attributes = present(kept | call.attributes)
    call.attributes.setdefault(RESULT, {})
    if got is None and not error:
        del call.attributes[RESULT]
    return call
