"""The normal form: every adapter gives a `Call`; and the one way from it to traces."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from utils.logs.importers import values as v
from utils.logs.importers.chats import conversation, replies_in
from utils.logs.importers.names import N
from utils.logs.importers.values import TOKENS, Fields, canon, decoded, present

INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
ARGUMENTS, RESULT = "gen_ai.tool.call.arguments", "gen_ai.tool.call.result"
ENDS = "gen_ai.response.finish_reasons"
REQUEST = (*N.settings, "messages", "input", "instructions", "tools", "functions")
REQUEST += ("function_call", "user", "safety_identifier", "metadata")
_RENAMED = {"max_completion_tokens": "max_tokens", "max_output_tokens": "max_tokens"}
_RENAMED |= {"stop": "stop_sequences", "n": "choice.count"}
_NO_SETTINGS = (*N.no_settings, *N.tools, *N.metadata, *N.user_id)
_NO_SETTINGS = set(map(canon, (*_NO_SETTINGS, *N.chat, *N.weak_chat, *N.system)))
# Flat counts end so; a mere `input` is a text.
_COUNTS = ("tokens", "tokensin", "tokensout", "inputusage", "outputusage", "evalcount")

# Kinds of spans and of steps; others are no calls.
KINDS = dict.fromkeys(map(canon, N.llm_kind), "llm")
KINDS |= dict.fromkeys(map(canon, N.tool_kind), "tool")
KINDS |= dict.fromkeys(map(canon, N.outer_kind), "outer")
KINDS |= dict.fromkeys(map(canon, N.no_kind), "")


@dataclass
class Call:
    """A model call ("llm"), a tool call ("tool") or what encloses them ("outer").

    An outer span stands in where its trace has no model call; one of kind "" is no
    call: it tells ids and time; so does "other", a kind that is not known. `results`
    are those of tools that the provider itself ran. `alone` marks a row of a data set,
    whose id may come twice.
    """

    kind: str
    attributes: dict
    name: str = ""
    results: list[dict] = field(default_factory=list)
    span_id: str = ""
    parent_id: str = ""
    trace_id: str = ""
    session_id: str | None = None
    user_id: str | None = None
    time: float | None = None  # seconds since 1970
    seconds: float | None = None
    alone: bool = False
    feedback: dict | None = None
    line: int = 0
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # of steps within, left out


def model_call(
    fields: Fields, request: Fields, chat: list, got: Any, more: dict
) -> Call:
    """Make the call of what an adapter found in a record, `fields`.

    `request` has settings and tools, `chat` its messages, `got` is the response;
    `more` are attributes as they are, an "error.type" among them.
    """
    more = present(more)
    nothing = [] if "error.type" in more else None
    replies, ends, before = replies_in(got)
    if before:  # a whole chat came back: its own questions stand for those asked
        ours = conversation(before)
        roles = {message["role"] for message in ours}
        if "user" in roles:
            system = [m for m in conversation(chat) if m["role"] == "system"]
            chat = [] if "system" in roles else system
        chat = [*chat, *ours]
    given = more.pop(ENDS, None)
    ends = ends if any(ends) else v.as_list(given) or [given]
    ends = [*ends, *[None] * (len(replies) - len(ends))]
    said, results = [], []
    for place, choice in enumerate(replies):
        ours = conversation(choice, "assistant")
        results += [m for m in ours if m["role"] == "tool"]
        spoken = [m for m in ours if m["role"] != "tool"]
        text = "\n".join(m["content"] for m in spoken if m["content"])
        tools = [c for m in spoken for c in m.get("tool_calls") or []]
        message = {"role": "assistant", "content": text}
        said.append(message | ({"tool_calls": tools} if tools else {}))
        if '"refusal": "' in v.as_text(choice) and ends[place] in (None, "stop"):
            ends[place] = "refusal"
    body = Fields(got)  # a chat's messages have counts, too: the whole run's count
    counts, notes = _counts(fields, None if before else got)
    attributes = {
        "gen_ai.operation.name": "chat",
        **_settings(request, known_only=request is fields),
        "gen_ai.request.model": request.get("model") or fields.get("model"),
        "gen_ai.prompt.version": v.as_text(fields.get("prompt_version")) or None,
        "gen_ai.response.id": body.get("id") or fields.get("response_id"),
        "gen_ai.response.model": body.get("model"),
        **more,
        "gen_ai.tool.definitions": _definitions(request.get(*N.tools)),
        INPUT: conversation(chat) or nothing,
        OUTPUT: said or nothing,
        ENDS: [end for end in ends if end] or None,
        **counts,
    }
    model = attributes["gen_ai.request.model"] or body.get("model") or ""
    call = Call("llm", present(attributes), f"chat {model}".strip(), results)
    call.notes = notes
    return identified(call, fields, request)


def _settings(request: Fields, known_only: bool) -> dict:
    """Give the settings of a request under OpenTelemetry's names."""
    found: dict[str, Any] = {}
    for key, value in request.record.items():
        name = re.sub("([a-z])([A-Z])", r"\1_\2", str(key)).lower()
        known = name in N.settings or not (known_only or canon(name) in _NO_SETTINGS)
        if known and value is not None:
            request.used.add(canon(key))
            found[f"gen_ai.request.{_RENAMED.get(name, name)}"] = value
    return found


