"""A Hugging Face Hub on the loopback interface, for the unmodified client and `hf` command.

It keeps repositories in memory, takes pushes (regular files and git-LFS, not Xet), and can be told
to fail: `Hub.disturb` runs a function before chosen requests, `Hub.corrupt` garbles a download,
`Hub.cut` breaks it off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-01-01T00:00:00.000Z"
LARGE = (".safetensors", ".png")


class Refusal(Exception):
    """An answer that is an error: the status, the Hub's error code, and what it says."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class LostAnswer(Exception):
    """The request is carried out, and then the connection breaks."""


@dataclass(frozen=True)
class File:
    """A file of a commit; a large one is known by its SHA-256, another by git's SHA-1."""

    content: bytes
    large: bool

    @property
    def git_oid(self) -> str:
        content = self.content
        if self.large:  # what git keeps is a pointer
            pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.oid}\n"
            content = f"{pointer}size {len(self.content)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def oid(self) -> str:
        return hashlib.sha256(self.content).hexdigest() if self.large else self.git_oid

    def entry(self, path: str) -> dict[str, Any]:
        entry = {"type": "file", "path": path, "oid": self.git_oid, "size": len(self.content)}
        if self.large:
            entry["lfs"] = {"oid": self.oid, "size": len(self.content), "pointerSize": 134}
        return entry


@dataclass
class Repository:
    """Commits of one repository, the newest last: each a title and the files by path."""

    kind: str
    repo_id: str
    private: bool
    created_with: dict[str, Any]
    commits: dict[str, tuple[str, dict[str, File]]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, File]:
        return self.commits[self.head][1]

    def commit(self, title: str, files: dict[str, File]) -> str:
        seed = f"{self.repo_id} {len(self.commits)} {title}".encode()
        sha = hashlib.sha1(seed).hexdigest()
        self.commits[sha] = (title, files)
        return sha

    def resolve(self, revision: str) -> str:
        if revision == "main":
            return self.head
        if revision not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return revision


