"""Requests and responses of the model vendors, bare or as a gateway's line has them."""

import re
from collections.abc import Iterator
from typing import Any

from utils.logs.importers.chats import conversation, is_message
from utils.logs.importers.names import N
from utils.logs.importers.normal import (
    INPUT,
    OUTPUT,
    TOKENS,
    Call,
    Fields,
    as_text,
    canon,
    clock,
    decoded,
    digest,
    failure,
    present,
    usage,
)
from utils.logs.importers.streams import whole

REQUEST = (*N.settings, "messages", "input", "instructions", "tools", "functions")
REQUEST += ("function_call", "user", "safety_identifier", "metadata")
_RENAMED = {"max_completion_tokens": "max_tokens", "max_output_tokens": "max_tokens"}
_RENAMED |= {"stop": "stop_sequences", "n": "choice.count"}
_COUNTS = (
    "tokens",
    "tokensin",
    "tokensout",
    "tokencount",
    "evalcount",
    "inputusage",
    "outputusage",
)


class UnknownShapeError(ValueError):
    """A record has no shape that is known; the message names its keys."""

    def __init__(self, record: dict, why: str = "no shape that is known") -> None:
        keys = ", ".join(list(map(str, record))[:12]) or "none"
        super().__init__(f"{why} (keys: {keys})")


# What a request asked


def raws(value: Any, role: str = "user") -> list:
    """List the messages of an input, whatever holds them; text is one of `role`.

    Text that holds JSON is decoded only if a chat comes out.
    """
    if value in (None, "", [], {}):
        return []
    parsed, text = decoded(value), isinstance(value, str)
    if isinstance(parsed, list) and parsed:
        if (
            len(parsed) == 1
            and isinstance(parsed[0], list)
            and not is_message(parsed[0])
        ):
            return raws(parsed[0], role)  # LangChain's batch of one
        if all(map(is_message, parsed)):
            return parsed
        if all(map(_is_block, parsed)) and not text:
            return [{"role": role, "content": parsed}]
    if isinstance(parsed, dict):
        if is_message(parsed):
            return [parsed]
        if {"content", "parts"} & set(parsed):
            return [{"role": role, **parsed}]
        fields = Fields(parsed)
        inner = chat_in(fields) if not text or fields.get(*N.chat) else []
        if inner:
            return inner
    return [{"role": role, "content": as_text(value)}]


def _is_block(value: Any) -> bool:
    typed = isinstance(value, dict) and ("type" in value or set(value) == {"text"})
    return typed or isinstance(value, str)


def chat_in(fields: Fields) -> list:
    """List the messages of a request's body, the system's prompt first."""
    order, given = fields.get("instruction"), fields.get("input")
    if isinstance(order, str) and isinstance(given, str):  # Alpaca's rows
        chat = [{"role": "user", "content": f"{order}\n\n{given}"}]
    else:
        chat = raws(fields.get(*N.chat, *N.weak_chat))
    return [*raws(fields.get(*N.system), "system"), *chat] if chat else []


# What came back


def replies_in(got: Any) -> tuple[list[list], list]:
    """List the replies of a response, each as its messages, and why each ended."""
    if isinstance(got, str):
        got = _chat_or_text(got)
    if got in (None, "", [], {}):
        return [], []
    if isinstance(got, list):
        return _from_list(got)
    if not isinstance(got, dict):
        return [_said(as_text(got))], []
    fields = Fields(got)
    for key in ("choices", "candidates", "generations"):
        if isinstance(got.get(key), list):
            return _from_choices(got[key])
    end = fields.get(*N.finish)
    output, inner = got.get("output"), got.get("message")
    if isinstance(output, list) and all(map(is_message, output)):  # Responses
        why = Fields(got.get("incomplete_details")).get("reason")
        calls = any(str(item.get("type", "")).endswith("_call") for item in output)
        done = got.get("status") == "completed" and ("tool_calls" if calls else "stop")
        return ([output] if output else []), [why or end or done or None]
    if isinstance(output, dict) and "message" in output:  # Bedrock
        return [[output["message"]]], [end]
    if isinstance(inner, dict) and not is_message(got):  # Ollama
        return [[inner]], [end]
    if is_message(got) or "content" in got:
        return [[got]], [end]
    if isinstance(got.get("messages"), list):
        return _from_list(got["messages"])
    if calls := fields.get("tool_calls"):
        return [_said(as_text(fields.get("text")), tool_calls=calls)], [end]
    if inner := fields.get(*N.reply):
        return replies_in(inner)
    return [_said(as_text(got))], []


def _said(text: Any, **more: Any) -> list[dict]:
    return [{"role": "assistant", "content": text, **more}]


