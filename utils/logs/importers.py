"""Foreign logs as traces: OpenAI and Anthropic calls, OpenTelemetry exports.

Each importer returns plain dictionaries in the form of data/traces.jsonl, for
`traces` to check. Messages become `{"role", "content"}` with the content as
text, tool calls and their ids beside it in OpenAI's form, and the system prompt as
first message. What is no model or tool call (a web request, an agent's summary span)
is left out; so is thinking.
"""

import contextlib
import hashlib
import json
import secrets
from datetime import UTC, datetime
from typing import Any

INPUT, OUTPUT = "gen_ai.input.messages", "gen_ai.output.messages"
ARGUMENTS, RESULT = "gen_ai.tool.call.arguments", "gen_ai.tool.call.result"
TOKENS = ("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens")

_SETTINGS = ("model", "temperature", "top_p", "max_tokens", "seed")
REQUEST = (*_SETTINGS, "messages", "tools", "user")
_THINKING = ("thinking", "redacted_thinking", "reasoning")
_KINDS = dict.fromkeys(("chat", "generate_content", "text_completion"), "llm")
_KINDS |= {"execute_tool": "tool"}
_WHO = {"session_id": ("gen_ai.conversation.id", "session.id")}
_WHO |= {"user_id": ("user.id", "enduser.id")}
_ERRORS = {"timeout": "timeout", "timedout": "timeout", "408": "timeout"}
_ERRORS |= {"504": "timeout", "ratelimit": "rate_limit", "429": "rate_limit"}
_ERRORS |= {"overloaded": "overloaded", "503": "overloaded", "529": "overloaded"}


def span(kind: str, name: str, attributes: dict, seconds: float | None = None) -> dict:
    """Make a span with a random id; `kind` is "llm" or "tool". None is left out."""
    if kind not in ("llm", "tool"):
        raise ValueError(f"kind should be 'llm' or 'tool', not {kind!r}")
    new = {"name": name, "span_id": secrets.token_hex(8), "kind": kind}
    new["attributes"] = {k: v for k, v in attributes.items() if v is not None}
    return new if seconds is None else new | {"seconds": round(seconds, 6)}


def timestamp(when: float | str) -> str:
    """Give a trace's `time` for ISO 8601 text or (milli)seconds since 1970."""
    if isinstance(when, str):
        moment = datetime.fromisoformat(when)
        when = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
    seconds = when / 1000 if when > 1e11 else when
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def error_type(name: str, status: int | str = "") -> str:
    """Say `timeout`, `rate_limit` or `overloaded`, however a provider spells it.

    Other names stay; a whole sentence becomes `_OTHER`, OpenTelemetry's fallback.
    """
    key = f"{name}{status}".lower().replace("_", "").replace(" ", "")
    other = "_OTHER" if " " in name else name
    return next((word for part, word in _ERRORS.items() if part in key), other)


def messages(message: dict) -> list[dict]:
    """Turn one message of OpenAI, Anthropic or OpenTelemetry into messages of ours.

    A tool result inside it becomes a message of its own; an image leaves `[image]`.
    """
    content = message.get("content") or message.get("parts") or message.get("refusal")
    if not isinstance(content, list):
        content = [{"type": "text", "text": content}]
    said, results, calls = [], [], list(message.get("tool_calls") or [])
    for block in content:
        kind = block["type"]
        if kind in ("text", "refusal"):
            said.append(block.get(kind) or block.get("content") or "")
        elif kind in ("tool_use", "tool_call"):
            given = block.get("input", block.get("arguments"))
            function = {"name": block["name"], "arguments": _as_text(given)}
            calls += [{"id": block.get("id"), "type": "function", "function": function}]
        elif kind in ("tool_result", "tool_call_response"):
            keys = ("content", "response", "result")
            result = next((block[key] for key in keys if key in block), "")
            if isinstance(result, list) and all("type" in part for part in result):
                result = messages({"role": "tool", "content": result})[0]["content"]
            result = {"error": result} if block.get("is_error") else result
            call = block.get("tool_use_id") or block.get("id")
            results += [{"role": "tool", "content": _as_text(result)}]
            results[-1] |= {"tool_call_id": call}
        elif kind not in _THINKING:
            said.append(f"[{kind}]")
    if results and not said and not calls:
        return results
    ours = {"role": message["role"], "content": "\n".join(said)}
    ours |= {k: message[k] for k in ("name", "tool_call_id") if message.get(k)}
    return [*results, ours | ({"tool_calls": calls} if calls else {})]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _as_object(value: Any) -> dict:
    """Parse a dictionary where there is one; anything else goes under `text`."""
    parsed = value
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            parsed = json.loads(value)
    if isinstance(parsed, dict):
        return parsed
    return {} if value in (None, "") else {"text": value}


