# SPDX-License-Identifier: Apache-2.0
"""The Hub's HTTP API, as huggingface_hub 2.4 calls it: a request in, an answer out. Sockets and faults are
hub_server's.

One user with one token, who may write under their own name and those of some organizations. Not here: xet storage,
pull requests, .gitignore rules, pages of listings, a card's metadata but its licence, and repositories without a
namespace.
"""

import base64
import binascii
import hashlib
import json
import re
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repository import MAIN, Refusal, Repository


BAD_TOKEN = "Invalid credentials in Authorization header"
NOT_SIGNED_IN = "Invalid username or password."
LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0", "unknown", "other")  # of the Hub's many

REPO = r"/api/(?P<repo_type>model|dataset|space)s/(?P<name>[^/]+/[^/]+)"
WEB_REPO = r"/(?:(?P<repo_type>dataset|space)s/)?(?P<name>[^/]+/[^/]+)"
LFS_OBJECT = r"/lfs/(?P<repo_type>model|dataset|space)s/(?P<name>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})"
REVISION = r"/(?P<revision>[^/]+)"


@dataclass
class Request:
    method: str
    target: str  # the path and the query
    headers: Mapping[str, str]
    body: bytes
    signed_in: bool = False

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query)

    @property
    def base_url(self) -> str:
        return f"http://{self.headers['Host']}"

    def json(self) -> Any:
        return json.loads(self.body)

    def asks(self, option: str) -> bool:
        return self.query.get(option, ["false"])[0].lower() in ("1", "true")


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def as_json(content: Any, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})


def as_answer(refusal: Refusal) -> Answer:
    answer = as_json({"error": refusal.message, **refusal.details}, refusal.status, **refusal.headers)
    answer.headers["X-Error-Message"] = refusal.message.encode("ascii", "replace").decode()
    if refusal.code is not None:
        answer.headers["X-Error-Code"] = refusal.code
    return answer


Handler = Callable[..., Answer]
_ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []


def route(methods: str, pattern: str) -> Callable[[Handler], Handler]:
    """Register a method of `HubRoutes` for requests whose path is `pattern`; its groups become arguments, unquoted."""

    def register(handler: Handler) -> Handler:
        _ROUTES.extend((method, re.compile(pattern), handler) for method in methods.split())
        return handler

    return register


