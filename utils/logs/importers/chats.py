"""Messages of every dialect as ours: role, text, tool calls, results of tools."""

from typing import Any

from utils.logs.importers.names import N
from utils.logs.importers.values import EMPTY, Fields, as_text, canon, decoded

_ROLES = {"developer": "system", "human": "user", "gpt": "assistant", "ai": "assistant"}
_ROLES |= {"model": "assistant", "bot": "assistant", "chatgpt": "assistant"}
_ROLES |= {"function": "tool", "observation": "tool", "toolresult": "tool"}
# Kinds of blocks and of items, by the ends of their names without dashes.
_TEXTS = ("text", "inputtext", "outputtext", "refusal")
_MEDIA = ("image", "audio", "video", "file", "document")
_SILENT = ("thinking", "redactedthinking", "reasoning", "itemreference", "mcplisttools")
_CALLS = ("call", "tooluse")
_RESULTS = ("toolresult", "toolcallresponse", "calloutput")
_LANGCHAIN = ("human", "ai", "system", "tool", "AIMessageChunk")


def is_message(value: Any) -> bool:
    """Say whether this is one message of a chat, or one item of the Responses API."""
    if isinstance(value, list):  # LangChain's pair of role and text
        known = {*_ROLES, *_ROLES.values()}
        return len(value) == 2 and isinstance(value[1], str) and value[0] in known
    if not isinstance(value, dict):
        return False
    if "role" in value or "lc" in value or value.keys() >= {"from", "value"}:
        return True
    kind = str(value.get("type"))
    if canon(kind).endswith((*_CALLS, *_RESULTS)) or canon(kind) in _SILENT:
        return True
    return kind in (*_LANGCHAIN, "message") and bool({"content", "data"} & value.keys())


def messages(message: Any, role: str = "user") -> list[dict]:
    """Turn one message of any dialect into messages of ours; `role` is the default.

    Tool results inside it become messages of their own, before a user's text and
    after an assistant's. An image leaves `[image]`; thinking leaves nothing.
    """
    raw = _unwrapped(message)
    item = canon(raw.get("type") or "").endswith((*_CALLS, *_RESULTS))
    item = item and "role" not in raw
    given = (raw[k] for k in ("content", "parts", "contents", "refusal") if raw.get(k))
    heard = Fields(raw.get("audio")).get("transcript")
    content = raw if item else next(given, heard or [])
    said, calls, results, glue = [], [], [], "\n"
    for block in map(_block, content if isinstance(content, list) else [content]):
        kind = canon(block["type"])
        if kind in _TEXTS:
            said.append(as_text(Fields(block).get("text", "content", "refusal")))
            glue = "" if block.get("citations") else glue  # pieces of one sentence
        elif kind.endswith(_CALLS):
            calls.append(_call(block))
            results += [_result(block)] if block.get("output") else []
        elif kind.endswith(_RESULTS):
            results.append(_result(block))
        elif kind not in _SILENT:
            about = canon(f"{block.get('modality')}{block.get('mime_type')}{kind}")
            said.append(next((f"[{m}]" for m in _MEDIA if m in about), f"[{kind}]"))
    more = raw.get("additional_kwargs") or {}  # LangChain has calls twice
    beside = [] if calls else raw.get("tool_calls") or more.get("tool_calls") or []
    old = raw.get("function_call") or more.get("function_call")
    calls += map(_call, [*beside, old] if old else beside)
    text = glue.join(filter(None, said))
    if results and not text and not calls:
        return results
    spoken = canon(raw.get("role") or ("assistant" if item else role))
    ours = {"role": _ROLES.get(spoken, spoken), "content": text}
    ours |= {k: as_text(raw[k]) for k in ("name", "tool_call_id") if raw.get(k)}
    if ours["role"] == "tool" and raw.get("id"):
        ours.setdefault("tool_call_id", as_text(raw["id"]))
    ours |= {"tool_calls": calls} if calls else {}
    return [ours, *results] if ours["role"] == "assistant" else [*results, ours]


