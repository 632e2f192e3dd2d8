"""A local stand-in for the Hugging Face Hub on 127.0.0.1, used by the real `huggingface_hub` and `transformers` over
HTTP.

Like the Hub it has two servers: the Hub itself, with repositories, commits and tokens, and a storage server for large
files, which uses signed addresses and refuses every request that carries a token.

In a test it is a fixture (`from hub_double import hub`) that also points the client in this process at it:

    def test_it(hub):
        push(folder, "user/model", token=hub.token)
        assert hub.files("user/model")["config.json"] == …

Elsewhere it is a context manager; a subprocess finds it through the environment:

    with HubDouble(tmp_path / "hub") as hub:
        subprocess.run(command, env={**os.environ, **hub.environment(tmp_path / "cache")})

It can be told to fail, for the requests it gets from then on:

    hub.fail(Fault(503, "the Hub is down"), at=3, times=2)  # the third and the fourth

`environment` sets HF_ENDPOINT, HF_HOME (so the user's files are neither read nor written) and, by default, HF_TOKEN.
Not modelled: Xet, spaces, pull requests, branches other than main, moving or deleting repositories.
"""

import base64
import contextlib
import hashlib
import json
import re
import secrets
import socket
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

import pytest
import yaml

PART_SIZE = 64 * 1024  # larger files are uploaded in parts; the limit of the real Hub is far higher
TREE_PAGE = 3  # entries per page of a listing, small so that the tests use several pages


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    files: dict[str, str]  # path → SHA-256 of the content


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: list[Commit] = field(default_factory=list)


