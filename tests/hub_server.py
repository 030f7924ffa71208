"""A Hugging Face hub of one process, for tests: what `huggingface_hub` asks of the real one to make a repository, to
commit to it and to fetch from it. Everything is held in memory.

Names that begin with "gone/" do not exist, with "gated/" ask for access, and with "broken/" answer 500.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"


class Hub(ThreadingHTTPServer):
    """The server; `files` are those of each (repository, revision), `asked` is the path of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str], dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def revision(self, repository: str, name: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit and the files of a branch or commit."""
        for (owner, branch), files in self.files.items():
            commit = hashlib.sha1(repr((owner, branch, sorted(files.items()))).encode()).hexdigest()
            if owner == repository and name in (branch, commit):
                return commit, files
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, content: object = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refused(self, repository: str) -> bool:
        """Whether the request was answered with an error, as the first part of the repository's name wants it."""
        kind = repository.partition("/")[0]
        if kind == "broken":
            self.answer(500, {"error": "down"})
        elif kind == "gated":
            self.answer(403, {"error": "ask"}, X_Error_Code="GatedRepo")
        elif kind == "gone" or repository not in {owner for owner, _ in self.server.files}:
            self.answer(404, {"error": "none"}, X_Error_Code="RepoNotFound")
        else:
            return False
        return True

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        repository = "/".join(parts[2:4] if api else parts[:2])
        if self.refused(repository):
            return
        verb, name = (parts[4], parts[5]) if api and len(parts) > 5 else ("resolve", parts[3]) if not api else ("", "")
        at = self.server.revision(repository, name or "main")
        if at is None:
            return self.answer(404, {"error": "none"}, X_Error_Code="RevisionNotFound")
        commit, files = at
        if not api:
            content = files.get("/".join(parts[4:]))
            if content is None:
                return self.answer(404, {"error": "none"}, X_Error_Code="EntryNotFound")
            return self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=commit)
        if verb == "tree":
            return self.answer(200, [{"type": "file", "path": path, "size": len(content),
                                      "oid": hashlib.sha1(content).hexdigest()} for path, content in files.items()])
        self.answer(200, {"_id": "1", "id": repository, "sha": commit, "private": self.server.private[repository],
                          "tags": [], "downloads": 0, "likes": 0, "siblings": [{"rfilename": path} for path in files]})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        self.server.asked.append(path)
        if path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(401, {"error": "Invalid token"})
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            if repository.startswith("other/"):
                return self.answer(403, {"error": "not yours"})
            if (repository, "main") in self.server.files:
                return self.answer(409, {"error": "there is one", "url": f"{self.server.address}/{repository}"})
            self.server.files[repository, "main"] = {}
            self.server.private[repository] = asked.get("private") or asked.get("visibility") == "private"
            return self.answer(200, {"url": f"{self.server.address}/{repository}"})
        parts = path.strip("/").split("/")
        repository, verb, branch = "/".join(parts[2:4]), parts[4], parts[5]
        if verb == "branch":
            self.server.files.setdefault((repository, branch), dict(self.server.files[repository, "main"]))
            return self.answer(200, {})
        if verb == "preupload":
            return self.answer(200, {"files": [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                                               for file in json.loads(body)["files"]]})
        assert verb == "commit", path
        files = self.server.files[repository, branch]
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del files[line["value"]["path"]]
        commit, _ = self.server.revision(repository, branch)
        self.answer(200, {"commitUrl": f"{self.server.address}/{repository}/commit/{commit}", "commitOid": commit})


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub while the block lasts."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()
