# SPDX-License-Identifier: Apache-2.0
"""Before each optimizer step: is it finite on every process, and was any process told to stop?

All processes decide together, by one sum over three numbers.
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
        self.decision: Decision | None = None
        self.grad_norm: torch.Tensor | float = 0.0  # that of the step, once it is known

    def begin_step(self) -> None:
        self._losses_are_finite.fill_(True)
        self.decision = None

    def see(self, loss: torch.Tensor) -> None:
        """Look at the loss of a batch of the step, without waiting for the device."""
        self._losses_are_finite &= torch.isfinite(loss)

    def decide(self, told_to_stop: bool, scale: float = 1.0) -> Decision:
        """Decide about the step, on all processes together.

        `scale` is what fp16's gradients are multiplied by; from 1 on down it is not to blame for an overflow.
        """
        norm = torch.as_tensor(self.grad_norm, device=self._losses_are_finite.device)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of sharded parameters
        stop = torch.full_like(self._losses_are_finite, told_to_stop)
        votes = torch.stack([~self._losses_are_finite, ~torch.isfinite(norm), stop]).float()
        losses, gradients, stops = self._reduce(votes).tolist()
        self.must_stop = stops > 0
        if losses == gradients == 0:
            self.decision, self.skipped_in_a_row = Decision.TAKE, 0
        elif losses == 0 and scale > 1:
            self.decision = Decision.RESCALE
        else:
            self.decision, self.skipped_in_a_row = Decision.SKIP, self.skipped_in_a_row + 1
        return self.decision

    def any_process(self, told_to_stop: bool) -> bool:
        """Whether any process was told to stop; every one must call it."""
        vote = torch.full_like(self._losses_are_finite, told_to_stop).float()
        return self._reduce(vote).item() > 0

    def write_skipped(self, step: int, sampler: MixtureSampler, dataset: CoTrainingDataset) -> None:
        """Add the samples of a step to the list of skipped steps, a line of JSON for each step."""
        path = Path(self._output_dir) / SKIPPED_STEPS
        entry = {"step": step, "samples": _samples_of_step(step, sampler, dataset)}
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        logger.warning(f"step {step}: loss or gradient is not finite, skipped; its samples are in {path}")

    def check_skipped(self, step: int) -> None:
        """Raise a [`NonFiniteTrainingError`] if too many steps in a row were skipped, up to `step`."""
        if self.skipped_in_a_row >= self._max_skipped_steps:
            raise NonFiniteTrainingError(
                f"loss or gradient were not finite in {self.skipped_in_a_row} steps in a row, up to step {step}: a lower "
                "learning rate, a longer warm-up or gradient clipping may help; their samples are in "
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
