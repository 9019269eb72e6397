# SPDX-License-Identifier: Apache-2.0
"""Publishes what a run saves while it trains, from a thread, so that training never waits for a network."""

import os
import shlex
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import TrainerState
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from ..hub.publishing import LAST_CHECKPOINT, HubRepository, PublishingError, publish, with_patience
from .arguments import CoverTrainingArguments
from .checkpoints import RunCheckpoints


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _Upload:
    name: str
    snapshot: Path
    message: str
    training_state: str | None


class BackgroundPublisher:
    """Uploads checkpoints of a run from a thread, one at a time. Nothing that goes wrong reaches the run: it is
    logged.

    Args:
        repository: where to.
        output_dir: of the run. Files in upload are kept there under names of their own, as hard links.
        keep_all: upload each; by default one that still waits, or whose upload fails, gives way to a newer one.
    """

    def __init__(self, repository: HubRepository, output_dir: str | os.PathLike, keep_all: bool = False):
        self.repository = repository
        self.keep_all = keep_all
        self._checkpoints = RunCheckpoints(output_dir)
        self._waiting: list[_Upload] = []
        self._uploading: _Upload | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._stops = threading.Event()  # what is being uploaded is not tried again
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def submit(self, checkpoint: Path, message: str, training_state: str | None = None) -> None:
        """Have a checkpoint uploaded as it is now. It may be removed afterwards."""
        try:
            snapshot = self._checkpoints.link(checkpoint)
        except OSError as error:  # a full disk, say: no reason not to train
            logger.warning(
                f"push_to_hub: {checkpoint.name} is not published, as its files cannot be kept for it: {error}"
            )
            return
        upload = _Upload(checkpoint.name, snapshot, message, training_state)
        with self._changed:
            if not self.keep_all:
                self._give_way()
            self._waiting.append(upload)
            self._changed.notify_all()

    def wait(self, patience: float) -> str | None:
        """Wait until each checkpoint is uploaded or given up, for `patience` seconds at most.

        Returns:
            The name of the newest one that is not, if any.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and self._uploading is None, patience)
            left = [*([self._uploading] if self._uploading else []), *self._waiting]
        return left[-1].name if left else None

    def close(self, patience: float) -> None:
        """Take no more checkpoints, and wait until nothing is being uploaded any more, or for `patience` seconds."""
        with self._changed:
            self._is_closed = True
            self._stops.set()
            if not self.keep_all:
                self._give_way()
            self._changed.notify_all()
        self._thread.join(None if self.keep_all else patience)

    def _give_way(self) -> None:
        self._stops.set()
        for older in self._waiting:
            logger.info(f"{older.name} is not published: a newer one is there")
            shutil.rmtree(older.snapshot, ignore_errors=True)
        self._waiting.clear()

    def _run(self) -> None:
        # A token that is refused should be known now, not after hours.
        repo_id = self.repository.repo_id
        self._report(f"{repo_id} cannot be made", lambda: with_patience(self.repository.create, repo_id, patience=0))
        while True:
            with self._changed:
                self._uploading = None
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
                upload = self._uploading = self._waiting.pop(0)
                if not self._is_closed:
                    self._stops.clear()
            self._report(f"{upload.name} is not published", lambda upload=upload: self._publish(upload))
            shutil.rmtree(upload.snapshot, ignore_errors=True)

    def _publish(self, upload: _Upload) -> None:
        commit = publish(
            upload.snapshot, self.repository, upload.message, upload.training_state, float("inf"), self._stops
        )
        logger.info(f"{upload.name} is published: {commit.commit_url}")

    def _report(self, what: str, action: Callable[[], Any]) -> None:
        try:
            action()
        except PublishingError as error:
            logger.warning(
                f"push_to_hub: {what}: {error}. Training continues; its checkpoints are whole in {self._checkpoints.output_dir}"
            )


class RunPublisher:
    """With `push_to_hub`, publishes each save of a run in the background, and the end of training with the model card.

    Of transformers' options, `hub_strategy` says what of a save is published: "every_save" the model, "checkpoint"
    also what a run needs to resume, as `last-checkpoint`, "all_checkpoints" each as `checkpoint-...`, "end" nothing
    before the end. Where saves are faster than the network, those that wait give way to newer ones, unless
    `hub_always_push` is set.

    Its methods are the main process's.

    Args:
        args: the run's training arguments.
    """

    def __init__(self, args: CoverTrainingArguments):
        self._args = args
        self._background: BackgroundPublisher | None = None

    def repository(
        self, token: str | None = None, private: bool | None = None, revision: str | None = None
    ) -> HubRepository:
        """Where the run is published; what is given comes before the training arguments."""
        args = self._args
        return HubRepository(
            args.hub_model_id or Path(args.output_dir).absolute().name,
            revision or args.hub_revision,
            args.hub_private_repo if private is None else private,
            token or args.hub_token,
        )

    def begin(self, token: str | None = None, private: bool | None = None) -> str:
        """Have the repository made, by a thread, so that a network that fails is no reason not to train; return its
        id."""
        repository = self.repository(token, private)
        if self._background is None:
            keep_all = self._args.hub_always_push or self._args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
            self._background = BackgroundPublisher(repository, self._args.output_dir, keep_all)
        return repository.repo_id

    def publish_save(self, checkpoint: Path, state: TrainerState) -> None:
        """Have a checkpoint published, in the background."""
        self.begin()
        by_epoch = self._args.save_strategy == SaveStrategy.EPOCH
        place = f"epoch {int(state.epoch)}" if by_epoch else f"step {state.global_step}"
        folders = {HubStrategy.CHECKPOINT: LAST_CHECKPOINT, HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        message = f"Training in progress, {place}"
        self._background.submit(checkpoint, message, folders.get(self._args.hub_strategy))

    def wait(self) -> None:
        """Wait for the last save's upload: for a script that only trains, it is the end."""
        if self._background is not None and (name := self._background.wait(self._args.hub_patience)) is not None:
            checkpoint = os.path.join(self._args.output_dir, name)
            logger.warning(
                f"push_to_hub: {checkpoint} is not published yet, and not waited for any more. "
                f"{_what_to_do(checkpoint, self._background.repository)}"
            )

    def publish_model(self, folder: str) -> None:
        """Publish a model that was saved; what goes wrong is logged."""
        try:
            self.publish_end(folder, "Model save")
        except PublishingError as error:
            logger.warning(str(error))

    def publish_end(
        self,
        folder: str,
        message: str,
        token: str | None = None,
        private: bool | None = None,
        revision: str | None = None,
    ) -> CommitInfo:
        """Publish the end of training to [`repository`]. While the network fails it is tried again, for `hub_patience`
        seconds.

        Raises:
            PublishingError: if it is not published by then; the message says what to do.
        """
        repository = self.repository(token, private, revision)
        if self._background is not None:
            self._background.close(self._args.hub_patience)
            self._background = None
        logger.info(f"Publishing {folder} to {repository.repo_id}")
        try:
            return publish(folder, repository, message, patience=self._args.hub_patience)
        except PublishingError as error:
            raise PublishingError(
                f"push_to_hub: {folder} is not published: {error}. {_what_to_do(folder, repository)}"
            ) from error


def _what_to_do(folder: str, repository: HubRepository) -> str:
    """The command that publishes a checkpoint as the run would have."""
    command = ["cover", "publish", folder, repository.repo_id]
    command += ["--private"] if repository.private else []
    command += ["--revision", repository.revision] if repository.revision else []
    return f"The checkpoint there is whole; to publish it, run: {shlex.join(command)}"