def _definitions(tools: Any) -> list[dict] | None:
    """List tool definitions as OpenTelemetry does; None if there are none."""
    found = []
    for tool in map(decoded, v.as_list(tools)):
        if isinstance(tool, dict):
            inner = tool.get("function") or tool.get("custom") or tool
            found.append({"type": tool.get("type") or "function"} | inner)
            if "input_schema" in tool:
                found[-1]["parameters"] = found[-1].pop("input_schema")
    return found or None


def _counts(fields: Fields, got: Any) -> tuple[dict, list[str]]:
    """Find the token counts of a record: in the response, beside it, or flat."""
    blocks = []
    for holder in (*_within(got), fields):
        flat = [name for name in holder.names if name.endswith(_COUNTS)]
        flat = [name for name in flat if v.usage({name: 1})[0]]
        blocks.append(decoded(holder.get(*N.usage)))
        blocks.append({name: holder.get(name) for name in flat})
    wrong: list[str] = []
    for known, notes in map(v.usage, blocks):
        if set(known) & set(TOKENS):
            return known, notes
        wrong += notes
    return {}, wrong


def _within(got: Any, depth: int = 0) -> Iterator[Fields]:
    """List the parts of a response; LangChain hides counts in its messages."""
    if isinstance(got, dict):
        yield Fields(got)
        got = [value for k, value in got.items() if k not in ("content", "tool_calls")]
    for one in got if isinstance(got, list) and depth < 9 else []:
        yield from _within(one, depth + 1)


def identified(call: Call, fields: Fields, request: Fields) -> Call:
    """Add a record's ids, time and metadata to a call, and name what is left."""
    around = []
    for name in N.metadata:
        for one in (request, fields):
            held = Fields(decoded(one.get(name)))
            around += [held, Fields(held.get("metadata"))]
    for place, names in (("session_id", N.session_id), ("user_id", N.user_id)):
        found = [one.get(*names) for one in (request, fields, *around)]
        found += [Fields(one).get("id", *names) for one in found]
        plain = (value for value in found if isinstance(value, str | int))
        setattr(call, place, next(plain, None))
    for holder in around:
        for key, value in holder.record.items():
            if isinstance(value, str | int | float | bool) and value != "":
                call.attributes.setdefault(f"metadata.{key}", value)
    for name in N.feedback:
        call.feedback = call.feedback or v.feedback(fields.get(name))
        if not call.feedback:
            fields.used.discard(canon(name))  # it is named as not used
    call.time, call.seconds = v.clock(fields)
    if call.time is None and (when := fields.get(*N.time)):
        call.notes.append(f"time {v.as_text(when)[:40]!r} cannot be read")
    ids = list(filter(None, [fields.get(name) for name in N.trace_id]))
    call.trace_id = str(ids[0]) if ids else v.digest(fields.record)
    call.span_id = v.digest(fields.record)[:16]
    call.unused = fields.unused()
    return call


