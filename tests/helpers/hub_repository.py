# SPDX-License-Identifier: Apache-2.0
"""What the tests' Hub keeps of one repository: commits that never change, branches, tags, and large files beside git.

Not git: a commit holds all its files, and its id is a hash of them and of its parent. What a client sees is the Hub's:
ids of 40 hexadecimal digits, git's own blob ids, LFS pointers, and the Hub's JSON.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from functools import cached_property
from typing import Any


MAIN = "main"

# The first commit of a repository, as on the Hub, names the files that are too binary for git.
LFS_PATTERNS = ("*.bin", "*.ckpt", "*.gz", "*.mp4", "*.npz", "*.onnx", "*.parquet", "*.png", "*.pt", "*.safetensors")
GIT_ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()
LFS_THRESHOLD = 10 * 2**20  # bytes; a larger file is an LFS file whatever its name


class Refusal(Exception):
    """An HTTP error: its status, what the client shows its user, and the `X-Error-Code` it tells errors apart by."""

    def __init__(self, status: int, message: str, code: str | None = None, **details: Any):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.details = details  # more fields of the JSON body
        self.headers: dict[str, str] = {}


def git_id(kind: str, content: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(content)}\0".encode() + content).hexdigest()


@dataclass(frozen=True)
class StoredFile:
    content: bytes
    is_lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def git_content(self) -> bytes:
        """What git keeps of it: of an LFS file, the pointer."""
        if not self.is_lfs:
            return self.content
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return pointer.encode()

    @cached_property
    def blob_id(self) -> str:
        return git_id("blob", self.git_content)

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass(frozen=True)
class Commit:
    id: str
    message: str
    description: str
    parent: str | None
    files: Mapping[str, StoredFile]
    date: str

    def git_id(self, path: str) -> str | None:
        """Of a file its blob's, of a folder one that changes with anything below it, of anything else None."""
        if path in self.files:
            return self.files[path].blob_id
        below = [f"{name} {file.blob_id}" for name, file in self.files.items() if name.startswith(f"{path}/")]
        return git_id("tree", "\n".join(sorted(below)).encode()) if below else None


