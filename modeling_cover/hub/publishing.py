# SPDX-License-Identifier: Apache-2.0
"""What of a checkpoint's folder goes to the Hub, and how it gets there through a network that fails.

Only weights as safetensors, configurations, the model's code, its card and the curves of its training are published;
the state of the optimizer only where it is asked for; nothing that names a folder, a user or a token of this machine.
"""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import get_session, httpx, validate_repo_id
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import logging

from ..model.file_access_cover import causes_of, without_secrets
from .checkpoint_files import CURVES_NAME, QUARANTINE_NAME, STATE_NAME, SUMMARY_NAME, SUMS_NAME, TRAINING_STATE
from .hashes import file_hash, read_sums, sums_text
from .model_card import MODEL_CARD_NAME, build_model_card, is_generated_card


logger = logging.get_logger(__name__)

# Another checkpoint's weights in the repository would be loaded in place of these, or beside them.
_WEIGHTS = r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
_CONFIG, _PROCESSOR = "config.json", "video_preprocessor_config.json"
_PUBLISHED = re.compile(
    rf"{_WEIGHTS}|{_CONFIG}|{_PROCESSOR}|\w+_cover\.py|{MODEL_CARD_NAME}|{SUMMARY_NAME}|{CURVES_NAME}", re.ASCII
)

LAST_CHECKPOINT = "last-checkpoint"

# Answers of a server that may be another a moment later: timeouts, conflicts with another commit, too many requests.
_TRANSIENT_STATUS = {408, 409, 412, 429}
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0  # seconds between two attempts
LONGEST_SILENCE = 120.0  # seconds in which nothing is sent nor received

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}")
_HOME = re.compile(r"(?:/home/|/Users/|[A-Za-z]:\\+Users\\+)[\w.-]+")

Files = dict[str, Path | bytes]


class PublishingError(ValueError):
    """A checkpoint could not be published; the message says why and what to do."""


# ---- What is published ----


