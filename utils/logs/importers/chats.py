"""Messages of every dialect as ours: role, text, tool calls, results of tools."""

from typing import Any

from utils.logs.importers.names import N
from utils.logs.importers.normal import Fields, as_text, canon, decoded

_ROLES = {"developer": "system", "human": "user", "gpt": "assistant", "ai": "assistant"}
_ROLES |= {"model": "assistant", "bot": "assistant", "chatgpt": "assistant"}
_ROLES |= {"function": "tool", "observation": "tool", "toolresult": "tool"}
_TEXTS = {"text", "inputtext", "outputtext", "refusal", "summarytext"}
_MEDIA = ("image", "audio", "video", "file", "document")
_SILENT = {"thinking", "redactedthinking", "reasoning", "reasoningcontent", "stepstart"}
_SILENT |= {"itemreference", "mcplisttools", "compaction", "cachepoint"}
_CALLS = ("call", "tooluse", "toolinvocation")
_RESULTS = ("toolresult", "toolcallresponse", "functionresponse", "calloutput")
# Vendors that give a block no type have one of these keys instead.
_UNTYPED = ("text", "toolUse", "toolResult", "functionCall", "functionResponse", "json")
_UNTYPED += ("reasoningContent", "thinking", "cachePoint", "image", "inlineData")
_UNTYPED += ("fileData", "document", "video")
_LANGCHAIN = ("human", "ai", "system", "tool", "AIMessageChunk", "constructor")


def is_message(value: Any) -> bool:
    """Say whether this is one message of a chat, or one item of the Responses API."""
    if isinstance(value, list | tuple):  # LangChain's pair of role and text
        known = {*_ROLES, *_ROLES.values()}
        return len(value) == 2 and isinstance(value[1], str) and value[0] in known
    if not isinstance(value, dict):
        return False
    keys = {key.removeprefix("message.") for key in value}
    if "role" in keys or "lc" in keys or keys >= {"from", "value"}:
        return True
    if keys == {"message"} and isinstance(value["message"], dict):
        return True
    kind = str(value.get("type"))
    item = kind.endswith(("_call", "_call_output")) or kind.startswith("mcp_")
    item = item or kind in ("reasoning", "item_reference")
    return item or (
        kind in (*_LANGCHAIN, "message") and bool({"content", "data"} & keys)
    )


def messages(message: Any, role: str = "user") -> list[dict]:
    """Turn one message of any dialect into messages of ours; `role` is the default.

    Tool results inside it become messages of their own, before a user's text and
    after an assistant's. An image leaves `[image]`; thinking leaves nothing.
    """
    raw = _unwrapped(message)
    kind = canon(raw.get("type") or "")
    item = "role" not in raw and kind.endswith((*_CALLS, *_RESULTS))
    given = (raw[k] for k in ("content", "parts", "contents", "refusal") if raw.get(k))
    said, calls, results, glue = [], [], [], "\n"
    for block in _blocks(raw if item else next(given, None)):
        kind, part = _kind(block)
        if kind in _TEXTS:
            said.append(as_text(Fields(part).get("text", "content", "refusal")))
            glue = "" if block.get("citations") else glue  # pieces of one sentence
        elif kind.endswith(_CALLS):
            calls.append(_call(part))
            results += [_result(part)] if part.get("output") else []
        elif kind.endswith(_RESULTS):
            results.append(_result(part))
        elif kind == "json":
            said.append(as_text(part))
        elif kind not in _SILENT:
            about = canon(f"{part.get('modality')}{part.get('mime_type')}{kind}")
            said.append(next((f"[{m}]" for m in _MEDIA if m in about), f"[{kind}]"))
    more = raw.get("additional_kwargs") or {}
    if not calls:  # LangChain has them twice
        calls = [
            _call(c) for c in raw.get("tool_calls") or more.get("tool_calls") or []
        ]
    if old := raw.get("function_call") or more.get("function_call"):
        calls.append(_call(old))
    text = glue.join(part for part in said if part)
    if results and not text and not calls:
        return results
    spoken = canon(raw.get("role") or ("assistant" if item else role))
    ours = {"role": _ROLES.get(spoken, spoken), "content": text}
    ours |= {k: as_text(raw[k]) for k in ("name", "tool_call_id") if raw.get(k)}
    if ours["role"] == "tool":
        if raw.get("id") and not raw.get("tool_call_id"):
            ours["tool_call_id"] = as_text(raw["id"])
        if raw.get("status") == "error":
            ours["content"] = as_text({"error": text})
    ours |= {"tool_calls": calls} if calls else {}
    return [ours, *results] if ours["role"] == "assistant" else [*results, ours]


