# SPDX-License-Identifier: Apache-2.0
"""What training sums up between two logs."""

import math
import time

import pytest
import torch
from modeling_cover.training.step_metrics import StepMetrics


HEADS = {
    "clips": {"problem_type": "single_label_classification"},
    "tags": {"problem_type": "multi_label_classification"},
    "idle": {"problem_type": "single_label_classification"},
}
CPU = torch.device("cpu")


def step(metrics: StepMetrics, loss: float, *batches: tuple[list[float], list[int], list[int]]) -> None:
    """A step of this loss, of batches of (losses, rows, correct rows)."""
    metrics.begin_step()
    for losses, rows, hits in batches:
        metrics.add(torch.tensor(losses), torch.tensor(rows), torch.tensor(hits))
    metrics.add_loss(torch.tensor(loss))


class TestLogs:
    def test_losses_are_means_over_rows_and_a_dataset_without_rows_has_none(self):
        metrics = StepMetrics(HEADS, CPU)
        step(metrics, 4.5, ([2.0, 1.0, 0.0], [1, 2, 0], [1, 2, 0]), ([4.0, 0.0, 0.0], [3, 0, 0], [0, 0, 0]))
        metrics.take_step()
        assert metrics.logs() == {
            "loss": 4.5,
            "clips_loss": 3.5,
            "clips_top1": 0.25,
            "clips_share": pytest.approx(4 / 6),
            "tags_loss": 1.0,
            "tags_share": pytest.approx(2 / 6),
        }
        assert math.isnan(metrics.logs()["loss"])

    def test_a_step_that_is_skipped_does_not_count(self):
        metrics = StepMetrics(HEADS, CPU)
        for loss in (1.0, math.nan, 3.0):
            step(metrics, loss, ([loss, 0.0, 0.0], [2, 0, 0], [0, 0, 0]))
            metrics.take_step() if loss == loss else metrics.skip_step()
        logs = metrics.logs()
        assert (logs["loss"], logs["clips_loss"], logs["skipped_steps"]) == (2.0, 2.0, 1)
        assert metrics.session_loss() == 2.0

    def test_sums_are_of_all_processes_and_the_loss_is_their_mean(self):
        other = torch.tensor([6.0, 6.0, 1.0, 0.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0])
        metrics = StepMetrics(HEADS, CPU, lambda sums: sums + other[: len(sums)], num_processes=2)
        step(metrics, 2.0, ([2.0, 0.0, 0.0], [1, 0, 0], [1, 0, 0]))
        metrics.take_step()
        logs = metrics.logs()
        assert logs["loss"] == 4.0
        assert (logs["clips_loss"], logs["clips_top1"], logs["tags_loss"]) == (2.0, 0.25, 1.0)


class TestResuming:
    def summed_up(self, num_processes: int = 1) -> StepMetrics:
        metrics = StepMetrics(HEADS, CPU, num_processes=num_processes)
        for loss in (1.0, math.nan, 5.0):
            step(metrics, loss, ([loss, 1.0, 0.0], [2, 2, 0], [1, 0, 0]))
            metrics.take_step() if loss == loss else metrics.skip_step()
        return metrics

    def test_a_log_is_of_all_steps_since_the_last_one(self):
        metrics, resumed = self.summed_up(), StepMetrics(HEADS, CPU)
        assert metrics.counts() == {"steps": 3, "skipped": 1}
        resumed.load(metrics.counts(), [metrics.process_sums()], process=0)
        assert resumed.logs() == metrics.logs()

    def test_fewer_processes_have_the_same_mean_loss_and_all_of_the_rows(self):
        """Each of two has half of the rows, and its part of the loss."""
        of_each = [
            {"loss": share * 6.0, "data_sets": [[6.0, 2.0, 0.0], [2.0, 2.0, 0.0], [1.0, 0.0, 0.0]]}
            for share in (0.5, 1.5)
        ]
        resumed = StepMetrics(HEADS, CPU)
        resumed.load({"steps": 3, "skipped": 1}, of_each, process=0)
        assert resumed.logs() == self.summed_up().logs()

    def test_the_mean_loss_of_a_session_has_its_own_steps_alone(self):
        metrics, resumed = self.summed_up(), StepMetrics(HEADS, CPU)
        resumed.load(metrics.counts(), [metrics.process_sums()], process=0)
        assert resumed.session_loss() == 0.0
        step(resumed, 7.0)
        resumed.take_step()
        assert resumed.session_loss() == 7.0
        resumed.begin_session()
        assert resumed.counts() == {"steps": 0, "skipped": 0}


class TestTheClock:
    def test_waiting_is_a_part_of_the_time_in_which_the_clock_ran(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        metrics = StepMetrics(HEADS, CPU)
        metrics.start_clock(step=10)
        with metrics.waiting():
            now[0] += 2
        now[0] += 6
        with metrics.clock_stopped(), metrics.clock_stopped():  # an evaluation of several datasets
            now[0] += 100
        logs = metrics.clock_logs(step=14, rows_per_step=8)
        assert (logs["samples_per_second"], logs["data_wait"]) == (4.0, 0.25)
        assert metrics.clock_logs(step=14, rows_per_step=8) == {}
        now[0] += 1
        logs = metrics.clock_logs(step=15, rows_per_step=8)
        assert (logs["samples_per_second"], logs["data_wait"]) == (8.0, 0.0)

    def test_operations_are_those_since_the_last_log_and_a_share_of_the_peak(self, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(time, "perf_counter", lambda: now[0])
        metrics = StepMetrics(HEADS, CPU, peak_tflops=10)
        metrics.start_clock(step=0)
        for step in (1, 2):
            assert [metrics.counted(3 * 10**12) for _ in range(2)] == [3 * 10**12] * 2
            now[0] += 3
            logs = metrics.clock_logs(step, rows_per_step=8)
            assert (logs["model_tflops"], logs["mfu"]) == (2.0, pytest.approx(0.2))
