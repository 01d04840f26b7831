"""A hub in the tests' own process: the parts of its API that huggingface_hub calls to make a
repository and to fill it. What arrives is kept in a directory per repository.
"""

import base64
import hashlib
import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

Reply = tuple[int, Any]
TOKEN = "hf_aGoodTokenOfTheTests123456789"


class Hub:
    """Attributes:
    root: OWNER/NAME below it are the repositories. large: endings of files that are sent as large
        ones. heard: method and path of every request. fault: status of the answer to a request
        instead, None to answer it; 0 hangs up. visibility: of the repositories that were made.
    """

    def __init__(self, root: Path, large: tuple[str, ...]) -> None:
        self.root, self.large = root, large
        self.heard: list[str] = []
        self.visibility: dict[str, str] = {}
        self.fault: Callable[[str], int | None] = lambda request: None
        self._objects = root / ".objects"
        self._objects.mkdir(parents=True)
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size) if size else self._chunks()
                path = urllib.parse.urlsplit(self.path).path
                request = f"{self.command} {path}"
                hub.heard.append(request)
                status = hub.fault(request)
                if status == 0:
                    self.close_connection = True
                    return
                if status is not None:
                    found: Reply = (status, {"error": "as the test wants it"})
                elif "/lfs-object/" not in path and not hub.knows(self.headers):
                    found = (401, {"error": "Invalid username or password."})
                else:
                    found = hub.reply(self.command, path, body, hub.address(self.headers))
                text = json.dumps(found[1]).encode()
                self.send_response(found[0])
                if found[0] == 404:
                    self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def _chunks(self) -> bytes:
                if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
                    return b""
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_POST = do_PUT = answer

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def knows(self, headers: Any) -> bool:
        return bool(headers.get("Authorization") == f"Bearer {TOKEN}")

    def address(self, headers: Any) -> str:
        return f"http://{headers['Host']}"

    def files(self, repository: str) -> dict[str, bytes]:
        folder = self.root / repository
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def put(self, repository: str, name: str, content: bytes) -> None:
        path = self.root / repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def reply(self, method: str, path: str, body: bytes, address: str) -> Reply:
        if path == "/api/whoami-v2":
            return 200, {"name": "tester", "type": "user", "orgs": []}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return self._create(json.loads(body), address)
        if found := re.fullmatch(r"/lfs-object/(\w+)", path):
            assert hashlib.sha256(body).hexdigest() == found[1]
            (self._objects / found[1]).write_bytes(body)
            return 200, {}
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return 200, {"objects": [self._wanted(o, address) for o in json.loads(body)["objects"]]}
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(\w+)/main)?(?:/revision/main)?", path)
        if found is None or not (self.root / found[1]).is_dir():
            return 404, {"error": "Repository not found"}
        if found[2] == "tree":
            return 200, self._tree(found[1])
        if found[2] == "preupload":
            return 200, {
                "files": [self._mode(found[1], f["path"]) for f in json.loads(body)["files"]]
            }
        if found[2] == "commit":
            return self._commit(found[1], body, address)
        return 200, {"id": found[1], "sha": "0" * 40, "siblings": []}

    def _create(self, asked: dict[str, Any], address: str) -> Reply:
        name = f"{asked['organization'] or 'tester'}/{asked['name']}"
        if (self.root / name).is_dir():
            return 409, {"error": "You already created this model repo", "url": f"{address}/{name}"}
        self.put(name, ".gitattributes", b"*.safetensors filter=lfs\n")
        private = asked.get("private", asked.get("visibility") == "private")
        self.visibility[name] = "private" if private else "public"
        return 200, {"url": f"{address}/{name}", "id": name, "name": name}

    def _wanted(self, file: dict[str, Any], address: str) -> dict[str, Any]:
        if (self._objects / file["oid"]).exists():
            return file
        return {**file, "actions": {"upload": {"href": f"{address}/lfs-object/{file['oid']}"}}}

    def _mode(self, repository: str, path: str) -> dict[str, Any]:
        there = self.root / repository / path
        mode = "lfs" if path.endswith(self.large) else "regular"
        oid = self._id(there.read_bytes(), mode == "lfs") if there.is_file() else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _id(self, content: bytes, is_large: bool) -> str:
        """Git's, or the large file's sha256."""
        if is_large:
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _tree(self, repository: str) -> list[dict[str, Any]]:
        listed = []
        for path, content in self.files(repository).items():
            large = path.endswith(self.large)
            entry = {
                "type": "file",
                "path": path,
                "size": len(content),
                "oid": self._id(content, False),
            }
            lfs = {"oid": self._id(content, True), "size": len(content), "pointerSize": 134}
            listed.append({**entry, "lfs": lfs} if large else entry)
        return listed

    def _commit(self, repository: str, body: bytes, address: str) -> Reply:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                self.put(repository, value["path"], base64.b64decode(value["content"]))
            elif entry["key"] == "lfsFile":
                self.put(repository, value["path"], (self._objects / value["oid"]).read_bytes())
        oid = hashlib.sha1(body).hexdigest()
        return 200, {"commitUrl": f"{address}/{repository}/commit/{oid}", "commitOid": oid}


@contextmanager
def serving_hub(root: Path, large: tuple[str, ...] = (".safetensors",)) -> Iterator[Hub]:
    hub = Hub(root, large)
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