def _chat_or_text(text: str) -> Any:
    """Decode text that holds messages or a response; JSON of a product is text."""
    parsed = decoded(text)
    if isinstance(parsed, dict):
        body = {"choices", "generations"} & set(parsed)
        return parsed if body or is_message(parsed) else text
    chat = isinstance(parsed, list) and parsed and all(map(is_message, parsed))
    return parsed if chat else text


def _from_list(got: list) -> tuple[list[list], list]:
    if len(got) == 1 and isinstance(got[0], list | dict):
        return replies_in(got[0])
    if got and all(map(is_message, got)):
        chat = conversation(got, "assistant")
        if {"user", "system", "tool"} & {message["role"] for message in chat}:
            said = [m for m in chat if m["role"] == "assistant"]  # a whole chat
            return ([said[-1:]] if said else []), []
        if any("role" not in raw for raw in got):  # items of one reply
            return [got], []
        return [[raw] for raw in got], [Fields(raw).get(*N.finish) for raw in got]
    return [_said(got if all(map(_is_block, got)) else as_text(got))], []


def _from_choices(given: list) -> tuple[list[list], list]:
    replies, ends = [], []
    for one in filter(None, given):
        one = one[0] if isinstance(one, list) else one  # LangChain's batch of one
        message = one.get("message") or one.get("content") or one.get("delta")
        if not isinstance(message, dict):
            message = {"content": message or one.get("text") or ""}
        told = Fields((message.get("kwargs") or message).get("response_metadata"))
        found = (one, one.get("generation_info"))
        reasons = [*(Fields(d).get(*N.finish) for d in found), told.get(*N.finish)]
        replies.append([message])
        ends.append(next(filter(None, reasons), None))
    return replies, ends


# A call


def definitions(tools: Any) -> list[dict] | None:
    """List tool definitions as OpenTelemetry does; None if there are none."""
    tools, found = decoded(tools), []
    for tool in tools if isinstance(tools, list) else []:
        tool = decoded(tool)
        if isinstance(tool, dict):
            inner = tool.get("function") or tool.get("custom") or tool.get("toolSpec")
            flat = {"type": tool.get("type") or "function"} | (inner or tool)
            if "input_schema" in flat:
                flat["parameters"] = flat.pop("input_schema")
            found.append(flat)
    return found or None


def settings_in(sent: dict, known_only: bool = False) -> dict:
    """Give the settings of a request under OpenTelemetry's names."""
    found: dict[str, Any] = {}
    left_out = {canon(name) for name in (*N.no_settings, *N.metadata)}
    left_out |= {canon(name) for name in (*N.chat, *N.weak_chat, *N.system)}
    for key, value in sent.items():
        name = re.sub("([a-z])([A-Z])", r"\1_\2", str(key)).lower()
        if name in ("generation_config", "inference_config"):
            found |= settings_in(value)
            continue
        known = name in N.settings or not known_only
        if known and value is not None and canon(name) not in left_out:
            found[f"gen_ai.request.{_RENAMED.get(name, name)}"] = value
    return found


def model_call(
    chat: list, replies: list[list], ends: list, counts: dict, **more: Any
) -> Call:
    """Make the call of what an adapter found; `more` are attributes as they are.

    `counts` is a usage block of any vendor, `inside=True` says that its input holds
    what was cached.
    """
    call, said = Call("llm"), []
    ends = [*ends, *[None] * (len(replies) - len(ends))]
    for place, choice in enumerate(replies):
        ours = conversation(choice, "assistant")
        call.results += [m for m in ours if m["role"] == "tool"]
        spoken = [m for m in ours if m["role"] != "tool"]
        text = "\n".join(m["content"] for m in spoken if m["content"])
        tools = [c for m in spoken for c in m.get("tool_calls") or []]
        message = {"role": "assistant", "content": text}
        said.append(message | ({"tool_calls": tools} if tools else {}))
        if '"refusal": "' in as_text(choice) and ends[place] in (None, "stop"):
            ends[place] = "refusal"
    known, call.notes = usage(counts, inside=bool(more.pop("inside", False)))
    model = more.get("gen_ai.request.model") or more.get("gen_ai.response.model")
    call.name = f"chat {model or ''}".strip()
    call.attributes = present(
        {
            "gen_ai.operation.name": "chat",
            **more,
            INPUT: conversation(chat),
            OUTPUT: said,
            "gen_ai.response.finish_reasons": [end for end in ends if end] or None,
        }
    )
    call.attributes |= known
    return call


