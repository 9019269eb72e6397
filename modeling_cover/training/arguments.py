# SPDX-License-Identifier: Apache-2.0
"""What co-training adds to the arguments of transformers' Trainer."""

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import NoReturn

from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SchedulerType

from ..recipe.checks import check_choice, check_number, check_positive
from ..recipe.recipe import Recipe
from .launching import check_processes


LOSS_REDUCTIONS = ("per_dataset", "per_sample")
TRAINED_PARTS = ("all", "heads", "temporal_and_heads")  # beside "last_<n>_layers"
# What chooses the best checkpoint by default: every mixture that can be evaluated has it.
BEST_METRIC = "eval_mean_score"
# Of logging_steps, as a share of all steps: a run has 50 logs, or more of at most so many steps each.
LOGS_OF_A_RUN, MOST_STEPS_A_LOG = 0.02, 50
# Schedules that go by what was measured: their rates are in their state, and no function of the step.
MEASURING_SCHEDULES = ("reduce_lr_on_plateau", "greedy")


@dataclass
class CoverTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] and what co-training adds to them."""

    loss_reduction: str = field(
        default="per_dataset",
        metadata={
            "help": "'per_dataset': the paper's loss, the sum over datasets of weight times the mean over the "
            "dataset's rows in the global batch; 'per_sample': the sum over rows of the weight of the row's dataset "
            "times its loss, divided by all rows of the global batch.",
            "choices": LOSS_REDUCTIONS,
        },
    )
    learning_rate_drop_epochs: list[float] | None = field(
        default=None,
        metadata={
            "help": "Multiply the learning rate by learning_rate_drop_factor from each of these epochs on (the paper: "
            "11 and 15 of 20). Needs a constant lr_scheduler_type."
        },
    )
    learning_rate_drop_factor: float = field(
        default=0.1, metadata={"help": "What learning_rate_drop_epochs multiply the learning rate by."}
    )

    layer_decay: float = field(
        default=1.0,
        metadata={
            "help": "The learning rate of a layer is this times that of the layer above it; of the last layer, this times "
            "learning_rate, and of the embeddings the least."
        },
    )
    new_parameters_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "The learning rate of what an image checkpoint does not bring: temporal attention, time embeddings "
            "and heads. Layer decay leaves it as it is. By default they have the same as the others."
        },
    )
    trained_part: str = field(
        default="all",
        metadata={
            "help": "'all', or just 'heads', 'temporal_and_heads' or, say, 'last_4_layers' with what follows them; the "
            "rest keeps its weights.",
        },
    )
    ema_decay: float | None = field(
        default=None,
        metadata={
            "help": "Evaluate and save an exponential moving average of the weights with this decay, such as 0.9999; in "
            "the first updates, less."
        },
    )
    activation_memory_budget: float = field(
        default=1.0,
        metadata={
            "help": "With torch_compile: the share of activations that is kept for the backward pass, from 0 to 1. The "
            "compiler chooses those that cost least to compute again; activation_checkpointing recomputes all."
        },
    )
    peak_tflops: float | None = field(
        default=None,
        metadata={
            "help": "What a device can do at most in the precision of training, in 10^12 operations per second, as its "
            "data sheet has it or a benchmark: the log then has `mfu`, the share of it that the model makes use of."
        },
    )
    log_gradient_shares: int | None = field(
        default=None,
        metadata={
            "help": "Every so many steps, measure the share of each dataset in the encoder's gradient and update, and the "
            "cosine between the gradients of each pair, for the log. It costs as much as one step more each time."
        },
    )
    max_skipped_steps: int = field(
        default=10,
        metadata={
            "help": "An optimizer step whose loss or gradient is not finite is skipped, and its samples are written to "
            "skipped_steps.jsonl; after so many in a row training stops."
        },
    )
    restart_schedule: bool = field(
        default=False,
        metadata={
            "help": "Take just the weights of resume_from_checkpoint, which may be of another recipe, and start a "
            "new schedule."
        },
    )
    verify_checkpoints: bool = field(
        default=True,
        metadata={
            "help": "Compare the hash of each file of a checkpoint before resuming from it, which reads them all once "
            "more. False: only of those without tensors."
        },
    )
    accept_changed_rows: bool = field(
        default=False,
        metadata={
            "help": "Resume from a checkpoint although rows of its datasets have other names or labels than when it was "
            "written."
        },
    )
    hub_patience: float = field(
        default=300.0,
        metadata={
            "help": "Seconds that the end of training waits for the upload of the last save, and after which its own is "
            "given up where the network fails."
        },
    )
    restore_callback_states_from_checkpoint: bool = field(
        default=True,
        metadata={"help": "Whether a resumed run keeps what its callbacks have seen: early stopping, say."},
    )

    # transformers' is every 500 steps, by when a short run has ended without a log or a curve.
    logging_steps: float = field(
        default=LOGS_OF_A_RUN,
        metadata={
            "help": "Steps from one log to the next, or a share of all steps. By default it is a fiftieth of all, and at "
            f"most {MOST_STEPS_A_LOG} steps."
        },
    )

    def __post_init__(self):
        if (
            self.logging_steps == LOGS_OF_A_RUN
            and self.eval_strategy == IntervalStrategy.STEPS
            and not self.eval_steps
        ):
            self.eval_steps = 500  # transformers' default, which would be as often as there are logs
        measures = self.lr_scheduler_type in MEASURING_SCHEDULES
        if (
            self.load_best_model_at_end or self.save_strategy == "best" or measures
        ) and not self.metric_for_best_model:
            self.metric_for_best_model = BEST_METRIC
        if measures and self.greater_is_better is None:
            self.greater_is_better = not self.metric_for_best_model.endswith("loss")
            mode = "max" if self.greater_is_better else "min"
            self.lr_scheduler_kwargs = {"mode": mode, **(self.lr_scheduler_kwargs or {})}
        # Trainer would drop rows of evaluations, and what the collator needs and the model does not; and wait for the
        # device in each step, to filter a loss that has no skipped steps.
        self.dataloader_drop_last = self.remove_unused_columns = self.logging_nan_inf_filter = False
        may_copy_ahead = self.accelerator_config is None and self.dataloader_pin_memory and not self.use_cpu
        if may_copy_ahead:
            self.accelerator_config = {"non_blocking": True}  # batches are copied while the device computes
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # every parameter has a gradient in every batch, if of zeros
        if self.deepspeed or os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true":
            _check_installed("deepspeed", "deepspeed")
        super().__post_init__()
        check_processes(self.world_size)
        if self.device.type == "cpu":
            # There is nowhere to copy to, and torch would warn of what is pinned, transformers of what is not.
            self.dataloader_pin_memory = False
            if may_copy_ahead:
                self.accelerator_config.non_blocking = False
        for reporter in {"tensorboard", "trackio"} & set(self.report_to):
            _check_installed("report_to", reporter)
        self._check_values()
        self._check_drops()
        self._check_unsupported()

    @property
    def rows_per_step(self) -> int:
        """Rows of an optimizer step, of all processes and accumulation steps together."""
        return self.train_batch_size * self.world_size * self.gradient_accumulation_steps

    def _check_values(self) -> None:
        check_choice("loss_reduction", self.loss_reduction, LOSS_REDUCTIONS)
        if self.trained_part not in TRAINED_PARTS and last_layers(self.trained_part) is None:
            expected = f"one of {TRAINED_PARTS} or 'last_<n>_layers'"
            raise ValueError(f"trained_part must be {expected}, got {self.trained_part!r}")
        for name in ("layer_decay", "learning_rate_drop_factor"):
            check_positive(name, getattr(self, name))
        if self.new_parameters_learning_rate is not None:
            check_number("new_parameters_learning_rate", self.new_parameters_learning_rate)
        for name in ("label_smoothing_factor", "ema_decay"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise ValueError(f"{name} must be from 0 to below 1, got {value}")
        if not 0 <= self.activation_memory_budget <= 1:
            raise ValueError(f"activation_memory_budget must be from 0 to 1, got {self.activation_memory_budget}")
        if self.peak_tflops is not None:
            check_positive("peak_tflops", self.peak_tflops)
        for name in ("max_skipped_steps", "log_gradient_shares"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    def _check_drops(self) -> None:
        if not self.learning_rate_drop_epochs:
            return
        if self.lr_scheduler_type not in (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP):
            raise ValueError(
                "learning_rate_drop_epochs needs lr_scheduler_type 'constant' or 'constant_with_warmup', got "
                f"'{self.lr_scheduler_type.value}'"
            )
        last = self.num_train_epochs if self.max_steps <= 0 else float("inf")
        if outside := [epoch for epoch in self.learning_rate_drop_epochs if not 0 < epoch < last]:
            raise ValueError(
                f"learning_rate_drop_epochs {outside} are not between 0 and num_train_epochs ({self.num_train_epochs})"
            )

    def _check_unsupported(self) -> None:
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy '{self.train_sampling_strategy}': the mixture has an order of its own, leave it "
                "at 'random'"
            )
        reasons = {
            "save_only_model": "a run could not resume from such a checkpoint, leave it at False",
            "save_on_each_node": "checkpoints must be where all nodes see them, leave it at False",
            "auto_find_batch_size": "which samples a process reads follows from the batch size, so set it",
        }
        for name, reason in reasons.items():
            if getattr(self, name):
                raise ValueError(f"{name}: {reason}")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Without the usage of two hundred arguments."""
        raise ValueError(message)


def parse_training_arguments(recipe: Recipe, arguments: Sequence[str]) -> CoverTrainingArguments:
    """The recipe's training arguments, overridden by those of the command line.

    Raises:
        ValueError: if either names an argument that does not exist, or a value that is none of it.
    """
    parser = _Parser(CoverTrainingArguments)
    known = {field.name for field in fields(CoverTrainingArguments) if field.init}
    if unknown := sorted(set(recipe.training) - known):
        raise ValueError(f"training: {', '.join(unknown)} are not training arguments")
    parser.set_defaults(**recipe.training)
    args, unknown = parser.parse_args_into_dataclasses(list(arguments), return_remaining_strings=True)
    if unknown:
        raise ValueError(f"{' '.join(unknown)}: no training arguments")
    return args


def last_layers(part: str) -> int | None:
    """How many layers a `trained_part` of the last ones has; None of another part."""
    found = re.fullmatch(r"last_([1-9]\d*)_layers", str(part))
    return None if found is None else int(found[1])


def _check_installed(what: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        named = package if what == package else f"{what}: {package}"
        raise ValueError(f"{named} is not installed, it comes with `pip install modeling-cover[{package}]`")
