"""A server that speaks as much of the Hugging Face hub's API as huggingface_hub uses for models.

Repositories live in memory. Files can be cut off or replaced on their way, to test what clients do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 4096
"""Files of at least this many bytes are stored as large ones, with their SHA-256 as ETag."""
TOKEN = "hf_writes"
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Hub:
    """What the server holds, does and saw.

    Attributes:
        address: for HF_ENDPOINT.
        commits: by repository and commit: the files by path.
        heads: by repository: branches and tags.
        cut_after: by path: bytes of the file that are sent before the connection is closed, once.
        goes_away: answer with 503 after the first cut.
        sent_instead: other contents by path, sent under the ETag of the right ones.
        seen: method and path of each request, with its Range.
    """

    address: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    heads: dict[str, dict[str, str]] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    cut_after: dict[str, int] = field(default_factory=dict)
    sent_instead: dict[str, bytes] = field(default_factory=dict)
    private: dict[str, bool] = field(default_factory=dict)
    goes_away: bool = False
    is_away: bool = False
    seen: list[tuple[str, str, str]] = field(default_factory=list)

    def create(self, repository: str) -> None:
        """Make an empty repository if there is none of that name."""
        self.commits.setdefault(repository, {})
        self.heads.setdefault(repository, {})

    def commit(self, repository: str, files: Mapping[str, bytes], branch: str = "main") -> str:
        """Add files to a branch, and return the commit."""
        self.create(repository)
        before = self.commits[repository].get(self.heads[repository].get(branch, ""), {})
        after = {**before, **files}
        name = hashlib.sha1(repr((sorted(after), len(self.commits[repository]))).encode())
        self.commits[repository][name.hexdigest()] = after
        self.heads[repository][branch] = name.hexdigest()
        return name.hexdigest()

    def etag(self, data: bytes) -> str:
        """Return the hash that names a file."""
        if len(data) >= LARGE:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def env(self, cache: Any) -> dict[str, str]:
        """Return the variables for a client with a cache of its own."""
        own = {"HF_ENDPOINT": self.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
        return {**own, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Print nothing."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.seen.append((self.command, path, self.headers.get("Range", "")))
        if self.hub.is_away:
            self._json({"error": "away"}, 503)
            return
        reads = self.command in ("GET", "HEAD")
        may_write = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if not reads and self.command == "POST" and not may_write:
            self._json({"error": "Invalid credentials"}, 401)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(found[1], found[2] or "main")
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?.*", path):
            files = self._files(found[1], found[2])
            if files is not None:
                self._json([self._entry(*each) for each in files[1].items()])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(*found.groups())
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}"
            self.hub.private.setdefault(name, wanted.get("visibility") == "private")
            self.hub.create(name)
            self._json({"url": f"{self.hub.address}/{name}", "name": name, "id": name})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/(.+)", path):
            self._json({"files": [self._mode(each) for each in json.loads(body)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            self._json(self._batch(json.loads(body)))
        elif found := re.fullmatch(r"/upload/([0-9a-f]{64})", path):
            right = hashlib.sha256(body).hexdigest() == found[1]
            self.hub.uploads[found[1]] = body
            self._json({}, 200 if right else 400)
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", path):
            self._commit(found[1], found[2], body)
        else:
            self._json({"error": f"the stand-in has no {path}"}, 404)

    def _files(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Return a commit and its files; answers with an error where there are none."""
        if repository not in self.hub.commits:
            self._error("RepoNotFound")
            return None
        commit = self.hub.heads[repository].get(revision, revision)
        files = self.hub.commits[repository].get(commit)
        if files is None and revision != "main":
            self._error("RevisionNotFound")
            return None
        return commit, files or {}

    def _info(self, repository: str, revision: str) -> None:
        found = self._files(repository, revision)
        if found is None:
            return
        siblings = [
            {"rfilename": path, "size": len(data), "blobId": self.hub.etag(data)}
            for path, data in found[1].items()
        ]
        self._json({"id": repository, "sha": found[0], "siblings": siblings, "private": False})

    def _entry(self, path: str, data: bytes) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "size": len(data), "oid": "0" * 40}
        if len(data) >= LARGE:
            return {
                **entry,
                "lfs": {"oid": self.hub.etag(data), "size": len(data), "pointerSize": 9},
            }
        return {**entry, "oid": self.hub.etag(data)}

    def _file(self, repository: str, revision: str, path: str) -> None:
        found = self._files(repository, revision)
        if found is None:
            return
        commit, files = found
        if path not in files:
            self._error("EntryNotFound", commit)
            return
        etag = self.hub.etag(files[path])
        data = self.hub.sent_instead.get(path, files[path])
        asked = _RANGE.fullmatch(self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        end = self.hub.cut_after.pop(path, None)
        self.wfile.write(data[start:end])
        if end is not None:
            self.hub.is_away = self.hub.goes_away
            self.close_connection = True

    def _mode(self, file: dict[str, Any]) -> dict[str, Any]:
        mode = "lfs" if file["size"] >= LARGE else "regular"
        return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}

    def _batch(self, wanted: dict[str, Any]) -> dict[str, Any]:
        objects: list[dict[str, Any]] = []
        for each in wanted["objects"]:
            entry = {"oid": each["oid"], "size": each["size"]}
            if each["oid"] not in self.hub.uploads:  # else it is there already
                href = f"{self.hub.address}/upload/{each['oid']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def _commit(self, repository: str, branch: str, body: bytes) -> None:
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        commit = self.hub.commit(repository, files, branch)
        url = f"{self.hub.address}/{repository}/commit/{commit}"
        self._json({"commitUrl": url, "commitOid": commit})

    def _error(self, code: str, commit: str | None = None) -> None:
        headers = {"X-Error-Code": code, **({"X-Repo-Commit": commit} if commit else {})}
        self._json({"error": code}, 404, headers)

    def _json(
        self, value: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def running_hub() -> Iterator[Hub]:
    """Run a hub on a free port of this machine."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        hub.address = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield hub
        server.shutdown()
        thread.join()
