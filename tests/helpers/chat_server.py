"""A chat-completions server on loopback that answers from a script."""

import json
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class ChatServer(ThreadingHTTPServer):
    """Answers POST /v1/chat/completions from a script; keeps what it was asked.

    A script entry is a text (a completion), a status number, a dictionary (the whole
    body), bytes (a body that is no JSON), or a number of seconds to be silent for.
    The last entry repeats.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.requests, self.keys = ["hello"], [], []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that gave up waiting is part of the tests: say nothing."""

    def next_entry(self):
        return self.script.pop(0) if len(self.script) > 1 else self.script[0]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        request = json.loads(self.rfile.read(length))
        self.server.requests.append(request)
        self.server.keys.append(self.headers.get("Authorization"))
        entry = self.server.next_entry()
        if isinstance(entry, float):
            time.sleep(entry)
            entry = "late"
        if self.path != "/v1/chat/completions":
            entry = 404
        if isinstance(entry, int):
            self._send(entry, {"error": {"message": f"status {entry}", "type": "test"}})
        elif isinstance(entry, str):
            self._send(200, completion(entry, request["model"]))
        else:
            self._send(200, entry)

    def _send(self, status, body):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

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
