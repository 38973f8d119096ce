"""Exports of tracing tools (Langfuse, LangSmith), and rows of data sets."""

from typing import Any

from utils.logs.importers.chats import messages
from utils.logs.importers.names import N
from utils.logs.importers.normal import (
    ARGUMENTS,
    RESULT,
    Call,
    Fields,
    as_object,
    as_text,
    canon,
    decoded,
    failure,
    present,
)
from utils.logs.importers.vendors import (
    UnknownShapeError,
    chat_in,
    counts_in,
    definitions,
    identified,
    model_call,
    raws,
    replies_in,
    settings_in,
)

_KINDS = {"generation": "llm", "llm": "llm", "tool": "tool"}
_KINDS |= {"event": "", "retriever": "", "embedding": ""}


def observation(record: dict) -> list[Call]:
    """Read a step of a tracing tool: kind, input and output; or a trace of steps.

    These are Langfuse's observations and traces and LangSmith's runs, as JSON or as
    rows of a table. A step that is no model call stands in where its trace has none.
    """
    fields = Fields(record)
    children = fields.get("observations", "child_runs", "children") or []
    calls = [_step(record, fields)]
    for child in children if isinstance(children, list) else []:
        if isinstance(child, dict):
            calls += observation({"trace_id": calls[0].trace_id} | present(child))
    for call in calls[1:]:
        call.session_id = call.session_id or calls[0].session_id
        call.user_id = call.user_id or calls[0].user_id
    return calls


def _step(record: dict, fields: Fields) -> Call:
    kind = canon(fields.get("run_type", "type", "observation_type"))
    kind = _KINDS.get(kind, "outer")
    asked, got = fields.get("input", "inputs"), fields.get("output", "outputs")
    error = failure(fields.get("error"))
    if fields.get("level") == "ERROR":
        error = error or failure(fields.get("status_message") or True)
    name = as_text(fields.get("name"))
    if kind == "tool":
        call = tool_call(name, asked, got, error)
    else:
        asked, got = _unquoted(asked), _unquoted(got)
        call = _model_step(fields, asked, got, error)
        if (
            kind == "llm"
            and not call.attributes["gen_ai.output.messages"]
            and not error
        ):
            raise UnknownShapeError(record, "neither an output nor an error")
        call.kind, call.name = kind, call.name if kind == "llm" else name
    call.span_id = str(fields.get("id", "run_id") or "")
    call.parent_id = str(fields.get("parent_observation_id", "parent_run_id") or "")
    return identified(call, fields)


def _model_step(fields: Fields, asked: Any, got: Any, error: str | None) -> Call:
    body, extra = Fields(decoded(asked)), Fields(decoded(fields.get("extra")))
    sent = decoded(fields.get("model_parameters")) or extra.get("invocation_params")
    sent, held = Fields(sent), Fields(extra.get("metadata"))
    model = fields.get("model", "provided_model_name") or sent.get(
        "model", "model_name"
    )
    version = fields.get("prompt_version")
    more = {
        **settings_in(body.record, known_only=True),
        **settings_in(sent.record, known_only=True),
        "gen_ai.request.model": model or body.get("model") or held.get("ls_model_name"),
        "gen_ai.provider.name": held.get("ls_provider"),
        "gen_ai.prompt.version": None if version is None else str(version),
        "gen_ai.tool.definitions": definitions(
            body.get("tools") or sent.get("tools", "functions")
        ),
        "error.type": error,
    }
    replies, ends = replies_in(got)
    return model_call(
        raws(asked), replies, ends, counts_in(fields, decoded(got)), **more
    )


def tool_call(name: str, asked: Any, got: Any, error: str | None = None) -> Call:
    """Make the call of a tool that ran; what it was asked and gave, in any form."""
    name = name.removeprefix("execute_tool ") or "tool"
    result = _inner(got, "output")
    if isinstance(result, dict) and {"lc", "role", "tool_call_id"} & set(result):
        result = messages(result, "tool")[0]["content"]
    if result is None and error:
        result = {"error": error}
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": name,
        ARGUMENTS: as_object(_inner(asked, "input")),
        RESULT: None if result is None else as_object(result),
        "error.type": error,
    }
    return Call("tool", present(attributes), name=f"execute_tool {name}")


def _inner(value: Any, key: str) -> Any:
    """Take a value out of the dictionary of one key that LangChain puts around it."""
    value = decoded(value)
    if isinstance(value, dict) and set(value) == {key}:
        return decoded(value[key])
    return value


def _unquoted(value: Any) -> Any:
    """Take text out of its JSON quotes, as exports to tables have it."""
    plain = decoded(value)
    return plain if isinstance(value, str) and isinstance(plain, str) else value


def row(record: dict) -> list[Call]:
    """Read a row of a data set: a chat whose last message is the reply, or a pair.

    Such rows have no time and often no id: the trace's time is "".
    """
    fields = Fields(record)
    chat, got = chat_in(fields), None
    if not fields.get(*N.chat) or fields.get(
        "completion", "chosen", "preferred_output"
    ):
        got = fields.get(*(name for name in N.reply if name != "object"))
        chat = chat or raws(fields.get("user", "human"))
    if chat and got is None:
        role = messages(chat[-1])[0]["role"]
        if role != "assistant":
            raise UnknownShapeError(record, f"the chat ends with role {role}: no reply")
        got = [chat.pop()]
    if not chat:
        raise UnknownShapeError(record, "no messages")
    replies, ends = replies_in(got)
    more = {"gen_ai.request.model": fields.get("model")}
    more["gen_ai.tool.definitions"] = definitions(fields.get("tools", "functions"))
    call = model_call(chat, replies, ends, counts_in(fields), **more)
    call.alone = True
    return [identified(call, fields)]