def _unwrapped(raw: Any) -> dict:
    """Take a message out of what a library puts around it."""
    if isinstance(raw, list):
        return {"role": raw[0], "content": raw[1]}
    if not isinstance(raw, dict):
        return {"content": as_text(raw)}
    inner = raw.get("kwargs") if "lc" in raw else raw.get("data")
    if isinstance(inner, dict):  # LangChain: the class, or the type, is the role
        name = raw["id"][-1] if "lc" in raw else str(raw.get("type"))
        role = name.removesuffix("Chunk").removesuffix("Message").removeprefix("Chat")
        return {**inner, "role": inner.get("role") or role or "user"}
    if raw.get("type") in _LANGCHAIN and not raw.get("role"):
        return {**raw, "role": raw["type"].removesuffix("MessageChunk")}
    if "value" in raw and ("from" in raw or "role" in raw):  # ShareGPT
        role, said = raw.get("from") or raw.get("role"), raw["value"]
        if canon(role) not in ("functioncall", "toolcall"):
            return {"role": role, "content": said}
        said = decoded(said)
        return {"role": "gpt", "tool_calls": said if isinstance(said, list) else [said]}
    return raw


def _block(raw: Any) -> dict:
    """Give a block its type, where a vendor's key stands for it."""
    if not isinstance(raw, dict):
        return {"type": "text", "text": as_text(raw)}
    if raw.get("type"):
        return raw
    key, inner = next(iter(raw.items()), ("", None))
    if len(raw) == 1 and isinstance(inner, dict):
        return {"type": key, **inner}
    return {"type": "text", "text": raw.get("text", as_text(raw))}


def _call(raw: Any) -> dict:
    """Make a tool call in OpenAI's form; a custom tool's text goes under `input`."""
    raw = decoded(raw)
    raw = raw if isinstance(raw, dict) else {"arguments": raw}
    raw = raw["tool_call"] if isinstance(raw.get("tool_call"), dict) else raw
    inner = raw.get("function") or raw.get("custom")
    inner = inner if isinstance(inner, dict) else raw
    given = next((inner[k] for k in N.arguments if inner.get(k) is not None), {})
    kind = str(raw.get("type") or "")
    given = {"input": given} if kind in ("custom", "custom_tool_call") else given
    name = Fields(inner).get(*N.tool_name) or kind.removesuffix("_call")
    function = {"name": as_text(name), "arguments": as_text(given)}
    call_id = as_text(Fields(raw).get(*N.call_id))
    return {"id": call_id, "type": "function", "function": function}


def _result(part: dict) -> dict:
    """Make a tool's message of a block with its result; a failure is an `error`."""
    result = next((part[k] for k in N.result if part.get(k) not in EMPTY), "")
    failed = part.get("is_error") or part.get("status") == "error"
    if isinstance(result, dict) and result.keys() == {"type", "value"}:  # Vercel's
        failed = failed or "error" in str(result["type"])
        result = result["value"]
    if isinstance(result, list):
        kinds = {canon(_block(block)["type"]) for block in result}
        if kinds <= {*_TEXTS, *_MEDIA, "inputimage"}:
            result = messages({"role": "tool", "content": result})[0]["content"]
    ours = {"role": "tool", "content": as_text({"error": result} if failed else result)}
    fields = Fields(part)
    ours["tool_call_id"] = as_text(fields.get(*N.call_id))
    ours["name"] = as_text(fields.get(*N.tool_name))
    return {key: value for key, value in ours.items() if value or key == "content"}


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
        answered, name = message.get("tool_call_id"), message.get("name")
        for call in waiting if message["role"] == "tool" else []:
            if answered == call["id"] or (
                not answered and name in (None, call["function"]["name"])
            ):
                message["tool_call_id"] = call["id"]
                waiting.remove(call)
                break
    return chat