def _unwrapped(raw: Any) -> dict:
    """Take a message out of what a library puts around it."""
    if isinstance(raw, str):
        return {"content": raw}
    if isinstance(raw, list | tuple):
        return {"role": raw[0], "content": raw[1]}
    raw = {key.removeprefix("message."): value for key, value in raw.items()}
    inner = raw.get("message")
    if isinstance(inner, dict) and "content" not in raw:  # OpenInference
        return _unwrapped({"role": raw.get("role"), **inner})
    inner = raw.get("kwargs") if "lc" in raw else raw.get("data")
    if isinstance(inner, dict):  # LangChain: the class, or the type, is the role
        name = raw["id"][-1] if "lc" in raw else str(raw.get("type"))
        role = name.removesuffix("Chunk").removesuffix("Message")
        return {"role": role.replace("Chat", "") or "user", **present_role(inner)}
    if "value" in raw and ("from" in raw or "role" in raw):  # ShareGPT
        role, said = raw.get("from") or raw.get("role") or "", raw["value"]
        if canon(role) not in ("functioncall", "toolcall"):
            return {"role": role, "content": said}
        said = decoded(said)
        return {"role": "gpt", "tool_calls": said if isinstance(said, list) else [said]}
    if raw.get("type") in _LANGCHAIN and not raw.get("role"):
        raw["role"] = raw["type"].removeprefix("AIMessageChunk") or "ai"
    return raw


def present_role(inner: dict) -> dict:
    """Leave an empty role out of a LangChain message."""
    return {k: v for k, v in inner.items() if k != "role" or v}


def _blocks(content: Any) -> list[dict]:
    """List the blocks of a content; text is a block."""
    if isinstance(content, dict):
        content = content.get("parts") or [content]
    items = content if isinstance(content, list) else [as_text(content)]
    return [b if isinstance(b, dict) else {"type": "text", "text": b} for b in items]


def _kind(block: dict) -> tuple[str, Any]:
    """Name what a block is, and give what it holds."""
    block = {k.removeprefix("message_content."): v for k, v in block.items()}
    if isinstance(block.get("message_content"), dict):  # OpenInference
        block = block["message_content"]
    if block.get("type"):
        return canon(block["type"]), block
    for key in _UNTYPED:
        if key in block:
            inner = block[key]
            return canon(key), inner if isinstance(inner, dict) else block
    return ("text" if "content" in block else canon("".join(block))), block


def _call(raw: Any) -> dict:
    """Make a tool call in OpenAI's form; a custom tool's text goes under `input`."""
    raw = decoded(raw)
    raw = raw if isinstance(raw, dict) else {"name": "", "arguments": raw}
    raw = {k.removeprefix("tool_call."): v for k, v in raw.items()}
    for wrapper in ("tool_call", "toolInvocation"):
        raw = raw[wrapper] if isinstance(raw.get(wrapper), dict) else raw
    inner = raw.get("function") or raw.get("custom") or raw.get("functionCall")
    if not isinstance(inner, dict):
        inner = {k.removeprefix("function."): v for k, v in raw.items()}
    given = next((inner[k] for k in N.arguments if inner.get(k) is not None), {})
    kind = str(raw.get("type") or "")
    if kind in ("custom", "custom_tool_call") or "custom" in raw:
        given = {"input": given}
    name = Fields(inner).get(*N.tool_name) or kind.removesuffix("_call")
    function = {"name": str(name), "arguments": as_text(given)}
    call_id = as_text(Fields(raw).get(*N.call_id))
    return {"id": call_id, "type": "function", "function": function}


def _result(part: dict) -> dict:
    """Make a tool's message of a block with its result; a failure is an `error`."""
    result = next((part[k] for k in N.result if part.get(k) not in (None, "")), "")
    failed = (
        part.get("is_error") or part.get("isError") or part.get("status") == "error"
    )
    if isinstance(result, dict) and set(result) == {"type", "value"}:  # Vercel's
        failed = failed or "error" in str(result["type"])
        result = result["value"]
    if isinstance(result, list) and all(isinstance(b, dict) for b in result):
        readable = (*_TEXTS, *_MEDIA, "json", "inputimage", "imageurl")
        if result and all(_kind(block)[0] in readable for block in result):
            result = messages({"role": "tool", "content": result})[0]["content"]
    ours = {"role": "tool", "content": as_text({"error": result} if failed else result)}
    fields = Fields(part)
    for key, names in (("tool_call_id", N.call_id), ("name", N.tool_name)):
        ours |= {key: as_text(fields.get(*names))} if fields.get(*names) else {}
    return ours


def conversation(raws: list, role: str = "user") -> list[dict]:
    """Turn a list of messages into ours; calls and results without id get one."""
    chat: list[dict] = []
    for raw in raws:
        item = isinstance(raw, dict) and "role" not in raw and "type" in raw
        for ours in messages(raw, role):
            # An item of the Responses API may be one more call of the same reply.
            again = item and ours.get("tool_calls") and not ours["content"]
            if again and chat and chat[-1]["role"] == "assistant":
                chat[-1].setdefault("tool_calls", []).extend(ours["tool_calls"])
            elif ours["content"] or ours.get("tool_calls") or not item:
                chat.append(ours)
    waiting: list[dict] = []
    for number, message in enumerate(chat):
        for place, call in enumerate(message.get("tool_calls") or []):
            call["id"] = call["id"] or f"call_{number}_{place}"
            waiting.append(call)
        if message["role"] == "tool":
            fits = [call for call in waiting if _fits(call, message)]
            if fits:
                message["tool_call_id"] = fits[0]["id"]
                waiting.remove(fits[0])
    return chat


def _fits(call: dict, message: dict) -> bool:
    if message.get("tool_call_id"):
        return call["id"] == message["tool_call_id"]
    return message.get("name") in (None, call["function"]["name"])
