# SPDX-License-Identifier: Apache-2.0
"""What training sums up between two logs."""

import time

import pytest
import torch
from modeling_cover.training.step_metrics import StepMetrics


HEADS = {
    "clips": {"problem_type": "single_label_classification"},
    "tags": {"problem_type": "multi_label_classification"},
    "idle": {"problem_type": "single_label_classification"},
}


def add(metrics: StepMetrics, losses: list[float], rows: list[int], hits: list[int]) -> None:
    metrics.add(torch.tensor(losses), torch.tensor(rows), torch.tensor(hits))


def alone(sums: torch.Tensor) -> torch.Tensor:
    """The reduction of one process."""
    return sums


def test_losses_are_means_over_rows_and_a_dataset_without_rows_has_none():
    metrics = StepMetrics(HEADS, torch.device("cpu"))
    metrics.begin_step()
    add(metrics, [2.0, 1.0, 0.0], [1, 2, 0], [1, 2, 0])
    add(metrics, [4.0, 0.0, 0.0], [3, 0, 0], [0, 0, 0])
    metrics.take_step()
    assert metrics.dataset_logs(alone) == {
        "clips_loss": 3.5,
        "clips_top1": 0.25,
        "clips_share": pytest.approx(4 / 6),
        "tags_loss": 1.0,
        "tags_share": pytest.approx(2 / 6),
    }
    assert metrics.dataset_logs(alone) == {}


def test_a_step_that_is_left_out_does_not_count():
    metrics = StepMetrics(HEADS, torch.device("cpu"))
    for loss in (1.0, float("nan"), 3.0):
        metrics.begin_step()
        add(metrics, [loss, 0.0, 0.0], [2, 0, 0], [0, 0, 0])
        if loss == loss:
            metrics.take_step()
    assert metrics.dataset_logs(alone)["clips_loss"] == 2.0


def test_processes_are_summed():
    metrics = StepMetrics(HEADS, torch.device("cpu"))
    metrics.begin_step()
    add(metrics, [2.0, 0.0, 0.0], [1, 0, 0], [1, 0, 0])
    metrics.take_step()
    other = torch.tensor([[6.0, 1.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    logs = metrics.dataset_logs(lambda sums: sums + other)
    assert (logs["clips_loss"], logs["clips_top1"], logs["tags_loss"]) == (2.0, 0.25, 1.0)


def test_waiting_is_a_part_of_the_time_in_which_the_clock_ran(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    metrics = StepMetrics(HEADS, torch.device("cpu"))
    metrics.start_clock(step=10)
    with metrics.waiting():
        now[0] += 2
    now[0] += 6
    with metrics.clock_stopped(), metrics.clock_stopped():  # an evaluation of several datasets
        now[0] += 100
    assert metrics.clock_logs(step=14, rows_per_step=8) == {"samples_per_second": 4.0, "data_wait": 0.25}
    assert metrics.clock_logs(step=10, rows_per_step=8) == {}
