"""Streams put together: chat chunks, Responses events, Anthropic events, raw SSE."""

import re
from typing import Any

from utils.logs.importers.values import Fields, as_text, decoded, present


def events(raw: Any) -> list[dict]:
    """List a stream's events, be they parsed, lines of text or the text as sent."""
    found = []
    for line in re.split(r"[\r\n]+", raw) if isinstance(raw, str) else raw:
        if isinstance(line, str):
            line = decoded(line.strip().removeprefix("data:").strip())
        if isinstance(line, dict) and "data" in line and "choices" not in line:
            line = decoded(line["data"])  # beside the event's name
        if isinstance(line, dict):
            found.append(line)
    return found


def whole(got: Any) -> Any:
    """Give a logged response as one body; what is no stream comes back as it is."""
    if isinstance(got, str) and not re.search(r"(?m)^data: ?[{\[]", got):
        return decoded(got) if got.lstrip()[:1] in ("{", "[") else got
    if isinstance(got, dict):
        held = (got[k] for k in ("streamed_data", "chunks", "events") if k in got)
        inner = None if "choices" in got else whole(next(held, None))
        return inner if isinstance(inner, dict) else got
    found = events(got) if isinstance(got, str | list) else []
    kinds = {str(event.get("type", "")) for event in found}
    if any(kind.startswith("response.") for kind in kinds):
        return joined_events(found)
    if kinds & {"message_start", "content_block_start", "content_block_delta"}:
        return joined_blocks(found)
    parts = [choice for event in found for choice in event.get("choices") or []]
    if any("delta" in part or "text" in part for part in parts):
        return joined(found)
    return got


def joined(chunks: list[dict] | str) -> dict:
    """Make one chat completion of the chunks of its stream.

    Chunks may lack choices, deltas or indices and hold nulls; refusals, custom tools
    and the older `function_call` are put together as the API gives them whole.
    """
    body: dict = {}
    choices: dict[int, dict] = {}
    for chunk in events(chunks):
        keys = ("id", "model", "created", "usage", "service_tier", "error")
        groq = Fields(chunk.get("x_groq")).get("usage")
        body |= {"usage": groq} if groq else {}
        body |= {key: chunk[key] for key in keys if chunk.get(key)}
        for part in chunk.get("choices") or []:
            message = {"role": "assistant", "content": "", "tool_calls": {}}
            new = {"index": part.get("index") or 0, "message": message}
            choice = choices.setdefault(new["index"], new | {"finish_reason": None})
            message = choice["message"]
            delta = {"content": part.get("text"), **(part.get("delta") or {})}
            for key in ("content", "refusal"):
                if delta.get(key):
                    message[key] = message.get(key, "") + delta[key]
            pieces = delta.get("tool_calls") or []
            if delta.get("function_call"):
                pieces = [{"index": "old", "function": delta["function_call"]}]
            for piece in pieces:
                _add_call(message["tool_calls"], piece)
            choice["finish_reason"] = (
                part.get("finish_reason") or choice["finish_reason"]
            )
    for choice in choices.values():
        choice["message"]["tool_calls"] = list(choice["message"]["tool_calls"].values())
    return body | {"choices": list(choices.values())}


def _add_call(calls: dict, piece: dict) -> None:
    """Add a piece to its call. A new id is a new call, whatever number it has."""
    key, last = piece.get("index"), next(reversed(calls), None)
    if piece.get("id") and (key is None or calls.get(key, piece)["id"] != piece["id"]):
        key = piece["id"]
    elif key is None or (key == 0 and isinstance(last, str)):
        key = last  # servers that number nothing, or give every call the number 0
    call = calls.setdefault(key, {"id": None, "type": "function"})
    call["id"] = piece.get("id") or call["id"]
    if piece.get("custom"):
        call["type"] = "custom"
    text = "input" if call["type"] == "custom" else "arguments"
    inner = call.setdefault(call["type"], {"name": "", text: ""})
    given = piece.get(call["type"]) or {}
    if given.get("name") and given["name"] != inner["name"]:  # some send it again
        inner["name"] += given["name"]
    inner[text] += as_text(given.get(text))


def joined_events(found: list[dict] | str) -> dict:
    """Make one response of the events of a Responses stream.

    A stream that ended early is put together from its pieces, its status `incomplete`.
    """
    body: dict = {"object": "response", "status": "incomplete"}
    items: dict[Any, dict] = {}
    for event in events(found):
        kind = str(event.get("type"))
        body |= present(event.get("response") or {})
        where = event.get("output_index", event.get("item_id"))
        item = items.setdefault(where, {"type": "message", "role": "assistant"})
        if kind in ("response.output_item.added", "response.output_item.done"):
            items[where] = dict(event["item"])
        elif kind.endswith(("arguments.delta", "input.delta")):
            key = "input" if "input" in kind else "arguments"
            item[key] = as_text(item.get(key)) + event["delta"]
        elif kind.endswith(("output_text.delta", "refusal.delta")):
            key = "refusal" if "refusal" in kind else "text"
            part = (item.get("content") or [{"type": key, key: ""}])[-1]
            item["content"] = [part | {key: as_text(part.get(key)) + event["delta"]}]
        elif kind == "error":
            body["error"] = event.get("error") or event
    if body["status"] not in ("completed", "failed", "cancelled"):
        body["status"] = "incomplete"
    useful = ("content", "arguments", "input", "id")
    pieces = [i for i in items.values() if any(key in i for key in useful)]
    return body | {"output": body.get("output") or pieces}


def joined_blocks(found: list[dict] | str) -> dict:
    """Make one message of the events of Anthropic's stream."""
    body: dict = {"type": "message", "role": "assistant"}
    blocks: dict[Any, dict] = {}
    for event in events(found):
        kind, delta = event.get("type"), event.get("delta") or {}
        if kind == "message_start":
            body |= event["message"]
        elif kind == "content_block_start":
            blocks[event.get("index")] = dict(event["content_block"])
        elif kind == "content_block_delta":
            block = blocks.setdefault(event.get("index"), {"type": "text"})
            if "text" in delta:
                block["text"] = as_text(block.get("text")) + delta["text"]
            elif "partial_json" in delta:
                before = block.get("input") or ""
                block["input"] = as_text(before) + delta["partial_json"]
        elif kind == "message_delta":
            body |= present(delta)
            body["usage"] = {**(body.get("usage") or {}), **(event.get("usage") or {})}
        elif kind == "error":
            body["error"] = event.get("error") or True
    return body | {"content": list(blocks.values())}