def identified(call: Call, fields: Fields) -> Call:
    """Add a record's ids, time and metadata to a call, and name what is left."""
    holders = [fields]
    for name in N.metadata:
        held = decoded(fields.get(name))
        if isinstance(held, dict):
            holders.append(Fields(held))
            holders.append(Fields(held.get("metadata")))
    for place, names in (("session_id", N.session_id), ("user_id", N.user_id)):
        known = [getattr(call, place), *(h.get(*names) for h in holders)]
        known += [fields.get("user")] if place == "user_id" else []
        plain = (one for one in known if isinstance(one, str | int) and one != "")
        setattr(call, place, next(plain, None))
    for holder in holders[1:]:
        for key, value in holder.record.items():
            if isinstance(value, str | int | float | bool) and value != "":
                call.attributes.setdefault(f"metadata.{key}", value)
    call.time, call.seconds = clock(fields)
    ids = [fields.get(name) for name in N.trace_id]
    call.trace_id = str(next((one for one in ids if one), digest(fields.record)))
    call.span_id = call.span_id or digest(fields.record)[:16]
    call.unused = fields.unused()
    return call


def counts_in(fields: Fields, got: Any = None) -> dict:
    """Find the token counts of a record: in the response, beside it, or flat."""
    blocks = [*_usages(got), fields.get(*N.usage), _flat_counts(Fields(got))]
    for block in map(decoded, [*blocks, _flat_counts(fields)]):
        if isinstance(block, dict) and set(usage(block)[0]) & set(TOKENS):
            return block
    return {}


def _usages(got: Any, depth: int = 0) -> Iterator[Any]:
    """List the usage blocks of a response; LangChain hides them in its messages."""
    for one in got if isinstance(got, list) and depth < 8 else []:
        yield from _usages(one, depth + 1)
    if isinstance(got, dict) and depth < 8:
        yield Fields(got).get(*N.usage)
        for key, value in got.items():
            if key not in ("content", "tool_calls", "arguments"):
                yield from _usages(value, depth + 1)


def _flat_counts(fields: Fields) -> dict:
    names = [name for name in fields.names if name.endswith(_COUNTS)]
    return {name: fields.get(name) for name in names if usage({name: 1})[0]}


def exchange(record: dict) -> list[Call]:
    """Read one request and its response or error: a gateway's line, or flat.

    `record` has them under request and response (or request_body, ...) or has their
    fields itself. Beside them may stand time, latency, ids, usage and metadata under
    any usual name.
    """
    fields = Fields(record)
    sent, got = body_in(fields, *N.request), body_in(fields, *N.response)
    request = Fields({"messages": sent} if isinstance(sent, str | list) else sent)
    chat = chat_in(request)
    if not chat:  # the record itself is the request
        request, chat = fields, chat_in(fields)
    if not chat:  # LiteLLM keeps the request there, if told to
        request = Fields(body_in(fields, "proxy_server_request"))
        chat = chat_in(request)
    if got is None:
        inside = fields.get("choices", "candidates", "content", "generations")
        got = record if inside else whole(fields.get(*N.reply, "message"))
    body = Fields(got)
    state = fields.get(*N.status) or Fields(fields.get("response")).get("status_code")
    error = failure(
        fields.get(*N.error) or body.get("error"), state or body.get("status")
    )
    said, ends = replies_in(got)
    if error and (isinstance(got, str) or not body.get("choices", "content", "output")):
        said, ends = [], []  # what came is the error's own page
    if body.get("status") == "incomplete" and not any(ends):
        error = error or "incomplete"
    if not chat:
        raise UnknownShapeError(record, "no messages in the request")
    if not said and not error:
        raise UnknownShapeError(record, "neither a reply nor an error")
    vendor = fields.get("provider", "custom_llm_provider")
    if not isinstance(vendor, str):
        vendor = "gcp.gemini" if body.get("candidates") else "openai"
        vendor = "anthropic" if body.get("type") in ("message", "error") else vendor
    model = request.get("model", "model_id") or fields.get("model", "request_model")
    more = {
        **settings_in(request.record, known_only=request is fields),
        "gen_ai.request.model": model,
        "gen_ai.provider.name": vendor,
        "gen_ai.prompt.version": fields.get("prompt_version"),
        "gen_ai.tool.definitions": definitions(request.get("tools", "functions")),
        "gen_ai.response.id": body.get("id") or fields.get("response_id"),
        "gen_ai.response.model": body.get("model"),
        "error.type": error,
    }
    call = model_call(chat, said, ends, counts_in(fields, got), **more)
    asker = Fields(request.get("metadata"))
    call.user_id = request.get("user", "safety_identifier") or asker.get(*N.user_id)
    call.session_id = asker.get(*N.session_id)
    if request is fields:
        fields.used |= set(map(canon, N.settings))
    call = identified(call, fields)
    call.time = call.time or clock(body)[0]
    return [call]


def body_in(fields: Fields, *names: str) -> Any:
    """Take a request or response, out of the `body` that gateways put around it."""
    value = whole(fields.get(*names))
    if isinstance(value, dict) and "body" in value:
        return whole(value["body"])
    return value
