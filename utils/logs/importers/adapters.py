"""From a record to calls: requests with responses, steps of tracing tools, rows."""

import re
from typing import Any

from utils.logs.importers import calls as c
from utils.logs.importers import values as v
from utils.logs.importers.chats import chat_in, messages, raws
from utils.logs.importers.names import N
from utils.logs.importers.streams import whole
from utils.logs.importers.values import Fields

# What a gateway logs beside chats, told by its endpoint or by what comes back.
_NO_CHATS = {"embedding": "embeddings", "moderation|flagged": "a moderation"}
_NO_CHATS |= {"image|b64json": "an image", "speech|transcription": "audio"}
_NO_CHATS |= {"rerank|relevancescore": "a ranking"}


class UnknownShapeError(ValueError):
    """A record has no shape that is known; the message names its keys."""

    def __init__(self, record: dict, why: str = "no shape that is known") -> None:
        keys = ", ".join(list(map(str, record))[:12]) or "none"
        super().__init__(f"{why} (keys: {keys})")


def exchange(record: dict) -> list[c.Call]:
    """Read one request and its response or error: a gateway's line, or flat.

    `record` has them under request and response (or request_body, ...) or has their
    fields itself, and beside them time, latency, ids, usage and metadata.
    """
    fields = Fields(record)
    sent, got = _body(fields, *N.request), _body(fields, *N.response)
    sent = {"messages": sent} if isinstance(sent, str | list) else sent
    stored = _body(fields, "proxy_server_request", "kwargs")  # LiteLLM's
    _refuse_other_kinds(record, fields, Fields(got))
    for request in (Fields(sent), fields, Fields(stored)):
        if chat := chat_in(request):
            break
    else:
        raise UnknownShapeError(record, "no messages in the request")
    if got is None:
        inside = fields.get("choices", "content", "generations")
        got = record if inside else whole(fields.get(*N.reply, *N.weak_reply))
    body = Fields(got)
    state = fields.get(*N.status) or Fields(fields.get("response")).get("status_code")
    state = state or body.get("status")
    error = v.failure(fields.get(*N.error) or body.get("error"), state)
    if error and not body.get("choices", "content", "output"):
        got = None  # what came is the error's own page
    if body.get("status") == "incomplete" and not body.get("incomplete_details"):
        error = error or "incomplete"
    vendor = fields.get("provider", "custom_llm_provider")
    if not isinstance(vendor, str):
        ours = body.get("type") in ("message", "error")
        vendor = "anthropic" if ours else "openai"
    more = {"gen_ai.provider.name": vendor, "gen_ai.response.id": body.get("id")}
    more["gen_ai.response.model"] = body.get("model")
    more["error.type"] = error
    if got is None:  # what failed may have cost tokens
        more |= v.usage(body.get(*N.usage))[0]
    call = c.model_call(fields, request, chat, got, more)
    if c.OUTPUT not in call.attributes:
        raise UnknownShapeError(record, "neither a reply nor an error")
    _refuse_unknown(call, got, fields.get(*N.response) is not None)
    call.time = call.time or v.clock(body)[0]
    return [call]


def _refuse_other_kinds(record: dict, fields: Fields, body: Fields) -> None:
    """Refuse what is no chat, and chats whose texts were not logged."""
    if body.get("choices", "content", "output"):
        return
    items = [*v.as_list(body.get("data", "results")), None]
    where = fields.get("call_type", "endpoint", "path", "request_path", "url")
    told = v.canon([where, *Fields(items[0]).names])
    for words, what in _NO_CHATS.items():
        if re.search(words, told):
            raise UnknownShapeError(record, f"this is {what} and no chat")
    if "redacted-by-litellm" in v.as_text(fields.get("messages", "response")):
        raise UnknownShapeError(record, "the content was not logged (LiteLLM redacts)")


def _refuse_unknown(call: c.Call, got: Any, named: bool) -> None:
    """Refuse a dictionary of unknown form for a reply, if named or asked in kind.

    Beside a question in text, one under `output` is the JSON that a product asks for.
    """
    asked, said = (call.attributes.get(k) or [{}] for k in (c.INPUT, c.OUTPUT))
    unknown = isinstance(got, dict) and said[0].get("content") == v.as_text(got)
    given = v.decoded(asked[-1].get("content"))
    if unknown and (named or isinstance(given, dict)):
        raise UnknownShapeError(got, "no reply that is known")


