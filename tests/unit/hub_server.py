"""A small server on this machine that speaks the hub's endpoints, for reading and for publishing."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUGE = 30 << 30
"""Bytes that a file is said to have; the server never sends them."""


class Hub:
    """Models by id, each with the bytes of its files; what was asked for.

    Attributes:
        models: files by the name of the model.
        asked: paths of all requests.
        private: ids of models that only their owner sees.
        token: the login that may write; a request with another one is refused.
    """

    token = "hf_writes"

    def __init__(self, models: dict[str, dict[str, bytes | None]]):
        self.models, self.asked, self.private = models, [], set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path).strip("/")
        if request.command == "POST":
            self.asked.append(path)
            return self._send(request, *self._written(request, path))
        is_api, path = path.startswith("api/models/"), path.removeprefix("api/models/")
        model = next((name for name in self.models if path == name or path.startswith(f"{name}/")), None)
        what, _, rest = path.removeprefix(model or "").strip("/").partition("/")
        self.asked.append(path)
        if model is None:
            return self._send(request, 401 if is_api else 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if "no-such-branch" in rest:
            return self._send(request, 404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = self.models[model]
        if is_api and what == "tree":
            rows = [
                {"type": "file", "path": name, "oid": "0" * 40, "size": HUGE if data is None else len(data)}
                for name, data in files.items()
            ]
            return self._send(request, 200, json.dumps(rows).encode())
        if is_api:
            siblings = [{"rfilename": name} for name in files]
            told = {"id": model, "modelId": model, "sha": COMMIT, "siblings": siblings}
            told["private"] = model in self.private
            return self._send(request, 200, json.dumps({**told, "tags": [], "downloads": 0}).encode())
        if model.endswith("gated"):
            return self._send(request, 401, b"{}", {"X-Error-Code": "GatedRepo"})
        data = files[rest.partition("/")[2]]
        assert data is not None, f"{path} is large and was fetched"
        etag = hashlib.sha256(data).hexdigest()
        return self._send(request, 200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})

    def _written(self, request: BaseHTTPRequestHandler, path: str) -> tuple[int, bytes]:
        """Makes a repository, or takes a commit of files that are sent with it; status and answer."""
        data = request.rfile.read(int(request.headers["Content-Length"]))
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return 401, b'{"error": "Invalid credentials"}'
        name = path.removeprefix("api/models/").rpartition("/")[0].rpartition("/")[0]
        if path == "api/repos/create":
            asked = json.loads(data)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            if name in self.models:
                return 409, json.dumps({"error": "exists", "url": f"{self.address}/{name}"}).encode()
            self.models[name] = {}
            self.private |= {name} if asked.get("private") else set()
            answer: dict = {"url": f"{self.address}/{name}"}
        elif path == "api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        elif "/preupload/" in path:
            files = [file["path"] for file in json.loads(data)["files"]]
            how = {"uploadMode": "regular", "shouldIgnore": False}
            answer = {"files": [{"path": file, **how} for file in files]}
        else:
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    self.models[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {
                "success": True,
                "commitOid": COMMIT,
                "commitUrl": f"{self.address}/{name}/commit/{COMMIT}",
            }
        return 200, json.dumps(answer).encode()

    @staticmethod
    def _send(request, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        request.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(data)