class Hub:
    """The server; `with Hub() as hub:` runs it.

    Attributes:
        url: what to set HF_ENDPOINT to.
        tokens: the user and organizations of each token, which may write there but for hf_reader.
        repositories: by "models/owner/name", "datasets/..." or "spaces/...".
        collections: the model ids of each collection, by its slug.
        hardware: what was requested for each Space.
        variables: of each Space.
        requests: "METHOD path" of every request.
    """

    def __init__(self) -> None:
        self.tokens = {
            "hf_writer": ["ada", "lab"],
            "hf_reader": ["ada", "lab"],
            "hf_stranger": ["eve"],
        }
        self.repositories: dict[str, Repository] = {}
        self.collections: dict[str, list[str]] = {}
        self.hardware: dict[str, str] = {}
        self.variables: dict[str, dict[str, str]] = {}
        self.requests: list[str] = []
        self.lfs: dict[str, bytes] = {}
        self.corrupted: set[str] = set()
        self.cut_off: set[str] = set()
        self.lock = threading.RLock()
        self._disturbances: list[tuple[re.Pattern[str], Callable[[], None], int]] = []
        handler = type("BoundHandler", (Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def disturb(self, request: str, act: Callable[[], None], times: int = 1) -> None:
        """Call `act` before the next `times` requests that match "METHOD path" (a pattern)."""
        self._disturbances.append((re.compile(request), act, times))

    def corrupt(self, path: str) -> None:
        """Send other bytes of the same number whenever the file `path` is downloaded."""
        self.corrupted.add(path)

    def cut(self, path: str) -> None:
        """Break the connection in the middle of the file `path` whenever it is downloaded."""
        self.cut_off.add(path)

    def create(self, key: str, private: bool = False, **created_with: Any) -> Repository:
        kind, repo_id = key.split("/", 1)
        repository = Repository(kind, repo_id, private, created_with)
        rules = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE)
        repository.commit("initial commit", {".gitattributes": File(rules.encode(), False)})
        self.repositories[key] = repository
        return repository

    def due(self, request: str) -> list[Callable[[], None]]:
        """The disturbances of this request, counted down."""
        acts = []
        for index, (pattern, act, times) in enumerate(self._disturbances):
            if times and pattern.fullmatch(request):
                self._disturbances[index] = (pattern, act, times - 1)
                acts.append(act)
        return acts


def fail(status: int) -> Callable[[], None]:
    """A disturbance: the server answers with `status`."""

    def act() -> None:
        raise Refusal(status, "the server is out of order")

    return act


def lose_answer() -> None:
    """A disturbance: the request is carried out, but its answer never arrives."""
    raise LostAnswer


class Handler(BaseHTTPRequestHandler):
    """One connection's requests."""

    hub: Hub
    protocol_version = "HTTP/1.1"
    wbufsize, disable_nagle_algorithm = 1 << 16, True  # otherwise every answer waits for an ACK

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test's output clean."""

    def answer(self) -> None:
        """Route a request to its method and send what that returns, or the error it raises."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        request = f"{self.command} {url.path}"
        lost = False
        try:
            with self.hub.lock:
                self.hub.requests.append(request)
                for act in self.hub.due(request):
                    try:
                        act()
                    except LostAnswer:
                        lost = True
                for methods, pattern, name in ROUTES:
                    if self.command in methods and (match := pattern.fullmatch(url.path)):
                        parts = {k: unquote(v) for k, v in match.groupdict().items() if v}
                        reply = getattr(self, name)(body, **parts)
                        break
                else:
                    raise Refusal(404, f"no such page: {request}")
        except Refusal as refusal:
            headers = {"X-Error-Message": refusal.message}
            if refusal.code is not None:
                headers["X-Error-Code"] = refusal.code
            content = json.dumps({"error": refusal.message}).encode()
            self.reply(refusal.status, content, headers)
            return
        if lost:
            self.close_connection = True
        elif isinstance(reply, tuple):
            self.reply(*reply)
        else:
            self.reply(200, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def reply(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Who asks, and for what

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def namespaces(self) -> list[str] | None:
        """The user and organizations of the token; None without a token."""
        token = self.token
        if token and token not in self.hub.tokens:
            raise Refusal(401, "Invalid credentials in Authorization header")
        return self.hub.tokens[token] if token else None

    def may_write(self, repo_id: str) -> None:
        namespaces = self.namespaces()
        if namespaces is None:
            raise Refusal(401, "Invalid username or password.")
        if repo_id.split("/")[0] not in namespaces or self.token == "hf_reader":
            raise Refusal(403, f"You have no rights to write to {repo_id}")

    def repository(self, kind: str, repo_id: str, *, write: bool = False) -> Repository:
        found, namespaces = self.hub.repositories.get(f"{kind}/{repo_id}"), self.namespaces()
        hidden = found is not None and found.private
        if found is None or (hidden and repo_id.split("/")[0] not in (namespaces or [])):
            raise Refusal(401 if namespaces is None else 404, "Not found", "RepoNotFound")
        if write:
            self.may_write(repo_id)
        return found

    def who_am_i(self, body: bytes) -> Any:
        namespaces = self.namespaces()
        if namespaces is None:
            raise Refusal(401, "Invalid username or password.")
        name, *organizations = namespaces
        role = "read" if self.token == "hf_reader" else "write"
        orgs = [{"name": each, "roleInOrg": "write"} for each in organizations]
        return {"name": name, "orgs": orgs, "auth": {"accessToken": {"role": role}}}

    def auth_check(self, body: bytes, kind: str, repo_id: str) -> Any:
        self.repository(kind, repo_id, write=True)
        return {}

    # Repositories

    def create_repo(self, body: bytes) -> Any:
        wanted = json.loads(body)
        kind = {"space": "spaces"}.get(wanted.get("type"), "models")
        repo_id = f"{wanted['organization']}/{wanted['name']}"
        self.may_write(repo_id)
        url = f"{self.hub.url}/{'' if kind == 'models' else f'{kind}/'}{repo_id}"
        if f"{kind}/{repo_id}" in self.hub.repositories:
            said = "You already created this model repo"
            return 409, json.dumps({"error": said, "url": url}).encode(), {"X-Error-Message": said}
        self.hub.create(f"{kind}/{repo_id}", wanted.get("visibility") == "private", **wanted)
        return {"url": url}

    def delete_repo(self, body: bytes) -> Any:
        wanted = json.loads(body)
        kind = {"space": "spaces"}.get(wanted.get("type"), "models")
        repository = self.repository(kind, f"{wanted['organization']}/{wanted['name']}", write=True)
        del self.hub.repositories[f"{kind}/{repository.repo_id}"]
        return {}

    def info(self, body: bytes, kind: str, repo_id: str, revision: str = "main") -> Any:
        repository = self.repository(kind, repo_id)
        sha = repository.resolve(revision)
        files = repository.commits[sha][1]
        card = front_matter(files["README.md"].content.decode()) if "README.md" in files else {}
        siblings = [
            {"rfilename": path, "size": len(file.content), "blobId": file.git_oid}
            for path, file in files.items()
        ]
        return {
            "_id": repo_id,
            "id": repo_id,
            "sha": sha,
            "private": repository.private,
            "siblings": siblings,
            "cardData": card,
            "library_name": card.get("library_name"),
            "lastModified": DATE,
            "tags": [],
        }

    def commits(self, body: bytes, kind: str, repo_id: str) -> Any:
        return [
            {"id": sha, "title": title, "message": "", "date": DATE, "authors": []}
            for sha, (title, _) in reversed(self.repository(kind, repo_id).commits.items())
        ]

    def collection(self, body: bytes, slug: str) -> Any:
        if slug not in self.hub.collections:
            raise Refusal(404, "Collection not found", "RepoNotFound")
        items = [
            {"_id": repo_id, "id": repo_id, "type": "model", "position": index}
            for index, repo_id in enumerate(self.hub.collections[slug])
        ]
        return {
            "slug": slug,
            "title": slug,
            "owner": "lab",
            "items": items,
            "lastUpdated": DATE,
            "position": 0,
            "private": False,
            "theme": "blue",
            "upvotes": 0,
        }

    def request_hardware(self, body: bytes, repo_id: str) -> Any:
        self.repository("spaces", repo_id, write=True)
        self.hub.hardware[repo_id] = json.loads(body)["flavor"]
        return self.runtime(body, repo_id)

    def runtime(self, body: bytes, repo_id: str) -> Any:
        self.repository("spaces", repo_id)
        hardware = {"current": None, "requested": self.hub.hardware.get(repo_id)}
        return {"stage": "BUILDING", "hardware": hardware, "gcTimeout": None}

    def variables(self, body: bytes, repo_id: str) -> Any:
        self.repository("spaces", repo_id)
        variables = self.hub.variables.get(repo_id, {})
        return {key: {"value": value, "updatedAt": DATE} for key, value in variables.items()}

    def add_variable(self, body: bytes, repo_id: str) -> Any:
        self.repository("spaces", repo_id, write=True)
        given = json.loads(body)
        self.hub.variables.setdefault(repo_id, {})[given["key"]] = given["value"]
        return self.variables(body, repo_id)

    # Writing

    def validate_yaml(self, body: bytes) -> Any:
        if not front_matter(json.loads(body)["content"]):
            raise Refusal(400, "Invalid metadata")
        return {"errors": [], "warnings": []}

    def preupload(self, body: bytes, kind: str, repo_id: str, revision: str) -> Any:
        present = self.repository(kind, repo_id, write=True).files
        answers = []
        for wanted in json.loads(body)["files"]:
            path = wanted["path"]
            answer = {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular"}
            answer["shouldIgnore"] = False
            if path in present:
                answer["oid"] = present[path].oid
            answers.append(answer)
        return {"files": answers}

    def lfs_batch(self, body: bytes, repo_id: str, kind: str = "models/") -> Any:
        self.repository(kind.strip("/"), repo_id, write=True)
        objects = json.loads(body)["objects"]
        for wanted in objects:
            if wanted["oid"] not in self.hub.lfs:
                upload = {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}
                wanted["actions"] = {"upload": upload}
        return {"transfer": "basic", "objects": objects}

    def lfs_upload(self, body: bytes, oid: str) -> Any:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refusal(400, "the content does not have this SHA-256")
        self.hub.lfs[oid] = body
        return {}

    def commit(self, body: bytes, kind: str, repo_id: str, revision: str) -> Any:
        repository = self.repository(kind, repo_id, write=True)
        files, title = dict(repository.files), ""
        for line in body.splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit", repository.head) != repository.head:
                    raise Refusal(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise Refusal(400, f"LFS object {value['oid']} was not uploaded")
                files[value["path"]] = File(self.hub.lfs[value["oid"]], True)
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise Refusal(400, f"unknown operation {key}")
        sha = repository.commit(title, files)
        prefix = "" if kind == "models" else f"{kind}/"
        return {"commitOid": sha, "commitUrl": f"{self.hub.url}/{prefix}{repo_id}/commit/{sha}"}

    # Reading

    def tree(self, body: bytes, kind: str, repo_id: str, revision: str) -> Any:
        repository = self.repository(kind, repo_id)
        files = repository.commits[repository.resolve(revision)][1]
        return [file.entry(path) for path, file in sorted(files.items())]

    def download(
        self, body: bytes, repo_id: str, revision: str, path: str, kind: str = "models/"
    ) -> Any:
        repository = self.repository(kind.strip("/"), repo_id)
        sha = repository.resolve(revision)
        file = repository.commits[sha][1].get(path)
        if file is None:
            raise Refusal(404, "Entry not found", "EntryNotFound")
        content = file.content
        if path in self.hub.corrupted:
            content = bytes(byte ^ 1 for byte in content)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.oid}"'}
        if file.large:
            headers |= {"X-Linked-ETag": f'"{file.oid}"', "X-Linked-Size": str(len(content))}
        if path in self.hub.cut_off:
            headers["Content-Length"] = str(len(content))
            content, self.close_connection = content[: len(content) // 2], True
        return 200, content, headers


def front_matter(card: str) -> dict[str, str]:
    """The card's metadata as far as it is plain `key: value` lines; empty without metadata."""
    match = re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)
    if match is None:
        return {}
    return dict(re.findall(r"^(\w+): (.+)$", match[1], re.MULTILINE))