def _body(fields: Fields, *names: str) -> Any:
    """Take a request or response, out of the `body` that gateways put around it."""
    value = whole(fields.get(*names))
    around = isinstance(value, dict) and "body" in value
    return whole(value["body"]) if around else value


def step(record: dict) -> list[c.Call]:
    """Read a step of a tracing tool, or a trace with its steps.

    These are Langfuse's observations and LangSmith's runs, as JSON or as rows of a
    table; `spans` makes such a record of each span, with `attributes`.
    """
    if isinstance(record.get("trace"), dict):  # Langfuse's page of a trace
        record = {**record["trace"], **record, "trace": None}
    fields = Fields(record)
    kind = fields.get("run_type", "type", "observation_type") or "chain"
    kind = c.KINDS.get(v.canon(kind), "other")
    asked, got = fields.get("input", "inputs"), fields.get("output", "outputs")
    name, error = v.as_text(fields.get("name")), v.failure(fields.get("error"))
    if fields.get("level") == "ERROR":
        error = error or v.failure(fields.get("status_message") or True)
    own = fields.get("id", "run_id")
    parent = fields.get("parent_observation_id", "parent_run_id")
    children = fields.get("observations", "child_runs", "children")
    if kind == "tool":
        call = _tool_step(fields, asked, got, error)
    else:
        call = _model_step(fields, asked, got, error)
        # Of spans, the counts tell something where texts were not captured.
        told = c.OUTPUT in call.attributes or fields.get("attributes")
        if kind == "llm" and not told:
            raise UnknownShapeError(record, "neither an output nor an error")
        call.kind, call.name = kind, name or call.name
    call.span_id, call.parent_id = str(own or call.span_id), str(parent or "")
    calls = [call]
    for child in v.as_list(children):
        if not isinstance(child, dict):
            call.faults.append("span is only an id or null: export whole observations")
            continue
        calls += step({"trace_id": call.trace_id} | v.present(child))
    return calls


def _model_step(fields: Fields, asked: Any, got: Any, error: str | None) -> c.Call:
    extra = Fields(v.decoded(fields.get("extra")))
    about = Fields(extra.get("metadata"))
    sent = v.decoded(fields.get("model_parameters")) or extra.get("invocation_params")
    sent = Fields(Fields(sent).record | Fields(v.decoded(asked)).record)
    request = Fields({name: sent.get(name) for name in (*N.settings, *N.tools)})
    model = fields.get("model", "provided_model_name")
    model = model or sent.get("model", "model_name") or about.get("ls_model_name")
    more = {"gen_ai.provider.name": about.get("ls_provider")}
    more |= Fields(fields.get("attributes")).record
    more |= {"gen_ai.request.model": model, "error.type": error}
    chat = raws(asked)
    if chat and Fields(chat[0]).get("role") != "system":
        chat = [*raws(fields.get("system"), "system"), *chat]
    return c.model_call(fields, request, chat, got, more)


def _tool_step(fields: Fields, asked: Any, got: Any, error: str | None) -> c.Call:
    name = v.as_text(fields.get("name")).removeprefix("execute_tool ") or "tool"
    result = _inner(got, "output")
    if result is None and error:
        result = {"error": error}
    attributes = Fields(fields.get("attributes")).record | {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        c.ARGUMENTS: v.as_object(_inner(asked, "input")),
        c.RESULT: None if result is None else v.as_object(result),
        "error.type": error,
    }
    call = c.Call("tool", v.present(attributes), f"execute_tool {name}")
    return c.identified(call, fields, fields)


def _inner(value: Any, key: str) -> Any:
    """Take a value out of the dictionary of one key that LangChain puts around it."""
    value = v.decoded(value)
    alone = isinstance(value, dict) and value.keys() == {key}
    return v.decoded(value[key]) if alone else value


def row(record: dict) -> list[c.Call]:
    """Read a row of a data set: a chat whose last message is the reply, or a pair."""
    fields = Fields(record)
    chat, got = chat_in(fields), fields.get("completion", "chosen", "preferred_output")
    if got is None and not fields.get(*N.chat):
        got = fields.get(*N.reply)
    if not chat:
        raise UnknownShapeError(record, "no messages")
    if got is None:
        role = messages(chat[-1])[0]["role"]
        if role != "assistant":
            raise UnknownShapeError(record, f"the chat ends with role {role}: no reply")
        got = [chat.pop()]
    call = c.model_call(fields, fields, chat, got, {})
    _refuse_unknown(call, got, False)
    call.alone = True
    return [call]
