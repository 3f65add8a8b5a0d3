"""vLLM's completions API in a thread, with every way to fail: what a served teacher is tested against."""

from __future__ import annotations

import copy
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["_Handler", dict[str, Any]], None]  # given the good answer, does something else with it


def logprob(ids: Sequence[int], place: int) -> float:
    """The stub's log-prob of ids[place]: depends on the token, the one before it and the place, so a shift is seen."""
    return -(ids[place] % 97 + 1) / 16 - (ids[place - 1] % 89) / 128 - place / 1024


def expected(prompt: Sequence[int], response: Sequence[int]) -> list[float]:
    ids = [*prompt, *response]
    return [logprob(ids, place) for place in range(len(prompt), len(ids))]


class StubTeacher:
    """A server on 127.0.0.1. As a context manager it is started and stopped.

    score: (ids, place) -> log-prob. models: what /v1/models lists. key: what a client must send. splits: what /tokenize
    answers, None for a server without it. faults: for the next completions, one each; None in it is a good answer.
    always: for all completions after those. seconds: how long each completion takes. limit: tokens of a sequence, as
    /v1/models says. listed: what answers /v1/models in the place of that.
    """

    def __init__(
        self,
        score: Callable[[Sequence[int], int], float] = logprob,
        models: Sequence[str] = ("stub",),
        key: str | None = None,
        splits: Callable[[str], list[int]] | None = None,
        faults: Sequence[Fault | None] = (),
        always: Fault | None = None,
        seconds: float = 0.0,
        port: int = 0,
        limit: int | None = None,
    ) -> None:
        self.score, self.models, self.key, self.splits, self.seconds = score, models, key, splits, seconds
        self.limit = limit
        self.listed: Callable[[Any], None] | None = None
        self.faults, self.always = list(faults), always
        self.bodies: list[dict[str, Any]] = []  # of every completion that was asked for
        self.times: list[float] = []
        self.busy = self.most_busy = self.connections = 0
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.stub = self
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> StubTeacher:
        threading.Thread(target=self._server.serve_forever, args=(0.005,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Gone: nothing listens, and connections that are open are answered no more."""
        if not self.stopped.is_set():
            self.stopped.set()
            self._server.shutdown()
            self._server.server_close()

    def may_answer(self, handler: _Handler) -> bool:
        """Whether it is still there and the key is right; if not, that is the answer."""
        if self.stopped.is_set():
            handler.cut()
            return False
        if self.key is not None and handler.headers["Authorization"] != f"Bearer {self.key}":
            handler.send(401, {"error": {"message": f"bad key: {handler.headers['Authorization']}"}})
            return False
        return True

    def answer(self, ids: Sequence[int]) -> dict[str, Any]:
        """What vLLM answers for max_tokens 1 and prompt_logprobs 0."""
        rows: list[Any] = [None]
        for place in range(1, len(ids)):
            value = self.score(ids, place)
            rows.append({str(ids[place]): {"logprob": value, "rank": 1, "decoded_token": "x"}})
        choice = {"index": 0, "text": "x", "finish_reason": "length", "prompt_logprobs": rows}
        return {"object": "text_completion", "model": self.models[0], "choices": [choice]}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    stub: StubTeacher

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # clients that went away are part of the tests


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.stub.lock:
            self.server.stub.connections += 1

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        stub = self.server.stub
        if stub.may_answer(self):
            if stub.listed is not None:
                stub.listed(self)
                return
            limit = {} if stub.limit is None else {"max_model_len": stub.limit}
            self.send(
                200, {"object": "list", "data": [{"id": name, "object": "model"} | limit for name in stub.models]}
            )

    def do_POST(self) -> None:
        stub = self.server.stub
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not stub.may_answer(self):
            return
        if self.path == "/tokenize":
            if stub.splits is None:
                self.send(404, {"detail": "Not Found"})
            else:
                self.send(200, {"tokens": stub.splits(body["prompt"])})
            return
        with stub.lock:
            stub.bodies.append(body)
            stub.times.append(time.monotonic())
            fault = stub.faults.pop(0) if stub.faults else stub.always
            stub.busy += 1
            stub.most_busy = max(stub.busy, stub.most_busy)
        try:
            stub.stopped.wait(stub.seconds)
            good = stub.answer(body["prompt"])
        finally:
            with stub.lock:  # before the answer is sent: the client asks for the next at once
                stub.busy -= 1
        if fault is None:
            self.send(200, good)
        else:
            fault(self, good)

    def send(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        self.send_bytes(status, json.dumps(body).encode(), headers)

    def send_bytes(
        self, status: int, data: bytes, headers: Mapping[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def cut(self, reset: bool = False) -> None:
        """Close the connection; with `reset` as a crash does it."""
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True


# --- faults


def status(code: int, message: str = "trouble", **headers: str) -> Fault:
    """An HTTP status with vLLM's body; Retry_After="1" becomes the header Retry-After."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, good: handler.send(code, {"error": {"message": message, "code": code}}, named)


def reset(handler: _Handler, good: dict[str, Any]) -> None:
    """The connection breaks in the middle of the answer."""
    data = json.dumps(good).encode()
    handler.send_bytes(200, data[: len(data) // 2], length=len(data))
    handler.cut(reset=True)


def truncated(handler: _Handler, good: dict[str, Any]) -> None:
    """A whole HTTP answer whose JSON ends in the middle."""
    data = json.dumps(good).encode()
    handler.send_bytes(200, data[: len(data) // 2])


def hung(handler: _Handler, good: dict[str, Any]) -> None:
    """No answer until the server stops."""
    handler.server.stub.stopped.wait(30)
    handler.cut()


def trickling(handler: _Handler, good: dict[str, Any]) -> None:
    """A byte now and then: no single read is late, and the whole never comes."""
    data = json.dumps(good).encode()
    handler.send_bytes(200, b"", length=len(data))
    for byte in data:
        if handler.server.stub.stopped.wait(0.02):
            return
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()


def edited(edit: Callable[[dict[str, Any]], Any]) -> Fault:
    """The good answer after `edit(choice)` has changed its only choice in place."""

    def fault(handler: _Handler, good: dict[str, Any]) -> None:
        answer = copy.deepcopy(good)
        edit(answer["choices"][0])
        handler.send(200, answer)

    return fault


def raw(body: Any) -> Fault:
    """Another JSON altogether."""
    return lambda handler, good: handler.send(200, body)
