"""A small server that speaks the part of the hub's API that a download uses, with its redirects and etags."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class StandIn:
    """One repository, and what shall go wrong."""

    repo_id: str
    files: dict[str, bytes]
    error_code: str = ""  # as in X-Error-Code
    cut_after: int = 0  # the line breaks after so many bytes of each answer, if not 0
    cuts_left: int = 0
    spoiled: str = ""  # this file arrives with a wrong byte
    announced: dict[str, int] = field(default_factory=dict)  # wrong sizes
    endpoint: str = ""
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # path, Range, Authorization


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


@contextmanager
def serve(stand_in: StandIn) -> Iterator[StandIn]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stand_in))
    stand_in.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def files_of(folder: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in folder.iterdir()}


def _sibling(stand_in: StandIn, name: str, content: bytes) -> dict:
    size = stand_in.announced.get(name, len(content))
    described = {"rfilename": name, "size": size,
                 "blobId": hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()}
    if is_large(name):
        described["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": size, "pointerSize": 134}
    return described


def _handler(stand_in: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            stand_in.requests.append(
                (path, self.headers.get("Range", ""), self.headers.get("Authorization", "")))
            if path == f"/api/models/{stand_in.repo_id}/revision/main":
                self._info()
            elif path.startswith(f"/{stand_in.repo_id}/resolve/{COMMIT}/"):
                self._redirect(path.rpartition("/")[2])
            elif path.startswith("/cdn/"):
                self._content(path.removeprefix("/cdn/"))
            else:
                self._error(404, "RevisionNotFound" if "/revision/" in path and stand_in.repo_id in path
                            else "RepoNotFound")

        def _info(self) -> None:
            if stand_in.error_code:
                self._error(403 if stand_in.error_code == "GatedRepo" else 401, stand_in.error_code)
                return
            siblings = [_sibling(stand_in, name, content) for name, content in stand_in.files.items()]
            self._answer(200, {"Content-Type": "application/json"}, json.dumps(
                {"id": stand_in.repo_id, "modelId": stand_in.repo_id, "sha": COMMIT, "siblings": siblings}).encode())

        def _redirect(self, name: str) -> None:
            content = stand_in.files[name]
            etag = hashlib.sha256(content).hexdigest() if is_large(name) else hashlib.sha1(content).hexdigest()
            place = stand_in.endpoint.replace("127.0.0.1", "localhost")  # another host, as the real one's
            self._answer(302 if is_large(name) else 307, {
                "Location": f"{place}/cdn/{name}", "X-Repo-Commit": COMMIT, "X-Linked-Etag": f'"{etag}"',
                "X-Linked-Size": str(len(content)), "ETag": f'"{etag}"'}, b"Found. Redirecting")

        def _content(self, name: str) -> None:
            content = stand_in.files[name]
            if name == stand_in.spoiled:
                content = content[:-1] + bytes([content[-1] ^ 1])
            start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            body = content[start:]
            if stand_in.cuts_left and is_large(name) and len(body) > stand_in.cut_after:
                stand_in.cuts_left -= 1
                self._answer(206 if start else 200, headers, body, stand_in.cut_after)
                self.close_connection = True
            else:
                self._answer(206 if start else 200, headers, body)

        def _error(self, status: int, code: str) -> None:
            self._answer(status, {"X-Error-Code": code, "X-Error-Message": "no"}, b'{"error":"no"}')

        def _answer(self, status: int, headers: dict[str, str], body: bytes, cut: int = 0) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:cut] if cut else body)

    return Handler
