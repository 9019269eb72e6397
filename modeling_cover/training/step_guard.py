# SPDX-License-Identifier: Apache-2.0
"""Before each optimizer step: is it finite on every process, and was any process told to stop?

All processes decide together, by one sum over three numbers. Where the optimizer can skip a step on the device, the
sum is read a step later, so that nobody waits for the device.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from ..data.mixture import MixtureSampler
from ..data.samples import CoTrainingDataset
from ..model.video_decoding_cover import VideoDecodingError
from .arguments import CoverTrainingArguments
from .checkpoints import last_checkpoint


logger = logging.get_logger(__name__)

SKIPPED_STEPS = "skipped_steps.jsonl"


class NonFiniteTrainingError(ValueError):
    """Loss or gradient were not finite for so many steps in a row that training cannot be trusted to recover."""


class TrainingOutOfMemoryError(RuntimeError):
    """A step did not fit into memory."""


class EvaluationAbandonedError(Exception):
    """An evaluation during training was told to stop."""


class Decision(Enum):
    """What becomes of an optimizer step."""

    TAKE = "take"
    SKIP = "skip"
    RESCALE = "rescale"  # the gradient has overflown the scale that fp16 needs, which its scaler then lowers


class StepGuard:
    """Decides whether an optimizer step is taken, and knows whether the run must stop after it.

    `reduce` sums a tensor over processes, all of which call it; by default there is one process. The list of skipped
    steps is in `output_dir`, and `max_skipped_steps` in a row end the run.
    """

    def __init__(
        self,
        device: torch.device,
        reduce: Callable[[torch.Tensor], torch.Tensor] = torch.clone,
        output_dir: str | os.PathLike = ".",
        max_skipped_steps: int = 10,
    ):
        self._reduce = reduce
        self._output_dir = output_dir
        self._max_skipped_steps = max_skipped_steps
        self._losses_are_finite = torch.ones((), dtype=torch.bool, device=device)
        self.begin_session()

    def begin_session(self) -> None:
        self.must_stop = False
        self.skipped_in_a_row = 0
        self.grad_norm: torch.Tensor | float = 0.0  # that of the step, once it is known
        self.is_open = False  # a step that was voted on, while what follows from it is not done
        self._step, self._scale, self._votes, self._arrived = 0, 1.0, torch.zeros(3), None
        self._decision: Decision | None = None

    def begin_step(self) -> None:
        self._losses_are_finite.fill_(True)

    def see(self, loss: torch.Tensor) -> None:
        """Look at the loss of a batch of the step, without waiting for the device."""
        self._losses_are_finite &= torch.isfinite(loss)

    def vote(self, step: int, told_to_stop: bool, scale: float = 1.0) -> torch.Tensor:
        """Have all processes vote on a step, without waiting for the device.

        `scale` is what fp16's gradients are multiplied by; from 1 on down it is not to blame for an overflow.

        Returns:
            On the device, 1.0 if loss or gradient are not finite on any process, else 0.0.
        """
        norm = torch.as_tensor(self.grad_norm, device=self._losses_are_finite.device)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded parameters
        stop = torch.full_like(self._losses_are_finite, told_to_stop)
        votes = torch.stack([~self._losses_are_finite, ~torch.isfinite(norm), stop]).float()
        votes = self._reduce(votes)
        self.is_open, self._decision, self._step, self._scale = True, None, step, scale
        self._votes, self._arrived = votes.to("cpu", non_blocking=votes.is_cuda), None
        if votes.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        return votes[:2].amax().clamp(max=1)

    def decide(self) -> Decision:
        """What was decided about the last step that was voted on, once the votes are here."""
        if self._decision is not None:
            return self._decision
        if self._arrived is not None:
            self._arrived.synchronize()
        losses, gradients, stops = self._votes.tolist()
        self.must_stop = stops > 0
        if losses == gradients == 0:
            self._decision, self.skipped_in_a_row = Decision.TAKE, 0
        elif losses == 0 and self._scale > 1:
            self._decision = Decision.RESCALE
        else:
            self._decision, self.skipped_in_a_row = Decision.SKIP, self.skipped_in_a_row + 1
        return self._decision

    def close(self) -> Decision:
        """As [`decide`], by who does what follows from it."""
        self.is_open = False
        return self.decide()

    def any_process(self, told_to_stop: bool) -> bool:
        """Whether any process was told to stop; every one must call it."""
        vote = torch.full_like(self._losses_are_finite, told_to_stop).float()
        return self._reduce(vote).item() > 0

    def write_skipped(self, sampler: MixtureSampler, dataset: CoTrainingDataset) -> None:
        """Add the samples of the step to the list of skipped steps, a line of JSON for each step."""
        path, step = Path(self._output_dir) / SKIPPED_STEPS, self._step
        entry = {"step": step, "samples": _samples_of_step(step, sampler, dataset)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        logger.warning(f"step {step}: loss or gradient is not finite, skipped; its samples are in {path}")

    def check_skipped(self) -> None:
        """Raise a [`NonFiniteTrainingError`] if too many steps in a row were skipped."""
        if self.skipped_in_a_row >= self._max_skipped_steps:
            raise NonFiniteTrainingError(
                f"loss or gradient were not finite in {self.skipped_in_a_row} steps in a row, up to step {self._step}: a "
                "lower learning rate, a longer warm-up or gradient clipping may help; their samples are in "
                f"{Path(self._output_dir) / SKIPPED_STEPS}. {last_checkpoint(self._output_dir)}"
            )


def _samples_of_step(step: int, sampler: MixtureSampler, dataset: CoTrainingDataset) -> list[dict[str, Any]]:
    samples = []
    for reference in islice(sampler.references(step * sampler.step_size), sampler.step_size):
        try:
            name = dataset.sample_name(reference)
        except (VideoDecodingError, OSError) as error:
            name = f"unknown: {error}"
        samples.append({"position": reference.position, "dataset": reference.dataset, "sample": name})
    return samples


@contextmanager
def memory_explained(step: Callable[[], int], args: CoverTrainingArguments) -> Iterator[None]:
    """Inside, where a step does not fit into memory, the error says what to do. `step` returns the number of steps
    taken."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingOutOfMemoryError(
            f"process {args.process_index} ran out of memory in step {step()} with batches of "
            f"{args.per_device_train_batch_size}: {error}. Halve per_device_train_batch_size and double "
            "gradient_accumulation_steps, which changes no gradient, or set activation_checkpointing. "
            f"{last_checkpoint(args.output_dir)}"
        ) from error
