"""A vLLM server as far as adapters and their clients can tell: real HTTP on a loopback address, no model."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class FakeVllm:
    """Lists, loads and unloads adapters and answers completions. Adapters die with `stop`, as with the process of a real one.

    `log` keeps what was asked: ("load", name), ("unload", name), ("complete", name). `fail_with` is the status of every answer,
    `ends` are the reasons why the next completions end (else "length").
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0, adapters: tuple[str, ...] = ()) -> None:
        self.host = host
        self.port = port
        self.adapters = list(adapters)
        self.log: list[tuple[str, str]] = []
        self.fail_with: int | None = None
        self.ends: list[str] = []
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def start(self) -> FakeVllm:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *args: Any) -> None:
                """Silence."""

            def do_GET(self) -> None:
                self._answer(*fake.get(self.path))

            def do_POST(self) -> None:
                self._answer(*fake.post(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

            def _answer(self, status: int, document: Any) -> None:
                body = json.dumps(document).encode()
                self.send_response(fake.fail_with or status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        self._server = Server((self.host, self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
            self.adapters = []

    def get(self, path: str) -> tuple[int, Any]:
        if path == "/health":
            return 200, {}
        names = [{"id": "base", "parent": None}, *({"id": name, "parent": "base"} for name in self.adapters)]
        return (200, {"data": names}) if path == "/v1/models" else (404, {"error": {"message": path}})

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/v1/load_lora_adapter":
            assert (Path(body["lora_path"]) / "adapter_model.safetensors").is_file()
            self.log.append(("load", body["lora_name"]))
            self.adapters.append(body["lora_name"])
            return 200, {}
        if path == "/v1/unload_lora_adapter":
            self.log.append(("unload", body["lora_name"]))
            self.adapters.remove(body["lora_name"])
            return 200, {}
        if body["model"] not in ["base", *self.adapters]:
            return 404, {"error": {"message": f"The model `{body['model']}` does not exist."}}
        self.log.append(("complete", body["model"]))
        asked = body.get("logprob_token_ids", [2])
        choice: dict[str, Any] = {
            "finish_reason": self.ends.pop() if self.ends else "length",
            "token_ids": [3],
            "logprobs": {"token_logprobs": [0.0], "top_logprobs": [dict.fromkeys(map("token_id:{}".format, asked), 0.0)]},
        }
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [None, *({str(token): {"logprob": 0.0}} for token in body["prompt"][1:])]
        return 200, {"choices": [{**choice, "index": index} for index in range(body.get("n", 1))]}
