"""A server on loopback that answers as OpenAI's and Anthropic's APIs, from a script."""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer(ThreadingHTTPServer):
    """Answers POST to the four addresses of `BODIES`; keeps what it was asked.

    A script entry is a text (a reply, streamed if asked for), a status number, a
    dictionary (the whole body), bytes (any body), a list of bytes sent one by one with
    an Event to wait for between them, or a number of seconds to be silent for. The
    last entry repeats.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.requests, self.keys = ["hello"], [], []
        self.zipped = False
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of the tests: say nothing."""

    def next_entry(self):
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        data = self.rfile.read(length)
        request = json.loads(data) if data[:1] == b"{" else {}
        self.server.requests.append(request)
        self.server.keys.append(self.headers.get("Authorization"))
        entry = self.server.next_entry()
        if isinstance(entry, float):
            time.sleep(entry)
            entry = "late"
        path = self.path.partition("?")[0]
        body = next((make for end, make in BODIES.items() if path.endswith(end)), None)
        if body is None:
            entry = 404
        if isinstance(entry, int):
            self._send(entry, {"error": {"message": f"status {entry}", "type": "test"}})
        elif isinstance(entry, str) and request.get("stream"):
            self._send(200, streamed(body(entry, request["model"])))
        elif isinstance(entry, str):
            self._send(200, body(entry, request["model"]))
        else:
            self._send(200, entry)

    def _send(self, status, body):
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        if self.server.zipped:
            body = gzip.compress(body)
        self.send_response(status)
        starts = body if isinstance(body, bytes) else body[0]
        kind = "text/event-stream" if b"data:" in starts[:99] else "application/json"
        kind = "text/html" if starts[:1] == b"<" else kind
        self.send_header("Content-Type", kind)
        if self.server.zipped:
            self.send_header("Content-Encoding", "gzip")
        if isinstance(body, bytes):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        for piece in [body] if isinstance(body, bytes) else body:
            if isinstance(piece, threading.Event):
                piece.wait(10)
            else:
                self.wfile.write(piece)

    def log_message(self, *_):
        pass


def completion(text, model="test-model", finish_reason="stop", **usage):
    """The body of a chat completion as OpenAI's API sends it."""
    message = {"role": "assistant", "content": text, "refusal": None}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18} | usage
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_780_000_000,
        "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
        "usage": usage,
    }


def legacy(text, model):
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    kind = {"id": "cmpl-1", "object": "text_completion"}
    return completion(text, model) | kind | {"choices": [choice]}


def response(text, model):
    """The body of the Responses API."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"type": "message", "id": "msg-1", "role": "assistant", "content": [part]}
    details = {"input_tokens_details": {"cached_tokens": 0}}
    details |= {"output_tokens_details": {"reasoning_tokens": 0}}
    usage = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
    return {
        "id": "resp-1",
        "object": "response",
        "created_at": 1_780_000_000,
        "model": model,
        "status": "completed",
        "output": [item | {"status": "completed"}],
        "usage": usage | details,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
    }


def message(text, model):
    """The body of Anthropic's Messages API."""
    return {
        "id": "msg-1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 11, "output_tokens": 7},
    }


BODIES = {"/chat/completions": completion, "/responses": response}
BODIES |= {"/completions": legacy, "/v1/messages": message}


def streamed(body):
    """The same reply as a stream of server-sent events."""
    kind = body.get("object", body.get("type"))
    if kind == "response":
        item = body["output"][0]
        at = {"output_index": 0, "content_index": 0, "item_id": item["id"]}
        part, text = item["content"][0], item["content"][0]["text"]
        begun = {"status": "in_progress", "output": [], "usage": None}
        events = [
            {"type": "response.created", "response": body | begun},
            {"type": "response.output_item.added", "item": item | {"content": []}} | at,
            {"type": "response.content_part.added", "part": part | {"text": ""}} | at,
            {"type": "response.output_text.delta", "delta": text, "logprobs": []} | at,
            {"type": "response.completed", "response": body},
        ]
        events = [e | {"sequence_number": n} for n, e in enumerate(events)]
    elif kind == "message":
        block, end = body["content"][0], {"stop_reason": body["stop_reason"]}
        delta = {"type": "text_delta", "text": block["text"]}
        events = [
            {"type": "message_start", "message": body | {"content": []}},
            {"type": "content_block_start", "content_block": block | {"text": ""}},
            {"type": "content_block_delta", "delta": delta},
            {"type": "content_block_stop"},
            {"type": "message_delta", "delta": end, "usage": {"output_tokens": 7}},
            {"type": "message_stop"},
        ]
        events = [e | {"index": 0} for e in events]
    else:
        choice = body["choices"][0]
        head = body | {"usage": None}
        said, last = {"text": choice.get("text")}, {"text": ""}
        if kind == "chat.completion":
            head["object"] = "chat.completion.chunk"
            said, last = {"delta": choice["message"]}, {"delta": {}}
        parts = [said | {"finish_reason": None}, last | {"finish_reason": "stop"}]
        events = [head | {"choices": [{"index": 0} | part]} for part in parts]
        events.append(body | {"object": head["object"], "choices": []})
    names = "event: {}\n" if kind in ("response", "message") else ""
    data = [f"{names.format(e.get('type'))}data: {json.dumps(e)}\n\n" for e in events]
    end = [] if kind in ("response", "message") else ["data: [DONE]\n\n"]
    return "".join(data + end).encode()
