# SPDX-License-Identifier: Apache-2.0
"""What a run logs as a table: a line for each log and each evaluation, and a column for each dataset."""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerState

from ..evaluation.metrics import OWN_METRICS
from ..text import display_width, padded, shortened


MEASURES = ("top1", "map")  # of a dataset, which has one of the two
ROWS_A_HEADER = 30  # of as many, the header is seen once
_WIDEST_NAME = 20
_CELL = len("0.000123 100.0%")
_EPOCH, _LOSS, _RATE, _SPEED, _WAIT = "epoch", "loss   ", "learning rate", "samples/s", "data wait"


class LogTable(TrainerCallback):
    """Writes a line for each log of a run, of training and evaluations, on the main process.

    Args:
        names: of the datasets, in the order of their columns.
        write: takes a line; by default it goes to stdout, above the bars.
    """

    def __init__(self, names: Sequence[str], write: Callable[[str], Any] = tqdm.write):
        self.names, self.write = list(names), write
        self._rows = 0
        self._first_step = 0  # of this session
        self._evaluated: dict[str, Any] = {}  # by datasets one after the other, whose mean is logged last

    def on_train_begin(self, args, state, control, **kwargs):
        self._first_step = state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        logs = logs or {}
        if "loss" in logs:
            self._write_evaluated(state)
            cells, said = training_cells(logs, self.names), notes(logs, self.names)
            self._write_row((state.global_step, state.epoch), state.max_steps, cells, said)
        elif "train_loss" in logs:
            self._write_evaluated(state)
            step = state.global_step
            self.write(summary_line(logs, step) if step > self._first_step else f"no step was left after step {step}")
        elif any(f"eval_{name}_loss" in logs for name in self.names):
            self._evaluated |= {**logs, "step": state.global_step, "epoch": state.epoch}
            if not any(f"eval_{name}_{measure}" in logs for name in self.names for measure in MEASURES):
                self._write_evaluated(state)  # of another compute_metrics, for which no mean is logged at the end
        elif self._evaluated and any(key.startswith("eval_mean_") for key in logs):
            self._evaluated |= {**logs, "step": state.global_step, "epoch": state.epoch}
            self._write_evaluated(state)
        else:  # of somebody else's, or of datasets that have no column
            self.write(plain_line(logs))

    def on_train_end(self, args, state, control, **kwargs):
        self._write_evaluated(state)

    def _write_evaluated(self, state: TrainerState) -> None:
        if self._evaluated:
            metrics, self._evaluated = self._evaluated, {}
            mean = [f"mean {metrics['eval_mean_score']:.1%}"] if "eval_mean_score" in metrics else []
            at = metrics["step"], metrics["epoch"]
            said = [*mean, *other_metrics(metrics, self.names)]
            self._write_row(at, state.max_steps, evaluation_cells(metrics, self.names), said)

    def _write_row(
        self, at: tuple[int, float | None], max_steps: int, cells: Sequence[str], said: Sequence[str]
    ) -> None:
        columns = header(self.names, max_steps)
        if self._rows % ROWS_A_HEADER == 0:
            self.write("  ".join(columns).rstrip())
        self._rows += 1
        cells = [f"{at[0]}/{max_steps}", f"{at[1] or 0:.4g}", *cells]
        widths = map(display_width, columns)
        line = "  ".join(padded(cell, width) for cell, width in zip(cells, widths, strict=True))
        self.write("  ".join([line, *said]).rstrip())


def header(names: Sequence[str], max_steps: int) -> list[str]:
    """The titles of the columns, as wide as these are."""
    of_datasets = [padded(shortened(name, _WIDEST_NAME), _CELL) for name in names]
    return [padded("step", 2 * len(str(max_steps)) + 1), _EPOCH, _LOSS, *of_datasets, _RATE, _SPEED, _WAIT]


def training_cells(logs: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What a line says of the steps since the last one; of a dataset without rows in these, "-"."""
    shown = {"learning_rate": ".3g", "samples_per_second": ".3g", "data_wait": ".1%"}
    last = [format(logs[key], form) if key in logs else "-" for key, form in shown.items()]
    return [f"{logs['loss']:.3g}", *(_of_dataset(logs, name) for name in names), *last]


def evaluation_cells(metrics: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return ["eval", *(_of_dataset(metrics, f"eval_{name}") for name in names), "", "", ""]


def other_metrics(metrics: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Those that a user has added, see `metrics` of [`~modeling_cover.CoverTrainer`], at the end of a line."""
    return [
        f"{key.removeprefix('eval_')} {_shown(value)}"
        for name in names
        for key, value in metrics.items()
        if key.startswith(f"eval_{name}_") and key.removeprefix(f"eval_{name}_") not in OWN_METRICS
        if not any(key.startswith(f"eval_{other}_") for other in names if len(other) > len(name))
    ]


def _of_dataset(logs: Mapping[str, Any], prefix: str) -> str:
    """Loss, and top-1 or mAP."""
    loss = logs.get(f"{prefix}_loss")
    measured = [f"{logs[key]:.1%}" for measure in MEASURES if (key := f"{prefix}_{measure}") in logs]
    return " ".join([*([] if loss is None else [f"{loss:.3g}"]), *measured]) or "-"


def notes(logs: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What is worth saying at the end of a line: skipped steps, bad files, and the share of the device's peak."""
    skipped = [f"skipped {logs['skipped_steps']}"] if logs.get("skipped_steps") else []
    bad = [f"bad files of {name} {count}" for name in names if (count := logs.get(f"{name}_bad_files"))]
    return [*([f"MFU {logs['mfu']:.1%}"] if "mfu" in logs else []), *skipped, *bad]


def summary_line(logs: Mapping[str, Any], steps: int) -> str:
    """The end of training; speed and loss are of this session."""
    took = timedelta(seconds=round(logs["train_runtime"]))
    speed = f"{logs['train_samples_per_second']:.3g} samples/s"
    return f"trained up to step {steps} in {took}, {speed}, mean loss {logs['train_loss']:.3g}"


def plain_line(logs: Mapping[str, Any]) -> str:
    """Of what somebody else logs."""
    return "  ".join(f"{key} {_shown(value)}" for key, value in logs.items() if key != "total_flos")


def _shown(value: Any) -> str:
    """Of what may be anything: a user's own metric, say."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