def _routes() -> list[tuple[tuple[str, ...], re.Pattern[str], str]]:
    repo_id, revision = r"(?P<repo_id>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
    api = rf"/api/(?P<kind>models|datasets|spaces)/{repo_id}"
    web = rf"/(?P<kind>datasets/|spaces/)?{repo_id}"
    get, post = ("GET", "HEAD"), ("POST",)
    table = [
        (post, "/api/repos/create", "create_repo"),
        (("DELETE",), "/api/repos/delete", "delete_repo"),
        (post, "/api/validate-yaml", "validate_yaml"),
        (get, r"/api/collections/(?P<slug>.+)", "collection"),
        (post, rf"/api/spaces/{repo_id}/hardware", "request_hardware"),
        (get, rf"/api/spaces/{repo_id}/runtime", "runtime"),
        (get, rf"/api/spaces/{repo_id}/variables", "variables"),
        (get, "/api/whoami-v2", "who_am_i"),
        (get, rf"{api}/auth-check/write", "auth_check"),
        (post, rf"/api/spaces/{repo_id}/variables", "add_variable"),
        (get, api, "info"),
        (get, rf"{api}/revision/{revision}", "info"),
        (get, rf"{api}/commits/main", "commits"),
        (get, rf"{api}/tree/{revision}", "tree"),
        (post, rf"{api}/preupload/{revision}", "preupload"),
        (post, rf"{api}/commit/{revision}", "commit"),
        (post, rf"{web}\.git/info/lfs/objects/batch", "lfs_batch"),
        (("PUT",), "/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
        (get, rf"{web}/resolve/{revision}/(?P<path>.+)", "download"),
    ]
    return [(methods, re.compile(pattern), name) for methods, pattern, name in table]


ROUTES = _routes()