def files_to_publish(folder: str | os.PathLike, repo_id: str, training_state: str | None = None) -> Files:
    """What of a checkpoint's folder is published: by the path in the repository, a file here or the content itself.

    Args:
        folder: as [`~transformers.PreTrainedModel.save_pretrained`] or a trainer writes it.
        repo_id: of the repository, which the model card names. A card that is missing or was generated is generated
            again.
        training_state: the folder in the repository for all that a run needs to resume; by default that is left out.

    Raises:
        ValueError: if the checkpoint is not whole, or a file names a folder of this machine or a token.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected the folder of a checkpoint, there is none")
    files: Files = {
        path.name: path for path in sorted(folder.iterdir()) if path.is_file() and _PUBLISHED.fullmatch(path.name)
    }
    _check_whole(folder, files)
    card = files.get(MODEL_CARD_NAME)
    if card is None or is_generated_card(card):
        files[MODEL_CARD_NAME] = str(build_model_card(folder, repo_id)).encode()
    if training_state is not None:
        files |= {f"{training_state}/{name}": file for name, file in _resumable(folder, files).items()}
    check_nothing_private(files, folder)
    return files


def _check_whole(folder: Path, files: Mapping[str, Any]) -> None:
    for name in (_CONFIG, _PROCESSOR):
        if name not in files:
            raise ValueError(f"{folder}: {name} is missing, expected a checkpoint with its video processor")
    index = folder / "model.safetensors.index.json"
    weights = ["model.safetensors"]
    if index.is_file():
        weights = sorted(set(_read_json(index)["weight_map"].values()))
    config = _read_json(folder / _CONFIG)
    code = [f"{name.partition('.')[0]}.py" for name in config.get("auto_map", {}).values()]
    if missing := [name for name in [*weights, *code] if name not in files]:
        raise ValueError(f"{folder}: {missing[0]} is missing, so the checkpoint would not load")


def _resumable(folder: Path, files: Files) -> Files:
    """The files of a checkpoint that a run can resume from, without those that name folders of this machine."""
    state_path, trainer_state_path = folder / TRAINING_STATE / STATE_NAME, folder / TRAINER_STATE_NAME
    if not state_path.is_file():
        raise ValueError(f"{folder} has no {TRAINING_STATE}: give a folder checkpoint-... that a trainer has written")
    trainer_state = _read_json(trainer_state_path)
    if trainer_state["best_model_checkpoint"] is not None:
        trainer_state["best_model_checkpoint"] = Path(trainer_state["best_model_checkpoint"]).name
    kept: Files = {name: file for name, file in files.items() if name != MODEL_CARD_NAME}
    kept |= {
        f"{TRAINING_STATE}/{path.name}": path
        for path in sorted((folder / TRAINING_STATE).iterdir())
        if path.name not in (STATE_NAME, SUMS_NAME, QUARANTINE_NAME)
    }
    kept[TRAINER_STATE_NAME] = json.dumps(trainer_state, indent=2, sort_keys=True).encode()
    state = _read_json(state_path)
    state["files"] = {name: _size(file) for name, file in kept.items()}
    kept[f"{TRAINING_STATE}/{STATE_NAME}"] = json.dumps(state, indent=1).encode()
    written = _read(folder / TRAINING_STATE / SUMS_NAME, read_sums)
    hashes = {
        name: hashlib.sha256(file).hexdigest() if isinstance(file, bytes) else written.get(name) or file_hash(file)
        for name, file in kept.items()
    }
    return {**kept, f"{TRAINING_STATE}/{SUMS_NAME}": sums_text(hashes).encode()}


def _read_json(path: Path) -> Any:
    return _read(path, lambda path: json.loads(path.read_text(encoding="utf-8")))


def _read(path: Path, read: Callable[[Path], Any]) -> Any:
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def _size(file: Path | bytes) -> int:
    return len(file) if isinstance(file, bytes) else file.stat().st_size


def check_nothing_private(files: Mapping[str, Path | bytes], folder: Path) -> None:
    """Raise a `ValueError` that names the file if one holds a folder of this machine, a user's folder or a token."""
    here = {str(path) for path in (Path.home(), Path.cwd(), folder.absolute()) if len(path.parts) > 1}
    token = get_token()
    for name, file in files.items():
        if not name.endswith((".json", ".py", ".md", ".jsonl")):
            continue
        content = (file if isinstance(file, bytes) else file.read_bytes()).decode("utf-8", errors="replace")
        if _TOKEN.search(content) or (token and token in content):
            raise ValueError(f"{name} holds an access token of the Hub: take it out, and revoke it")
        found = next((path for path in here if re.search(rf"(?<![\w.-]){re.escape(path)}\b", content)), None)
        if found is None and (match := _HOME.search(content)) is not None:
            found = match[0]
        if found is not None:
            raise ValueError(f"{name} names a folder of this machine, {found}: take it out before it is published")


# ---- How it is published ----


@dataclass(frozen=True)
class HubRepository:
    """A model repository of the Hub, and one branch of it.

    Raises:
        ValueError: if there can be no repository of that name.
    """

    repo_id: str  # `org/name`, or `name` of the token's owner
    revision: str | None = None  # a branch, made if need be; by default the main one
    private: bool | None = None  # make the repository private; by default a new one is as the owner's settings have it
    token: str | None = field(default=None, repr=False)  # by default the one that `hf auth login` has stored

    def __post_init__(self):
        validate_repo_id(self.repo_id)

    @property
    def api(self) -> HfApi:
        session = get_session()
        if session.timeout.read is None:
            # huggingface_hub waits for ever for some answers, and would have a run whose network is silent do so at
            # its end.
            session.timeout = LONGEST_SILENCE
        return HfApi(token=self.token, library_name="modeling_cover")

    def create(self) -> str:
        """Make the repository and the branch, where they are not there yet, and return its whole name.

        Raises:
            ValueError: if it shall be private and is there already, in public.
        """
        repo_id = self.api.create_repo(self.repo_id, private=self.private, exist_ok=True).repo_id
        if self.private and not self.api.repo_info(repo_id).private:
            raise ValueError(f"{repo_id} is there already, and public: make it private in its settings first")
        if self.revision is not None:
            self.api.create_branch(repo_id, branch=self.revision, exist_ok=True)
        return repo_id

    def commit(self, repo_id: str, files: Mapping[str, Path | bytes], message: str) -> CommitInfo:
        """Put files into the repository, all or none of them; those of other weights go."""
        there = self.api.list_repo_files(repo_id, revision=self.revision)
        stale = [name for name in there if name not in files and re.fullmatch(_WEIGHTS, name)]
        operations = [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, file) for name, file in files.items()),
        ]
        return self.api.create_commit(repo_id, operations, commit_message=message, revision=self.revision)

    def tag(self, commit: CommitInfo, name: str) -> None:
        """Give a commit a name that stays, to load it by.

        Raises:
            ValueError: if another commit has that name.
        """
        repo_id = commit.repo_url.repo_id
        try:
            self.api.create_tag(repo_id, tag=name, revision=commit.oid)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            # It may be of an attempt whose answer was lost.
            commits = [tag.target_commit for tag in self.api.list_repo_refs(repo_id).tags if tag.name == name]
            if commits != [commit.oid]:
                raise ValueError(f"{repo_id}: another commit has the tag {name} already") from error