def span(kind: str, name: str, attributes: dict, seconds: float | None = None) -> dict:
    """Make a span with a random id; `kind` is "llm" or "tool". None is left out."""
    new = {"name": name, "span_id": secrets.token_hex(8), "kind": kind}
    new["attributes"] = present(attributes)
    return new if seconds is None else new | {"seconds": round(float(seconds), 6)}


def _tool_spans(chat: list[dict], results: list[dict] = ()) -> Iterator[dict]:
    """Make a span of each tool call since the last user message, with any result."""
    asked, before = 0, ""
    for place, message in enumerate(chat, 1):
        if message["role"] == "user" and before != "tool":  # else of the same turn
            asked = place
        before = message["role"]
    answers = [m for m in [*chat[asked:], *results] if m["role"] == "tool"]
    answered = {m.get("tool_call_id"): m["content"] for m in answers}
    for message in chat[asked:]:
        for call in message.get("tool_calls") or []:
            name = call["function"]["name"]
            attributes = {
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": name,
                "gen_ai.tool.call.id": call["id"],
                ARGUMENTS: v.as_object(call["function"]["arguments"]),
            }
            if call["id"] in answered:
                attributes[RESULT] = v.as_object(answered[call["id"]])
            yield span("tool", f"execute_tool {name}", attributes)


def _mend_arguments(spans: list[dict]) -> None:
    """Give tool spans the arguments of the model's call, where their own say less."""
    tools = [one["attributes"] for one in spans if one["kind"] == "tool"]
    said: list[dict] = []
    for one in spans:
        said += _tool_spans(one["attributes"].get(OUTPUT) or [])
    for name in {tool["gen_ai.tool.name"] for tool in tools}:
        mine = [tool for tool in tools if tool["gen_ai.tool.name"] == name]
        told = [call for call in said if call["name"] == f"execute_tool {name}"]
        if len(mine) != len(told):
            continue  # nothing tells which call is which
        for own, call in zip(mine, told, strict=True):
            if _says_less(own.get(ARGUMENTS)):
                own[ARGUMENTS] = call["attributes"][ARGUMENTS]


def _says_less(arguments: dict | None) -> bool:
    """Say whether arguments are none, a mere text, or the schema of a tool."""
    values = (arguments or {}).values()
    schema = all(isinstance(value, dict) and "type" in value for value in values)
    return schema or {"properties"} <= set(arguments) or set(arguments) == {"text"}


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
        asked = _tool_spans(last.get(INPUT) or [])
        said = _tool_spans(last.get(OUTPUT) or [], chosen[-1].results)
        spans = [*spans[:-1], *asked, spans[-1], *said]
    else:
        _mend_arguments(spans)
    times = [call.time for call in group if call.time is not None]
    trace = {"trace_id": group[0].trace_id}
    for who in ("session_id", "user_id"):
        ids = (getattr(call, who) for call in group)
        trace[who] = next((str(one) for one in ids if one is not None), None)
    said = next((call.feedback for call in group if call.feedback), None)
    trace |= {"feedback": said} if said else {}
    return trace | {"time": v.timestamp(min(times, default=None)), "spans": spans}


def _chosen(group: list[Call]) -> list[Call]:
    """Choose the calls of a trace that count, in the order of their times."""
    models = [c for c in group if c.kind == "llm"]
    around = {c.parent_id for c in models if INPUT in c.attributes}
    models = [c for c in models if c.span_id not in around]
    if not models:
        outer = [c for c in group if c.kind == "outer" and c.attributes.get(INPUT)]
        models = [c for c in outer if c.attributes.get(OUTPUT)][:1]
    counted = set(map(id, models))
    chosen = [c for c in group if c.kind == "tool" or id(c) in counted]
    if all(c.time is not None for c in chosen):
        chosen.sort(key=lambda c: c.time)
    return chosen
