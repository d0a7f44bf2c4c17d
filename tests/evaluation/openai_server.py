"""An OpenAI-compatible server on localhost that answers with a subject of ours and keeps what it is asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from glasshouse.corpora.rows import Turn


class Served:
    """A running server: `url` for clients, `asked` the messages of every request so far."""

    def __init__(self, subject: Any) -> None:
        self.subject, self.lock, self.asked = subject, threading.Lock(), []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def reply(self, request: dict[str, Any]) -> dict[str, Any]:
        turns = [Turn(one["role"], one["content"]) for one in request["messages"]]
        limit = request.get("max_completion_tokens") or request.get("max_tokens") or 32
        with self.lock:
            self.asked.append(request["messages"])
            [[one]] = self.subject.generate(
                [turns], max_new_tokens=limit, temperature=request.get("temperature") or 0.0
            )
        read = len(self.subject.encode(turns))
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": one.text},
            "finish_reason": "stop" if one.finished else "length",
        }
        if request.get("logprobs"):
            choice["logprobs"] = {"content": [self._position(turns, request["top_logprobs"])]}
        return {
            "id": "chatcmpl-0", "object": "chat.completion", "created": 0, "model": request["model"],
            "choices": [choice],
            "usage": {
                "prompt_tokens": read, "completion_tokens": len(one.ids), "total_tokens": read + len(one.ids),
            },
        }  # fmt: skip

    def _position(self, turns: list[Turn], k: int) -> dict[str, Any]:
        top = self.subject.logprobs([turns])[0].topk(k)
        entries = [
            {"token": self.subject.decode([token]), "logprob": value, "bytes": None}
            for token, value in zip(top.indices.tolist(), top.values.tolist(), strict=True)
        ]
        return {**entries[0], "top_logprobs": entries}


def _handler(served: Served) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"  # every request has a connection of its own, closed at its end

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = self.path == "/v1/chat/completions"
            body = json.dumps(
                served.reply(request) if found else {"error": {"message": "no such path"}}
            ).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


@contextmanager
def serving(subject: Any) -> Iterator[Served]:
    served = Served(subject)
    thread = threading.Thread(target=served.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.server.shutdown()
        served.server.server_close()
        thread.join()