@dataclass
class Upload:
    """A signed address: its object, and the parts received so far."""

    oid: str
    size: int
    parts: dict[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    status: int
    authorised: bool
    range: str | None


@dataclass(frozen=True)
class Fault:
    """What a request is answered instead: an error, or nothing.

    `cut` breaks the connection off: "half" in the middle of what is sent or received, with nothing done; "after" when all is
    done and nothing answered. `silent` seconds pass before the request is looked at. Without any of them the status counts.
    """

    status: int = 0
    message: str = ""
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut: Literal["half", "after"] | None = None
    silent: float = 0.0


class Answer(Exception):
    """Raised to end a request with this status, body and headers."""

    def __init__(self, status: int, body: bytes | dict | list = b"", **headers: str):
        super().__init__(status)
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def refuse(status: int, message: str, code: str | None = None) -> Answer:
    headers = {"X_Error_Message": message} | ({"X_Error_Code": code} if code else {})
    return Answer(status, {"error": message}, **headers)


class HubDouble:
    """State of the stand-in. `token` may write, `read_token` may only read; any other token is refused."""

    def __init__(self, folder: Path, user: str = "user"):
        self.user = user
        self.token = "hf_" + secrets.token_hex(17)
        self.read_token = "hf_" + secrets.token_hex(17)
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, Upload] = {}
        self.verified: set[str] = set()
        self.requests: list[Request] = []
        self.outage: int | None = None  # status with which every request to the Hub is answered
        self.echo_token = False  # simulates a Hub that repeats the token in its error messages
        self.faults: dict[int, Fault] = {}  # by the number of the request, from 1 on, among those since `fail`
        self.asked = 0  # requests since `fail`
        self._objects = folder  # content by its SHA-256
        self._lock = threading.RLock()

    # Lifetime

    def __enter__(self) -> "HubDouble":
        self._objects.mkdir(parents=True, exist_ok=True)
        self._servers = []
        for role in (HubRole, StorageRole):
            handler: Any = type("Handler", (role,), {"double": self})
            server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            self._servers.append(server)
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        return self

    def __exit__(self, *_) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def environment(self, home: Path, *, token: str | None = "write") -> dict[str, str]:
        """Variables that point a subprocess at this server, with `home` instead of ~/.cache/huggingface.
        `token=None` sets no token.
        """
        chosen = self.token if token == "write" else token
        quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_OFFLINE": "0"}
        paths = {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_CACHE": str(home / "hub")}
        return {**paths, "HF_TOKEN": chosen or "", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", **quiet}

    # For tests

    def fail(self, fault: Fault | None, at: int = 1, times: int = 1) -> None:
        """Answers `times` of the requests that come from now on with `fault`, the first being number `at`. None: no more."""
        with self._lock:
            self.asked = 0
            self.faults = dict.fromkeys(range(at, at + times), fault) if fault is not None else {}

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return {path: self.content(oid) for path, oid in self.commit(repo, revision).files.items()}

    def commits(self, repo: str) -> list[str]:
        """Messages of the commits of a repository, oldest first; the first commit created it."""
        return [commit.message for commit in self.repositories[repo].commits]

    def parts(self, content: bytes) -> list[int]:
        """Sizes of the parts in which `content` was uploaded to storage, or [] if it was not."""
        oid = hashlib.sha256(content).hexdigest()
        return [
            len(part)
            for upload in self.uploads.values()
            if upload.oid == oid
            for _, part in sorted(upload.parts.items())
        ]

    def add(self, repo: str, files: dict[str, bytes], *, private: bool = False, gated: bool = False) -> str:
        """Adds files to a repository without the client, and returns the commit."""
        repository = self.repositories.setdefault(repo, Repository(private, gated))
        return self._record(repository, "add", {path: self._store(content) for path, content in files.items()})

    def forget(self, contents: Iterable[bytes]) -> None:
        """Removes contents from storage, so that they have to be uploaded again."""
        for content in contents:
            (self._objects / hashlib.sha256(content).hexdigest()).unlink(missing_ok=True)

    # For the servers

    def content(self, oid: str) -> bytes:
        return (self._objects / oid).read_bytes()

    def has(self, oid: str) -> bool:
        return (self._objects / oid).is_file()

    def commit(self, repo: str, revision: str) -> Commit:
        for commit in reversed(self.repositories[repo].commits):
            if revision in ("main", "refs/heads/main") or commit.oid == revision:
                return commit
        raise refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def _store(self, content: bytes) -> str:
        oid = hashlib.sha256(content).hexdigest()
        (self._objects / oid).write_bytes(content)
        return oid

    def _record(self, repository: Repository, message: str, files: dict[str, str]) -> str:
        parent = repository.commits[-1] if repository.commits else Commit("", "", {})
        state = json.dumps([parent.oid, len(repository.commits), message, sorted(files.items())])
        commit = Commit(hashlib.sha1(state.encode()).hexdigest(), message, files)
        repository.commits.append(commit)
        return commit.oid


def stored_as_lfs(path: str, size: int) -> bool:
    """As in the Hub's default .gitattributes, weights and files above 10 MB use large-file storage."""
    return path.endswith((".safetensors", ".bin", ".model")) or size > 10_000_000


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Role(BaseHTTPRequestHandler):
    """Common to both servers: reads a body, sends an answer, records requests."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent one after the other: with it every answer waits 40 ms
    double: HubDouble
    routes: list[tuple[str, str, str]]  # method, pattern of the path, name of the handling method

    def log_message(self, format: str, *args) -> None:
        pass

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def handle_request(self) -> None:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        path = unquote(parts.path)
        with self.double._lock:
            self.double.asked += 1
            fault = self.double.faults.get(self.double.asked, Fault())
        if fault.cut == "half" and self.command in ("POST", "PUT"):
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self.break_off()
            return
        self.payload = self.body()
        threading.Event().wait(fault.silent)  # not time.sleep, which tests replace
        with self.double._lock:
            try:
                if fault.status:
                    headers = {name.replace("-", "_"): value for name, value in fault.headers.items()}
                    refused = refuse(fault.status, fault.message, fault.code)
                    raise Answer(fault.status, refused.body, **(refused.headers | headers))
                self.admit()
                for method, pattern, name in self.routes:
                    if method == self.command.replace("HEAD", "GET") and (match := re.fullmatch(pattern, path)):
                        getattr(self, name)(**match.groupdict())
                raise refuse(404, f"nothing at {self.command} {path}")
            except Answer as answer:
                final = answer
            except Exception as error:  # not 500, which the client would retry for half a minute
                final = refuse(400, f"the double does not understand: {error!r}")
            self.double.requests.append(
                Request(self.command, path, final.status, "Authorization" in self.headers, self.headers.get("Range"))
            )
        if fault.cut == "after":
            self.break_off()
            return
        with contextlib.suppress(OSError):  # a client that has given up
            self.send(final, half=fault.cut == "half")
        if fault.cut == "half":
            self.break_off()

    def send(self, final: Answer, half: bool) -> None:
        self.send_response(final.status)
        for name, value in final.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in final.headers:
            self.send_header("Content-Length", str(len(final.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(final.body[: len(final.body) // 2] if half else final.body)

    def break_off(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def admit(self) -> None:
        """Each server decides who has access; by default nobody has."""
        raise refuse(403, "this server admits nobody")

    def send_content(self, content: bytes, **headers: str) -> None:
        """A file, or the requested range of it."""
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {"Accept_Ranges": "bytes", "Content_Type": "application/octet-stream", **headers}
        if wanted is None:
            raise Answer(200, content, **headers)
        start = int(wanted[1])
        stop = min(int(wanted[2]) + 1 if wanted[2] else len(content), len(content))
        if start >= len(content):
            raise Answer(416, b"", Content_Range=f"bytes */{len(content)}")
        raise Answer(206, content[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(content)}", **headers)


API = "/api/(?:models|datasets)"
REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
# Some of the identifiers in docs/hub/repositories-licenses.md of huggingface/hub-docs.
LICENCES = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0", "gemma", "llama3", "other", "unknown"}
RELATIONS = {"adapter", "merge", "quantized", "finetune"}  # docs/hub/model-cards.md there


def card_errors(content: str) -> list[str]:
    """What the Hub refuses in a card's metadata, as far as it is written down."""
    if not content.startswith("---"):
        return []
    if content.count("---") < 2:
        return ["the YAML block is not closed"]
    found = yaml.safe_load(content.split("---\n")[1])
    licences, base = (
        value if isinstance(value, list) else [value] for value in map(found.get, ("license", "base_model"))
    )
    wrong = [f"license {one!r} is unknown" for one in licences if one is not None and one not in LICENCES]
    name, link = found.get("license_name"), found.get("license_link")
    if (name is None) != (link is None) and link is not None:
        wrong.append("license_link is for licences with a license_name")
    if link is not None and link not in ("LICENSE", "LICENSE.md") and not re.match(r"https?://", link):
        wrong.append(f"license_link must be LICENSE, LICENSE.md or an address; got {link!r}")
    if name is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name):
        wrong.append(f"license_name must be an id such as my-license-1.0; got {name!r}")
    wrong += [
        f"base_model {one!r} is no model ID" for one in base if one and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", one)
    ]
    if found.get("base_model_relation") not in (None, *RELATIONS):
        wrong.append(f"base_model_relation must be one of {', '.join(sorted(RELATIONS))}")
    for model in found.get("model-index", []):
        for result in model["results"]:
            if not {"task", "dataset", "metrics"} <= set(result) or not {"type", "name"} <= set(result["dataset"]):
                wrong.append("a result of model-index needs task, dataset and metrics")
    return wrong


class HubRole(Role):
    routes = [
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/validate-yaml", "validate_card"),
        ("POST", "/api/repos/create", "create"),
        ("GET", f"{API}/{REPO}(/revision/(?P<revision>.+))?", "info"),
        ("GET", f"{API}/{REPO}/auth-check", "auth_check"),
        ("GET", f"{API}/{REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", "tree"),
        ("POST", f"{API}/{REPO}/preupload/(?P<revision>.+)", "preupload"),
        ("POST", f"{API}/{REPO}/commit/(?P<revision>.+)", "new_commit"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
        ("POST", rf"/{REPO}\.git/info/lfs/objects/verify", "lfs_verify"),
        ("GET", f"/(?:datasets/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    ]

    @property
    def sent_token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def admit(self) -> None:
        if self.double.outage:
            raise refuse(self.double.outage, "the Hub is down")
        if self.sent_token not in (None, self.double.token, self.double.read_token):
            echo = f" {self.sent_token}" if self.double.echo_token else ""
            raise refuse(401, "Invalid credentials in Authorization header" + echo)

    def may_write(self) -> None:
        if self.sent_token is None:
            raise refuse(401, "Invalid username or password.")
        if self.sent_token != self.double.token:
            echo = f" {self.sent_token}" if self.double.echo_token else ""
            raise refuse(403, "You don't have the required permissions to perform this action" + echo)

    def repository(self, name: str) -> Repository:
        """A repository that the sender may read. Without a token the Hub does not distinguish missing from private."""
        found = self.double.repositories.get(name)
        if self.sent_token is None and (found is None or found.private):
            raise refuse(401, "Invalid username or password.")
        if found is None:
            raise refuse(404, "Repository not found", "RepoNotFound")
        return found

    def readable_content(self, name: str) -> Repository:
        found = self.repository(name)
        if found.gated and self.sent_token != self.double.token:
            raise refuse(403, f"Access to model {name} is restricted", "GatedRepo")
        return found

    # Accounts and repositories

    def whoami(self) -> None:
        if self.sent_token is None:
            raise refuse(401, "Invalid username or password.")
        role = "write" if self.sent_token == self.double.token else "read"
        access = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
        raise Answer(200, {"type": "user", "name": self.double.user, "orgs": [], "auth": access})

    def validate_card(self) -> None:
        content = json.loads(self.payload)["content"]
        errors = card_errors(content)
        raise Answer(400 if errors else 200, {"errors": [{"message": one} for one in errors], "warnings": []})

    def create(self) -> None:
        self.may_write()
        wanted = json.loads(self.payload)
        owner = wanted.get("organization") or self.double.user
        name = f"{owner}/{wanted['name']}"
        if owner != self.double.user:
            raise refuse(403, f"You don't have the rights to create a model under the namespace {owner!r}")
        answer = {"url": f"{self.double.url}/{name}", "name": name}
        if name in self.double.repositories:
            raise Answer(
                409,
                {**answer, "error": "You already created this model repo"},
                X_Error_Message="You already created this model repo",
            )
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.double.add(
            name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, private=bool(private)
        )
        raise Answer(200, answer)

    def info(self, repo: str, revision: str | None) -> None:
        found = self.repository(repo)
        commit = self.double.commit(repo, revision or "main")
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        facts = {
            "_id": "0" * 24,
            "id": repo,
            "modelId": repo,
            "sha": commit.oid,
            "private": found.private,
            "gated": found.gated,
        }
        raise Answer(200, {**facts, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings})

    def auth_check(self, repo: str) -> None:
        self.readable_content(repo)
        raise Answer(200, {})

    def tree(self, repo: str, revision: str, folder: str | None) -> None:
        self.repository(repo)
        commit = self.double.commit(repo, revision)
        inside = f"{folder}/" if folder else ""
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = {}
        for path, oid in sorted(commit.files.items()):
            if not path.startswith(inside):
                continue
            for end in [match.start() for match in re.finditer("/", path) if match.start() >= len(inside)]:
                entries[path[:end]] = {
                    "type": "directory",
                    "path": path[:end],
                    "oid": git_oid(path[:end].encode()),
                    "size": 0,
                }
            content = self.double.content(oid)
            entries[path] = {"type": "file", "path": path, "oid": git_oid(content), "size": len(content)}
            if stored_as_lfs(path, len(content)):
                entries[path]["lfs"] = {"oid": oid, "size": len(content), "pointerSize": 134}
        if folder and not entries:
            raise refuse(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        listed = [entry for path, entry in sorted(entries.items()) if recursive or "/" not in path[len(inside) :]]
        start = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if start + TREE_PAGE < len(listed):
            more = (
                f"{self.double.url}{quote(urlsplit(self.path).path)}?recursive={recursive}&cursor={start + TREE_PAGE}"
            )
            headers["Link"] = f'<{more}>; rel="next"'
        raise Answer(200, listed[start : start + TREE_PAGE], Content_Type="application/json", **headers)

    # Upload: preupload → (LFS batch → storage → verify) → commit

    def preupload(self, repo: str, revision: str) -> None:
        self.may_write()
        self.repository(repo)
        present = self.double.commit(repo, revision).files
        answers = []
        for wanted in json.loads(self.payload)["files"]:
            path, lfs = wanted["path"], stored_as_lfs(wanted["path"], wanted["size"])
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            if path in present:
                answer["oid"] = present[path] if lfs else git_oid(self.double.content(present[path]))
            answers.append(answer)
        raise Answer(200, {"files": answers})

    def lfs_batch(self, repo: str) -> None:
        self.may_write()
        self.repository(repo)
        wanted = json.loads(self.payload)
        assert wanted["operation"] == "upload" and wanted["hash_algo"] == "sha256", wanted
        objects = []
        for item in wanted["objects"]:
            oid, size = item["oid"], item["size"]
            if self.double.has(oid):
                objects.append({"oid": oid, "size": size})
                continue
            key = secrets.token_hex(16)
            self.double.uploads[key] = Upload(oid, size)
            address = f"{self.double.storage_url}/{key}"
            upload: dict = {"href": address}
            if size > PART_SIZE and "multipart" in wanted["transfers"]:
                count = -(-size // PART_SIZE)
                upload["header"] = {
                    "chunk_size": str(PART_SIZE),
                    **{str(part): f"{address}/{part}" for part in range(1, count + 1)},
                }
            verify = {"href": f"{self.double.url}/{repo}.git/info/lfs/objects/verify"}
            objects.append({"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}})
        raise Answer(200, {"transfer": "multipart", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def lfs_verify(self, repo: str) -> None:
        self.may_write()
        wanted = json.loads(self.payload)
        if not self.double.has(wanted["oid"]) or len(self.double.content(wanted["oid"])) != wanted["size"]:
            raise refuse(422, "the object did not arrive as announced")
        self.double.verified.add(wanted["oid"])
        raise Answer(200, {})

    def new_commit(self, repo: str, revision: str) -> None:
        self.may_write()
        repository = self.repository(repo)
        files = dict(self.double.commit(repo, revision).files)
        message = ""
        for line in self.payload.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
                if value.get("parentCommit", repository.commits[-1].oid) != repository.commits[-1].oid:
                    raise refuse(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = self.double._store(base64.b64decode(value["content"], validate=True))
            elif key == "lfsFile":
                if not self.double.has(value["oid"]):
                    raise refuse(400, f"LFS object {value['oid']} was never uploaded")
                files[value["path"]] = value["oid"]
            elif key == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise refuse(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise refuse(400, f"unknown operation {key}")
        oid = self.double._record(repository, message, files)
        raise Answer(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.double.url}/{repo}/commit/{oid}"})

    # Download

    def resolve(self, repo: str, revision: str, path: str) -> None:
        self.readable_content(repo)
        commit = self.double.commit(repo, revision)
        if path not in commit.files:
            raise Answer(
                404, b"", X_Error_Code="EntryNotFound", X_Error_Message="Entry not found", X_Repo_Commit=commit.oid
            )
        oid = commit.files[path]
        content = self.double.content(oid)
        if not stored_as_lfs(path, len(content)):
            self.send_content(content, ETag=f'"{git_oid(content)}"', X_Repo_Commit=commit.oid)
        raise Answer(
            302,
            b"",
            Location=f"{self.double.storage_url}/objects/{oid}",
            ETag=f'"{git_oid(content)}"',
            X_Linked_Etag=f'"{oid}"',
            X_Linked_Size=str(len(content)),
            X_Repo_Commit=commit.oid,
        )


class StorageRole(Role):
    routes = [
        ("GET", "/objects/(?P<oid>[0-9a-f]{64})", "fetch"),
        ("PUT", "/(?P<key>[0-9a-f]{32})(/(?P<part>[0-9]+))?", "put"),
        ("POST", "/(?P<key>[0-9a-f]{32})", "complete"),
    ]

    def admit(self) -> None:
        if "Authorization" in self.headers:
            raise refuse(400, "a signed address takes no token")

    def fetch(self, oid: str) -> None:
        if not self.double.has(oid):
            raise refuse(404, "no such object")
        self.send_content(self.double.content(oid), ETag=f'"{oid}"')

    def put(self, key: str, part: str | None) -> None:
        upload = self.double.uploads[key]
        upload.parts[int(part or 1)] = self.payload
        if part is None:
            self._finish(upload)
        raise Answer(200, b"", ETag=f'"{hashlib.md5(self.payload).hexdigest()}"')

    def complete(self, key: str) -> None:
        upload, wanted = self.double.uploads[key], json.loads(self.payload)
        etags = {part["partNumber"]: part["etag"] for part in wanted["parts"]}
        if etags != {number: f'"{hashlib.md5(part).hexdigest()}"' for number, part in upload.parts.items()}:
            raise refuse(400, "the parts are not the ones that arrived")
        self._finish(upload)
        raise Answer(200, {})

    def _finish(self, upload: Upload) -> None:
        content = b"".join(part for _, part in sorted(upload.parts.items()))
        if len(content) != upload.size or hashlib.sha256(content).hexdigest() != upload.oid:
            raise refuse(400, "the content is not the one announced")
        self.double._store(content)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A new server that the client in this process uses as well, with a separate cache and without the user's token."""
    from huggingface_hub import close_session, constants

    for variable in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_OIDC_RESOURCE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    close_session()  # the client reads proxy settings when it is created
    with HubDouble(tmp_path / "hub-double") as double:
        monkeypatch.setattr(constants, "ENDPOINT", double.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", double.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "no-tokens"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield double