def raws(value: Any, role: str = "user") -> list:
    """List the messages of a request or reply, whatever holds them.

    `role` is the speaker of what is no message. Text that holds JSON is decoded only
    if a chat comes out: the JSON that a product asks for is text.
    """
    if value in EMPTY:
        return []
    parsed, text = decoded(value), isinstance(value, str)
    if isinstance(parsed, str):
        value = parsed  # out of the quotes that exports to tables add
    if isinstance(parsed, list) and parsed:
        if len(parsed) == 1 and isinstance(parsed[0], list):
            return [parsed[0]] if is_message(parsed[0]) else raws(parsed[0], role)
        if all(map(is_message, parsed)):
            return parsed
        known = [
            isinstance(b, str) or {"type", "text"} & Fields(b).names.keys()
            for b in parsed
        ]
        if not text and all(known):
            return [{"role": role, "content": parsed}]
    if isinstance(parsed, dict):
        fields = Fields(parsed)
        if is_message(parsed):
            return [parsed]
        if not text and {"content", "parts"} & parsed.keys():
            return [{"role": role, **parsed}]
        known = role == "user" and (not text or fields.get(*N.chat))
        if inner := chat_in(fields) if known else []:
            return inner
    return [{"role": role, "content": as_text(value)}]


def chat_in(fields: Fields) -> list:
    """List the messages of a request's body, the system's prompt first."""
    order, given = fields.get("instruction"), fields.get("input")
    if isinstance(order, str) and isinstance(given, str):  # Alpaca's rows
        chat = [{"role": "user", "content": f"{order}\n\n{given}"}]
    else:
        chat = raws(fields.get(*N.chat, *N.weak_chat))
    return [*raws(fields.get(*N.system), "system"), *chat] if chat else []


def replies_in(got: Any) -> tuple[list[list], list, list]:
    """List the replies of a response, each as its messages, and why each ended.

    The third list is what stands before the reply, where the response is a whole chat.
    """
    parsed = decoded(got)
    body = Fields(parsed)
    if isinstance(got, str) and not {"choices", "generations"} & body.names.keys():
        body = Fields(None)  # JSON of a product is text
    for name in ("choices", "generations"):
        if isinstance(body.record.get(name), list):
            return *_from_choices(body.record[name]), []
    end = Fields(body.get("incomplete_details")).get("reason")
    end = end or body.get(*N.finish)
    whole = is_message(body.record) or body.get("content")
    if inner := None if whole else body.get(*N.reply, *N.weak_reply, "messages"):
        replies, ends, before = replies_in(inner)
        return replies, ends if any(ends) else [end], before
    said = [] if body.record.get("output") == [] else raws(got, "assistant")
    ends = [end or Fields(raw).get(*N.finish) for raw in said]
    roles = [messages(raw, "assistant")[0]["role"] for raw in said]
    whole = all("role" in _unwrapped(raw) for raw in said)  # no items of Responses
    if whole and {"user", "system", "tool"} & set(roles):
        last = max((i for i, r in enumerate(roles) if r == "assistant"), default=None)
        if last is not None:
            return [said[last:]], ends[last:], said[:last]
        return [], [], said
    if all(isinstance(m, dict) and "role" in m and "type" not in m for m in said):
        return [[raw] for raw in said], ends, []
    return [said], ends, []


def _from_choices(given: list) -> tuple[list[list], list]:
    replies, ends = [], []
    for one in filter(None, given):
        one = one[0] if isinstance(one, list) else one  # LangChain's batch of one
        message = one.get("message") or one.get("delta")
        if not isinstance(message, dict):
            message = {"content": message or one.get("text") or ""}
        told = Fields(one.get("generation_info"))  # LangChain's
        replies.append([message])
        ends.append(Fields(one).get(*N.finish) or told.get(*N.finish))
    return replies, ends