def publish(
    folder: str | os.PathLike,
    repository: HubRepository,
    message: str = "Upload of a CoVeR checkpoint",
    training_state: str | None = None,
    patience: float = 300.0,
    stopped: threading.Event | None = None,
) -> CommitInfo:
    """Publish a checkpoint, see [`files_to_publish`], by one commit. While the network or the Hub fail, it is tried
    again.

    Args:
        folder, training_state: as in [`files_to_publish`].
        repository: where to.
        message: of the commit.
        patience: seconds after which a failing network is given up.
        stopped: once it is set, it is not tried again.

    Raises:
        PublishingError: if it is given up, the Hub refuses it, or the checkpoint must not be published as it is.
    """

    def attempt() -> CommitInfo:
        repo_id = repository.create()
        return repository.commit(repo_id, files_to_publish(folder, repo_id, training_state), message)

    return with_patience(attempt, repository.repo_id, patience, stopped)


def with_patience(
    attempt: Callable[[], Any], repo_id: str, patience: float, stopped: threading.Event | None = None
) -> Any:
    """What `attempt` returns, in the end, see [`publish`]."""
    stopped = stopped or threading.Event()
    started, wait = time.monotonic(), _FIRST_WAIT
    while True:
        try:
            return attempt()
        except Exception as error:
            reason = explain(error, repo_id)
            left = patience - (time.monotonic() - started)
            if not is_transient(error) or left <= 0 or stopped.is_set():
                raise PublishingError(reason) from error
            wait = min(wait, left)
            logger.warning(f"{repo_id}: {reason}; the next attempt is in {wait:.0f} s")
        stopped.wait(wait)
        wait = min(2 * wait, _LONGEST_WAIT)


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed. huggingface_hub wraps what goes wrong while it uploads a large file."""
    chain = list(causes_of(error))
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain):
        return False
    for cause in chain:
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            return status >= 500 or status in _TRANSIENT_STATUS
        if isinstance(cause, httpx.TransportError | ConnectionError | TimeoutError):
            return True
        # A gateway's page of HTML where JSON was expected; of a file here, another error tells.
        if isinstance(cause, json.JSONDecodeError) and (cause is error or isinstance(error, RuntimeError)):
            return True
    # hf_xet tells of a lost network by a bare RuntimeError.
    return type(chain[-1]) is RuntimeError


def explain(error: BaseException, repo_id: str) -> str:
    """What went wrong, and what to do about it, on one line."""
    for cause in causes_of(error):
        if isinstance(cause, LocalTokenNotFoundError):
            return "there is no access token: log in with `hf auth login`, or set HF_TOKEN"
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            if status == 401:
                return "the Hub refuses the access token: log in again with `hf auth login`, or set HF_TOKEN"
            if status == 403 and cause.response.request.url.host == httpx.URL(constants.ENDPOINT).host:
                return f"the access token may not write to {repo_id}: log in with one that may, by `hf auth login`"
            return f"the Hub answers {status}: {_one_line(cause.server_message or cause)}"
        if isinstance(cause, httpx.TransportError):
            return f"the Hub cannot be reached ({_one_line(cause) or type(cause).__name__})"
    return _one_line(error)


def _one_line(message: object) -> str:
    return " ".join(without_secrets(str(message)).split())