class Repository:
    def __init__(self, repo_type: str, name: str, private: bool = False, sdk: str | None = None):
        self.repo_type = repo_type
        self.name = name
        self.private = private
        self.sdk = sdk
        self.lfs_objects: dict[str, bytes] = {}  # by their sha256
        self.lfs_parts: dict[tuple[str, int], bytes] = {}  # of uploads that have not ended, by sha256 and number
        self.commits: dict[str, Commit] = {}
        self.tags: dict[str, str] = {}
        files = {".gitattributes": StoredFile(GIT_ATTRIBUTES, is_lfs=False)}
        if repo_type == "space":
            card = f"---\ntitle: {name.split('/')[1]}\nsdk: {sdk}\napp_file: app.py\n---\n"
            files["README.md"] = StoredFile(card.encode(), is_lfs=False)
        self.branches: dict[str, str] = {MAIN: self._store("initial commit", "", None, files).id}

    def _store(self, message: str, description: str, parent: str | None, files: dict[str, StoredFile]) -> Commit:
        tree = sorted((path, file.blob_id) for path, file in files.items())
        content = json.dumps([self.repo_type, self.name, message, description, parent, tree, len(self.commits)])
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        commit = Commit(git_id("commit", content.encode()), message, description, parent, files, date)
        self.commits[commit.id] = commit
        return commit

    def resolve(self, revision: str) -> Commit:
        """The commit of a branch, a tag or an id."""
        commit_id = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit_id not in self.commits:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[commit_id]

    def history(self, commit: Commit) -> Iterator[Commit]:
        """The commit and all those before it, newest first."""
        yield commit
        while commit.parent is not None:
            commit = self.commits[commit.parent]
            yield commit

    def commit(self, branch: str, header: dict[str, Any], operations: list[dict[str, Any]]) -> Commit:
        """Carry out the operations of a commit request on a branch, all or none of them."""
        head = self.resolve(branch)
        if branch not in self.branches:
            raise Refusal(400, f"{branch} is not a branch: commits go to a branch")
        if not head.id.startswith(header.get("parentCommit", "")):
            raise Refusal(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            self._apply(files, operation["key"], **operation["value"])
        commit = self._store(header["summary"], header.get("description", ""), head.id, files)
        self.branches[branch] = commit.id
        return commit

    def _apply(self, files: dict[str, StoredFile], key: str, path: str, **value: Any) -> None:
        match key:
            case "file":
                files[path] = StoredFile(base64.b64decode(value["content"], validate=True), is_lfs=False)
            case "lfsFile":
                if value["oid"] not in self.lfs_objects:
                    raise Refusal(400, f"LFS pointer of {path} points to a file that does not exist: {value['oid']}")
                files[path] = StoredFile(self.lfs_objects[value["oid"]], is_lfs=True)
            case "deletedFile" | "deletedFolder":
                inside = [name for name in files if name.startswith(f"{path.rstrip('/')}/")]
                deleted = inside if key == "deletedFolder" else [path]
                if not deleted or deleted[0] not in files:
                    raise Refusal(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
                for name in deleted:
                    del files[name]
            case _:
                raise Refusal(400, f"no such operation of a commit: {key}")

    def create_branch(self, branch: str, start: str) -> None:
        if branch in self.branches or branch in self.tags:
            raise Refusal(409, f"Reference already exists: {branch}")
        self.branches[branch] = self.resolve(start).id

    def create_tag(self, tag: str, revision: str) -> None:
        if tag in self.branches or tag in self.tags:
            raise Refusal(409, f"Tag reference exists already: {tag}")
        self.tags[tag] = self.resolve(revision).id

    def upload_mode(self, commit: Commit, path: str, size: int, sample: bytes) -> str:
        """ "lfs" or "regular", by the size, the repository's .gitattributes, and whether it is text."""
        attributes = commit.files.get(".gitattributes")
        lines = attributes.content.decode().splitlines() if attributes is not None else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line.split()]
        named = any(fnmatch(path, pattern) or fnmatch(path.rpartition("/")[2], pattern) for pattern in patterns)
        return "lfs" if named or size > LFS_THRESHOLD or b"\0" in sample else "regular"

    # The Hub's JSON

    def entry(self, commit: Commit, path: str) -> dict[str, Any] | None:
        """A file or folder as in a listing of a tree, or None where there is none."""
        oid = commit.git_id(path)
        if oid is None:
            return None
        file = commit.files.get(path)
        entry: dict[str, Any] = {"type": "directory", "oid": oid, "size": 0, "path": path}
        if file is not None:
            entry |= {"type": "file", "size": len(file.content)}
            if file.is_lfs:
                pointer = {"pointerSize": len(file.git_content)}
                entry["lfs"] = {"oid": file.sha256, "size": len(file.content), **pointer}
        return entry

    def tree(self, commit: Commit, folder: str, recursive: bool) -> list[str]:
        """The paths of the files and folders in a folder ("" for the root)."""
        prefix = f"{folder}/" if folder else ""
        paths = set()
        for path in commit.files:
            if path.startswith(prefix):
                parts = path.removeprefix(prefix).split("/")
                depths = range(1, len(parts) + 1) if recursive else [1]
                paths |= {prefix + "/".join(parts[:depth]) for depth in depths}
        if folder and not paths:
            raise Refusal(404, f"{folder} does not exist on {commit.id}", "EntryNotFound")
        return sorted(paths)

    def info(self, commit: Commit, blobs: bool, expand: list[str]) -> dict[str, Any]:
        """What `model_info` gets; with `expand`, only the fields it names."""
        siblings = []
        for path, file in sorted(commit.files.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if blobs:
                sibling |= {"size": len(file.content), "blobId": file.blob_id}
                if file.is_lfs:
                    pointer = {"pointerSize": len(file.git_content)}
                    sibling["lfs"] = {"sha256": file.sha256, "size": len(file.content), **pointer}
            siblings.append(sibling)
        first = list(self.history(commit))[-1]
        fields = {
            "author": self.name.split("/")[0],
            "sha": commit.id,
            "lastModified": commit.date,
            "createdAt": first.date,
            "private": self.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "siblings": siblings,
        }
        if self.sdk is not None:
            fields |= {"sdk": self.sdk, "runtime": {"stage": "NO_APP_FILE", "hardware": {"current": None}}}
        unknown = set(expand) - set(fields)
        if unknown:
            raise Refusal(400, f"expand: this server knows {sorted(fields)}, not {sorted(unknown)}")
        if expand:
            fields = {name: value for name, value in fields.items() if name in expand}
        return {"id": self.name, **fields}

    def refs(self) -> dict[str, Any]:
        def listing(refs: dict[str, str], folder: str) -> list[dict[str, str]]:
            return [
                {"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": target} for name, target in refs.items()
            ]

        return {
            "branches": listing(self.branches, "heads"),
            "tags": listing(self.tags, "tags"),
            "converts": [],
            "pullRequests": [],
        }