class HubRoutes:
    def __init__(self, token: str, user: str, organizations: Sequence[str], part_bytes: int):
        self.token = token
        self.user = user
        self.organizations = list(organizations)
        self.part_bytes = part_bytes
        self.refused_with: int | None = None  # the status that refuses the token
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lock = threading.Lock()
        self._signature = secrets.token_hex(16)  # of upload URLs, which are used without a token

    def answer(self, request: Request) -> Answer:
        try:
            with self.lock:
                self._authenticate(request)
                for method, pattern, handler in _ROUTES:
                    found = pattern.fullmatch(request.path) if method == request.method else None
                    if found is not None:
                        groups = {
                            name: unquote(value) if value else value for name, value in found.groupdict().items()
                        }
                        return handler(self, request, **groups)
            raise Refusal(404, f"this server has no route for {request.method} {request.path}")
        except Refusal as refusal:
            return as_answer(refusal)
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            return as_answer(Refusal(400, f"malformed {request.method} {request.path}: {error!r}"))

    # Who asks, and for what

    def _authenticate(self, request: Request) -> None:
        authorization = request.headers.get("Authorization")
        if authorization is None:
            return
        if self.refused_with == 401 or authorization != f"Bearer {self.token}":
            raise Refusal(401, BAD_TOKEN)
        request.signed_in = True

    def _check_may_write(self, request: Request, name: str) -> None:
        if not request.signed_in:
            raise Refusal(401, NOT_SIGNED_IN)
        namespace = name.split("/")[0]
        if self.refused_with is not None or namespace not in [self.user, *self.organizations]:
            raise Refusal(
                self.refused_with or 403, f"You don't have the rights to write under the namespace {namespace}"
            )

    def _repository(self, request: Request, repo_type: str | None, name: str, write: bool = False) -> Repository:
        repository = self.repositories.get((repo_type or "model", name))
        if repository is None or (repository.private and not request.signed_in):
            status, message = (404, "Repository not found") if request.signed_in else (401, NOT_SIGNED_IN)
            raise Refusal(status, message, "RepoNotFound")
        if write:
            self._check_may_write(request, name)
        return repository

    # Accounts and repositories

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Answer:
        if not request.signed_in:
            raise Refusal(401, NOT_SIGNED_IN)
        role = "read" if self.refused_with else "write"
        return as_json(
            {
                "type": "user",
                "id": hashlib.sha1(self.user.encode()).hexdigest()[:24],
                "name": self.user,
                "fullname": self.user,
                "orgs": [{"type": "org", "name": name} for name in self.organizations],
                "auth": {"type": "access_token", "accessToken": {"displayName": "test", "role": role}},
            }
        )

    def _full_name(self, payload: dict[str, Any]) -> str:
        return f"{payload.get('organization') or self.user}/{payload['name']}"

    @route("POST", "/api/repos/create")
    def create_repo(self, request: Request) -> Answer:
        payload = request.json()
        repo_type, name = payload.get("type") or "model", self._full_name(payload)
        if repo_type not in ("model", "dataset", "space"):
            raise Refusal(400, f"type must be model, dataset or space, got {repo_type}")
        self._check_may_write(request, name)
        url = f"{request.base_url}/{'' if repo_type == 'model' else repo_type + 's/'}{name}"
        if (repo_type, name) in self.repositories:
            raise Refusal(409, f"You already created this {repo_type} repo: {name}", url=url)
        private = payload.get("visibility") == "private"
        self.repositories[repo_type, name] = Repository(repo_type, name, private, payload.get("sdk"))
        return as_json({"url": url, "name": name})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Answer:
        """Whether a card has its block of metadata, an end of it, and in it a licence by one of the Hub's names."""
        content = request.json()["content"]
        if not content.startswith("---\n"):
            return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        block = re.match(r"---\n((?:.*\n)*?)---(\n|$)", content)
        if block is None:
            return as_json({"errors": [{"message": "the yaml metadata in repo card has no end"}], "warnings": []}, 400)
        licence = re.search(r"^license:(.*)", block[1], re.MULTILINE)
        if licence is not None and licence[1].strip().strip("'\"") not in LICENSES:
            error = f'"license" must be one of [{", ".join(LICENSES)}]'
            return as_json({"errors": [{"message": error}], "warnings": []}, 400)
        return as_json({"errors": [], "warnings": []})

    # Revisions

    @route("GET", REPO + "(?:/revision" + REVISION + ")?")
    def info(self, request: Request, repo_type: str, name: str, revision: str | None) -> Answer:
        repository = self._repository(request, repo_type, name)
        commit = repository.resolve(revision or MAIN)
        return as_json(repository.info(commit, request.asks("blobs"), request.query.get("expand", [])))

    @route("GET", REPO + "/tree" + REVISION + "(?:/(?P<folder>.+))?")
    def tree(self, request: Request, repo_type: str, name: str, revision: str, folder: str | None) -> Answer:
        repository = self._repository(request, repo_type, name)
        commit = repository.resolve(revision)
        paths = repository.tree(commit, folder or "", request.asks("recursive"))
        return as_json([repository.entry(commit, path) for path in paths])

    @route("POST", REPO + "/paths-info" + REVISION)
    def paths_info(self, request: Request, repo_type: str, name: str, revision: str) -> Answer:
        repository = self._repository(request, repo_type, name)
        commit = repository.resolve(revision)
        entries = [repository.entry(commit, path) for path in parse_qs(request.body.decode()).get("paths", [])]
        return as_json([entry for entry in entries if entry is not None])

    @route("GET", REPO + "/commits" + REVISION)
    def commits(self, request: Request, repo_type: str, name: str, revision: str) -> Answer:
        repository = self._repository(request, repo_type, name)
        return as_json(
            [
                {
                    "id": commit.id,
                    "title": commit.message,
                    "message": commit.description,
                    "date": commit.date,
                    "authors": [{"user": self.user}],
                }
                for commit in repository.history(repository.resolve(revision))
            ]
        )

    @route("GET", REPO + "/refs")
    def refs(self, request: Request, repo_type: str, name: str) -> Answer:
        return as_json(self._repository(request, repo_type, name).refs())

    @route("POST DELETE", REPO + "/branch/(?P<branch>[^/]+)")
    def branch(self, request: Request, repo_type: str, name: str, branch: str) -> Answer:
        repository = self._repository(request, repo_type, name, write=True)
        if request.method == "POST":
            repository.create_branch(branch, request.json().get("startingPoint", MAIN))
        elif branch == MAIN:
            raise Refusal(403, f"{MAIN} cannot be deleted")
        elif repository.branches.pop(branch, None) is None:
            raise Refusal(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        return as_json({})

    @route("POST DELETE", REPO + "/tag" + REVISION)
    def tag(self, request: Request, repo_type: str, name: str, revision: str) -> Answer:
        repository = self._repository(request, repo_type, name, write=True)
        if request.method == "POST":
            repository.create_tag(request.json()["tag"], revision)
        elif repository.tags.pop(revision, None) is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return as_json({})

    # Uploads: preupload, then the LFS objects, then the commit

    @route("POST", REPO + "/preupload" + REVISION)
    def preupload(self, request: Request, repo_type: str, name: str, revision: str) -> Answer:
        repository = self._repository(request, repo_type, name, write=True)
        commit = repository.resolve(revision)
        files = []
        for file in request.json()["files"]:
            mode = repository.upload_mode(commit, file["path"], file["size"], base64.b64decode(file["sample"]))
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in commit.files:
                answer["oid"] = commit.files[file["path"]].etag
            files.append(answer)
        return as_json({"files": files, "commitOid": commit.id})

    @route("POST", WEB_REPO + r"\.git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request, repo_type: str | None, name: str) -> Answer:
        repository = self._repository(request, repo_type, name, write=True)
        payload = request.json()
        if "ref" in payload:
            repository.resolve(payload["ref"]["name"])
        objects = []
        for file in payload["objects"]:
            answer = {"oid": file["oid"], "size": file["size"], "authenticated": True}
            if file["oid"] not in repository.lfs_objects:
                answer["actions"] = self._upload_actions(request, repository, **file)
            objects.append(answer)
        return as_json({"transfer": "multipart", "objects": objects})

    def _upload_actions(self, request: Request, repository: Repository, oid: str, size: int) -> dict[str, Any]:
        url = f"{request.base_url}/lfs/{repository.repo_type}s/{repository.name}/{oid}"
        header = {}
        if size > self.part_bytes:
            header["chunk_size"] = str(self.part_bytes)
            for part in range(1, -(-size // self.part_bytes) + 1):
                header[str(part)] = f"{url}/{part}?signature={self._signature}"
        return {
            "upload": {"href": f"{url}?signature={self._signature}", "header": header},
            "verify": {"href": f"{url}/verify"},
        }

    @route("PUT POST", LFS_OBJECT + "(?:/(?P<part>[0-9]+))?")
    def lfs_upload(self, request: Request, repo_type: str, name: str, oid: str, part: str | None) -> Answer:
        """PUT: a whole object, or a part of one. POST: the end of the parts."""
        if request.query.get("signature") != [self._signature] or (repo_type, name) not in self.repositories:
            raise Refusal(403, "this upload URL was not signed by the server")
        repository = self.repositories[repo_type, name]
        if part is not None:
            repository.lfs_parts[oid, int(part)] = request.body
            return Answer(headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
        content = request.body
        if request.method == "POST":
            parts = [repository.lfs_parts[oid, part["partNumber"]] for part in request.json()["parts"]]
            etags = [f'"{hashlib.md5(part).hexdigest()}"' for part in parts]
            if etags != [part["etag"] for part in request.json()["parts"]]:
                raise Refusal(400, f"the ETags of the parts of {oid} are not those of what was uploaded")
            content = b"".join(parts)
        found = hashlib.sha256(content).hexdigest()
        if found != oid:
            raise Refusal(400, f"the content uploaded as {oid} has the SHA-256 {found}")
        repository.lfs_objects[oid] = content
        for key in [key for key in repository.lfs_parts if key[0] == oid]:
            del repository.lfs_parts[key]
        return as_json({})

    @route("POST", LFS_OBJECT + "/verify")
    def lfs_verify(self, request: Request, repo_type: str, name: str, oid: str) -> Answer:
        repository = self._repository(request, repo_type, name, write=True)
        if len(repository.lfs_objects.get(oid, b"")) != request.json()["size"]:
            raise Refusal(422, f"{oid} was not uploaded, or not with {request.json()['size']} bytes")
        return as_json({})

    @route("POST", REPO + "/commit" + REVISION)
    def commit(self, request: Request, repo_type: str, name: str, revision: str) -> Answer:
        repository = self._repository(request, repo_type, name, write=True)
        if request.asks("create_pr"):
            raise Refusal(400, "this server has no pull requests")
        header, *operations = [json.loads(line) for line in request.body.splitlines()]
        if header["key"] != "header":
            raise Refusal(400, f"the first line of a commit must be its header, got {header['key']}")
        commit = repository.commit(revision, header["value"], operations)
        prefix = "" if repo_type == "model" else f"{repo_type}s/"
        url = f"{request.base_url}/{prefix}{name}/commit/{commit.id}"
        return as_json({"success": True, "commitUrl": url, "commitOid": commit.id, "hookOutput": ""})

    # Downloads

    @route("GET HEAD", WEB_REPO + "/resolve" + REVISION + "/(?P<path>.+)")
    def resolve(self, request: Request, repo_type: str | None, name: str, revision: str, path: str) -> Answer:
        commit = self._repository(request, repo_type, name).resolve(revision)
        file = commit.files.get(path)
        if file is None:
            missing = Refusal(404, f"Entry not found: {path}", "EntryNotFound")
            missing.headers["X-Repo-Commit"] = commit.id
            raise missing
        headers = {
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
            "ETag": f'"{file.etag}"',
            "X-Repo-Commit": commit.id,
        }
        if file.is_lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        return in_range(request.headers.get("Range"), Answer(200, file.content, headers))


def in_range(wanted: str | None, whole: Answer) -> Answer:
    """The bytes that a Range header wants ("bytes=2-5", "bytes=2-", "bytes=-4") of an answer; all without one."""
    if wanted is None:
        return whole
    size = len(whole.body)
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", wanted)
    if found is None or not any(found.groups()):
        raise Refusal(400, f"one range of bytes is understood, got {wanted}")
    first, last = found.groups()
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= end:
        refusal = Refusal(416, f"{wanted} is outside of {size} bytes")
        refusal.headers["Content-Range"] = f"bytes */{size}"
        raise refusal
    headers = {**whole.headers, "Content-Range": f"bytes {start}-{end - 1}/{size}"}
    return Answer(206, whole.body[start:end], headers)
