"""A server on loopback that answers as OpenAI's and Anthropic's APIs, from a script.

`replies.jsonl` has the body of each API's reply, and the events of the same reply as a
stream; TEXT and MODEL stand for what a script fills in.
"""

import gzip
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LINES = Path(__file__).with_name("replies.jsonl").read_text().splitlines()
REPLIES = [json.loads(line) for line in LINES]
PATHS = list(dict.fromkeys(reply["path"] for reply in REPLIES))
CHAT = "/chat/completions"


def filled(kind, path, text, model):
    """List an API's body, or its events, with this text."""
    found = json.dumps([r[kind] for r in REPLIES if r["path"] == path and kind in r])
    found = found.replace('"TEXT"', json.dumps(text))
    return json.loads(found.replace('"MODEL"', json.dumps(model)))


def completion(text, finish_reason="stop", **usage):
    """The body of a chat completion as OpenAI's API sends it."""
    (body,) = filled("body", CHAT, text, "test-model")
    body["choices"][0]["finish_reason"] = finish_reason
    body["usage"] |= usage
    return body


def streamed(text, path=CHAT, model="test-model"):
    """A reply as a stream of server-sent events."""
    sent = ""
    for event in filled("event", path, text, model):
        if "type" in event:
            sent += f"event: {event['type']}\n"
        sent += f"data: {json.dumps(event)}\n\n"
    end = "data: [DONE]\n\n" if path.endswith("completions") else ""
    return (sent + end).encode()


class ChatServer(ThreadingHTTPServer):
    """Answers POST to the four addresses of `PATHS`; keeps what it was asked.

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


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        data = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(data) if data[:1] == b"{" else {}
        server.requests.append(request)
        server.keys.append(self.headers.get("Authorization"))
        entry = server.script.pop(0) if len(server.script) > 1 else server.script[0]
        if isinstance(entry, float):
            time.sleep(entry)
            entry = "late"
        asked = self.path.partition("?")[0]
        path = next((path for path in PATHS if asked.endswith(path)), None)
        if path is None:
            entry = 404
        status = entry if isinstance(entry, int) else 200
        if status != 200:
            entry = {"error": {"message": f"status {status}", "type": "test"}}
        elif isinstance(entry, str) and request.get("stream"):
            entry = streamed(entry, path, request["model"])
        elif isinstance(entry, str):
            (entry,) = filled("body", path, entry, request["model"])
        self._send(status, entry)

    def _send(self, status, body):
        pieces = [json.dumps(body).encode()] if isinstance(body, dict) else body
        pieces = [body] if isinstance(body, bytes) else pieces
        kind = "text/event-stream" if b"data:" in pieces[0][:99] else "application/json"
        kind = "text/html" if pieces[0][:1] == b"<" else kind
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if self.server.zipped:
            pieces = [gzip.compress(pieces[0])]
            self.send_header("Content-Encoding", "gzip")
        if len(pieces) == 1:
            self.send_header("Content-Length", str(len(pieces[0])))
        self.end_headers()
        for piece in pieces:
            if isinstance(piece, threading.Event):
                piece.wait(10)
            else:
                self.wfile.write(piece)

    def log_message(self, *_):
        pass