def tool_spans(chat: list[dict]) -> list[dict]:
    """Make a span of each tool call since the last user message, with any result."""
    asked = max((i for i, m in enumerate(chat, 1) if m["role"] == "user"), default=0)
    results = {m.get("tool_call_id"): m["content"] for m in chat if m["role"] == "tool"}
    spans = []
    for call in (c for m in chat[asked:] for c in m.get("tool_calls") or []):
        function = call.get("function") or call.get("custom") or {}
        given = function.get("arguments", function.get("input"))
        attributes = {
            "gen_ai.operation.name": "execute_tool",
            "gen_ai.tool.name": function.get("name"),
            "gen_ai.tool.call.id": call.get("id"),
            ARGUMENTS: _as_object(given),
        }
        if call.get("id") in results:
            attributes[RESULT] = _as_object(results[call["id"]])
        spans.append(span("tool", f"execute_tool {function.get('name')}", attributes))
    return spans


def _bodies(record: dict) -> tuple[dict, dict]:
    """Take request and response of a record; gateways wrap each in a `body`."""
    both = (_as_object(record.get(key)) for key in ("request", "response"))
    return tuple(_as_object(part.get("body", part)) for part in both)


def openai(record: dict) -> dict:
    """Make a trace of one logged chat-completions call.

    `record` has "request" (model, messages, ...) and "response" (choices, usage, ...)
    or "error"; beside them, where the log has them, time, seconds, session_id,
    user_id, prompt_version and trace_id. Without trace_id it gets a hash of the
    record, so that importing twice gives the same ids. Tool calls of this turn become
    tool spans, without a result where the log ends before it. ValueError says what
    is missing.
    """
    sent, got = _bodies(record)
    chat = [m for raw in sent.get("messages") or [] for m in messages(raw)]
    choices, failed = got.get("choices") or [], record.get("error") or got.get("error")
    when = record.get("time") or record.get("timestamp") or got.get("created")
    if not chat or not (choices or failed) or not when:
        missing = "messages" if not chat else "time" if not when else "choices"
        raise ValueError(f"the record has no {missing}")
    said = [m for choice in choices for m in messages(choice["message"])]
    usage = got.get("usage") or {}
    cached = usage.get("prompt_tokens_details") or {}
    tools, ends = sent.get("tools") or [], [c.get("finish_reason") for c in choices]
    if isinstance(failed, dict):
        failed = failed.get("code") or failed.get("type") or "_OTHER"
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": record.get("provider", "openai"),
        "gen_ai.prompt.version": record.get("prompt_version"),
        "gen_ai.tool.definitions": [_definition(tool) for tool in tools] or None,
        **{f"gen_ai.request.{key}": sent.get(key) for key in _SETTINGS},
        INPUT: chat,
        OUTPUT: said,
        "gen_ai.response.id": got.get("id"),
        "gen_ai.response.model": got.get("model"),
        "gen_ai.response.finish_reasons": ends or None,
        TOKENS[0]: usage.get("prompt_tokens"),
        TOKENS[1]: usage.get("completion_tokens"),
        "gen_ai.usage.cache_read.input_tokens": cached.get("cached_tokens"),
        "gen_ai.usage.cache_creation.input_tokens": cached.get("cache_write_tokens"),
        "error.type": error_type(str(failed)) if failed else None,
    }
    model = span("llm", f"chat {sent.get('model')}", attributes, record.get("seconds"))
    return {
        "trace_id": record.get("trace_id") or _digest(record),
        "session_id": record.get("session_id"),
        "user_id": sent.get("user") or record.get("user_id"),
        "time": timestamp(when),
        "spans": [*tool_spans(chat), model, *tool_spans(said)],
    }


def _definition(tool: dict) -> dict:
    return {"type": "function"} | tool.get("function", tool)


def _digest(record: dict) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]


def anthropic(record: dict) -> dict:
    """Make a trace of one logged Messages call, by way of OpenAI's form.

    Anthropic counts cached input apart from `input_tokens`; OpenTelemetry, and so we,
    count it in.
    """
    sent, got = _bodies(record)
    usage = got.get("usage") or {}
    kinds = {"cached_tokens": "cache_read", "cache_write_tokens": "cache_creation"}
    cached = {ours: usage.get(f"{its}_input_tokens") for ours, its in kinds.items()}
    counts = {"prompt_tokens_details": cached}
    counts |= {"completion_tokens": usage.get("output_tokens")}
    if "input_tokens" in usage:
        both = (usage["input_tokens"], *cached.values())
        counts["prompt_tokens"] = sum(count or 0 for count in both)
    chat = sent.get("messages") or []
    if chat and sent.get("system"):
        chat = [{"role": "system", "content": sent["system"]}, *chat]
    user = (sent.get("metadata") or {}).get("user_id")
    answer = {"role": "assistant", "content": got.get("content")}
    choice = {"message": answer, "finish_reason": got.get("stop_reason")}
    choices = [choice] if "content" in got else []
    request = sent | {"messages": chat, "user": user}
    response = got | {"choices": choices, "usage": counts}
    both = {"request": request, "response": response}
    return openai(record | both | {"provider": "anthropic"})


