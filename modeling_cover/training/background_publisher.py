# SPDX-License-Identifier: Apache-2.0
"""A Trainer that publishes what it saves while it trains, from a thread, so that training never waits for a network."""

import os
import shlex
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo
from transformers import Trainer
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from ..hub.publishing import LAST_CHECKPOINT, HubRepository, PublishingError, publish, with_patience
from .checkpoints import CheckpointWriter


logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _Upload:
    name: str
    snapshot: Path
    message: str
    training_state: str | None


class BackgroundPublisher:
    """Uploads checkpoints of a run from a thread, one at a time. Nothing that goes wrong reaches the run: it is logged.

    Args:
        repository: where to.
        output_dir: of the run. Files in upload are kept there under names of their own, as hard links.
        keep_all: upload each; by default one that still waits, or whose upload fails, gives way to a newer one.
    """

    def __init__(self, repository: HubRepository, output_dir: str | os.PathLike, keep_all: bool = False):
        self.repository = repository
        self.keep_all = keep_all
        self._writer = CheckpointWriter(output_dir)
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
            snapshot = self._writer.link(checkpoint)
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
                f"push_to_hub: {what}: {error}. Training goes on; its checkpoints are whole in {self._writer.output_dir}"
            )


class PublishingTrainer(Trainer):
    """With `push_to_hub`, publishes each save in the background, and the end of training with the model card.

    Of transformers' options, `hub_strategy` says what of a save is published: "every_save" the model, "checkpoint" also what a
    run needs to go on, as `last-checkpoint`, "all_checkpoints" each as `checkpoint-...`, "end" nothing before the end. Where
    saves are faster than the network, those that wait give way to newer ones, unless `hub_always_push` is set.
    """

    _publisher: BackgroundPublisher | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Have the repository made, by a thread, so that a network that fails is no reason not to train."""
        if not self.is_world_process_zero():
            return
        repository = self._hub_repository(token, private)
        self.hub_model_id = repository.repo_id
        if self._publisher is None:
            keep_all = self.args.hub_always_push or self.args.hub_strategy == HubStrategy.ALL_CHECKPOINTS
            self._publisher = BackgroundPublisher(repository, self.args.output_dir, keep_all)

    def _hub_repository(
        self, token: str | None = None, private: bool | None = None, revision: str | None = None
    ) -> HubRepository:
        return HubRepository(
            self.args.hub_model_id or Path(self.args.output_dir).absolute().name,
            revision or self.args.hub_revision,
            self.args.hub_private_repo if private is None else private,
            token or self.args.hub_token,
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Have a checkpoint published, in the background."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        self.init_hf_repo()
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        by_epoch = self.args.save_strategy == SaveStrategy.EPOCH
        place = f"epoch {int(self.state.epoch)}" if by_epoch else f"step {self.state.global_step}"
        name = Path(checkpoint_folder).name
        folders = {HubStrategy.CHECKPOINT: LAST_CHECKPOINT, HubStrategy.ALL_CHECKPOINTS: name}
        self._publisher.submit(
            Path(checkpoint_folder), f"Training in progress, {place}", folders.get(self.args.hub_strategy)
        )

    def _finish_current_push(self) -> None:
        """Wait for the last save's upload: for a script that only trains, it is the end."""
        if self._publisher is not None and (name := self._publisher.wait(self.args.hub_patience)) is not None:
            checkpoint = os.path.join(self.args.output_dir, name)
            logger.warning(
                f"push_to_hub: {checkpoint} is not published yet, and not waited for any more. "
                f"{_what_to_do(checkpoint, self._publisher.repository)}"
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model, and with `push_to_hub` publish it. All processes must call it."""
        self._save_whole(output_dir)
        if self.args.push_to_hub and not _internal_call:
            try:
                self._publish_end(output_dir or self.args.output_dir, "Model save", self._hub_repository())
            except PublishingError as error:
                logger.warning(str(error))

    def _save_whole(self, output_dir: str | None) -> None:
        super().save_model(output_dir, _internal_call=True)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> CommitInfo | None:
        """Save the model in `output_dir` and publish it, with its card. All processes must call it.

        While the network fails it is tried again, for `hub_patience` seconds.

        Args:
            commit_message: of the commit.
            blocking: nothing but True.
            token, revision, private: as of [`HubRepository`]; by default those of the training arguments.
            kwargs: of [`create_model_card`](CoverTrainer.create_model_card).

        Returns:
            The commit, on the main process.

        Raises:
            PublishingError: if it cannot be published; the message says what to do.
        """
        if not blocking:
            raise ValueError("blocking: the end of training is published while it is waited for, got False")
        self.save_model(_internal_call=True)
        if self.is_world_process_zero():
            self.create_model_card(**kwargs)
        repository = self._hub_repository(token, private, revision)
        return self._publish_end(self.args.output_dir, commit_message, repository)

    def _publish_end(self, folder: str, message: str, repository: HubRepository) -> CommitInfo | None:
        if not self.is_world_process_zero():
            return None
        if self._publisher is not None:
            self._publisher.close(self.args.hub_patience)
            self._publisher = None
        logger.info(f"Publishing {folder} to {repository.repo_id}")
        try:
            return publish(folder, repository, message, patience=self.args.hub_patience)
        except PublishingError as error:
            raise PublishingError(
                f"push_to_hub: {folder} is not published: {error}. {_what_to_do(folder, repository)}"
            ) from error


def _what_to_do(folder: str, repository: HubRepository) -> str:
    """The command that publishes a checkpoint as the run would have."""
    command = ["python", "examples/publish.py", folder, repository.repo_id]
    command += ["--private"] if repository.private else []
    command += ["--revision", repository.revision] if repository.revision else []
    return f"The checkpoint there is whole; to publish it, run: {shlex.join(command)}"