def otel(document: dict) -> list[dict]:
    """Make the traces of an OTLP/JSON export, in order of their first span.

    Where tools were called but left no span, the messages tell of the calls.
    """
    scopes = [s for r in document["resourceSpans"] for s in r.get("scopeSpans") or []]
    exported = [one for scope in scopes for one in scope.get("spans") or []]
    by_trace: dict[str, list[tuple[dict, dict]]] = {}
    for one in sorted(exported, key=lambda one: int(one["startTimeUnixNano"])):
        pair = (one, _values(one.get("attributes")))
        by_trace.setdefault(one["traceId"], []).append(pair)
    traces = []
    for trace_id, pairs in by_trace.items():
        spans = [ours for one, values in pairs if (ours := _otel_span(one, values))]
        if spans and all(s["kind"] == "llm" for s in spans):
            *before, last = spans
            chats = (last["attributes"].get(key) or [] for key in (INPUT, OUTPUT))
            asked, said = map(tool_spans, chats)
            spans = [*before, *asked, last, *said]
        every = {k: v for _, values in reversed(pairs) for k, v in values.items()}
        trace = {"trace_id": trace_id, "spans": spans}
        trace["time"] = timestamp(int(pairs[0][0]["startTimeUnixNano"]) / 1e9)
        for ours, theirs in _WHO.items():
            trace[ours] = next((every[key] for key in theirs if key in every), None)
        traces += [trace] if spans else []
    return traces


def _otel_span(one: dict, values: dict) -> dict | None:
    """Make our span of an exported one; None if it is no model or tool call."""
    kind = _KINDS.get(values.get("gen_ai.operation.name"))
    if kind is None:
        return None
    for key in (INPUT, OUTPUT, "gen_ai.system_instructions", "gen_ai.tool.definitions"):
        if isinstance(values.get(key), str):
            values[key] = json.loads(values[key])
    for key in (INPUT, OUTPUT):
        if key in values:
            values[key] = [m for raw in values[key] for m in messages(raw)]
    if system := values.pop("gen_ai.system_instructions", None):
        prompt = messages({"role": "system", "content": system})
        values[INPUT] = prompt + values.get(INPUT, [])
    for key in (ARGUMENTS, RESULT):
        if key in values:
            values[key] = _as_object(values[key])
    status = one.get("status") or {}
    if "error.type" in values or status.get("code") in (2, "STATUS_CODE_ERROR"):
        values["error.type"] = error_type(values.get("error.type", "_OTHER"))
        if kind == "tool":
            why = status.get("message") or values["error.type"]
            values.setdefault(RESULT, {"error": why})
    seconds = (int(one["endTimeUnixNano"]) - int(one["startTimeUnixNano"])) / 1e9
    return span(kind, one["name"], values, seconds) | {"span_id": one["spanId"]}


def _values(pairs: list[dict] | None) -> dict:
    """Make a dictionary of OTLP's list of keys and typed values."""
    return {pair["key"]: _value(pair["value"]) for pair in pairs or []}


def _value(typed: dict) -> Any:
    kind, value = next(iter(typed.items()), ("", None))
    if kind == "intValue":  # 64 bits: JSON carries it as text
        return int(value)
    if kind == "arrayValue":
        return [_value(item) for item in value.get("values", [])]
    return _values(value.get("values")) if kind == "kvlistValue" else value


def joined(chunks: list[dict]) -> dict:
    """Make one chat completion of the chunks of its stream."""
    whole, choices = {}, {}
    for chunk in chunks:
        keys = ("id", "model", "created", "usage")
        whole |= {key: chunk[key] for key in keys if chunk.get(key)}
        for part in chunk.get("choices") or []:
            new = {"message": {"role": "assistant", "content": ""}}
            new |= {"calls": {}, "finish_reason": None}
            choice = choices.setdefault(part.get("index"), new)
            delta = part.get("delta") or {}
            said = delta.get("content") or delta.get("refusal") or ""
            choice["message"]["content"] += said
            for piece in delta.get("tool_calls") or []:
                function = {"name": "", "arguments": ""}
                call = {"id": None, "type": "function", "function": function}
                call = choice["calls"].setdefault(piece.get("index"), call)
                call["id"] = piece.get("id") or call["id"]
                for key, value in (piece.get("function") or {}).items():
                    call["function"][key] += value or ""
            if part.get("finish_reason"):
                choice["finish_reason"] = part["finish_reason"]
    for choice in choices.values():
        choice["message"]["tool_calls"] = list(choice.pop("calls").values())
    return whole | {"choices": list(choices.values())}


def guess(record: dict) -> str:
    """Name the format of a record: "course", "otel", "anthropic" or "openai"."""
    if "spans" in record or "resourceSpans" in record:
        return "course" if "spans" in record else "otel"
    got = _bodies(record)[1]
    return "anthropic" if got.get("type") in ("message", "error") else "openai"
