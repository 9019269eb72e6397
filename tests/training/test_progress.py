# SPDX-License-Identifier: Apache-2.0
"""What a run shows of itself."""

import logging
import shutil
import sys

import numpy as np
import pytest
import step_clock
from modeling_cover import CoverTrainer, CoverTrainingArguments
from modeling_cover.training.curves import draw_training_curves
from modeling_cover.training.progress import SECONDS_TO_MEASURE, PaceCallback, WaitForData, progress_line
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_parameters import make_trainer
from transformers import TrainerControl, TrainerState


class TestTheBar:
    def test_it_has_the_loss_of_each_dataset_samples_a_second_and_the_share_of_waiting(
        self, folder, tmp_path, capsys, monkeypatch
    ):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        make_trainer(folder, tmp_path, disable_tqdm=False).train()
        shown = capsys.readouterr().err
        assert "loss images " in shown
        assert " videos " in shown
        assert "samples/s, waiting for data " in shown

    def test_a_file_has_the_lines_of_the_table_in_its_place(self, folder, tmp_path, capsys):
        trainer = make_trainer(folder, tmp_path, disable_tqdm=False)
        trainer.train()
        trainer.evaluate()
        printed = capsys.readouterr()
        assert "it/s" not in printed.err + printed.out and "%|" not in printed.err + printed.out
        assert "step  " in printed.out and "eval" in printed.out

    def test_an_evaluation_is_not_a_dataset(self):
        logs = {"loss": 3.0, "k400_loss": 1.234, "eval_k400_loss": 9.0, "samples_per_second": 12.3, "data_wait": 0.021}
        assert progress_line(logs) == "loss k400 1.23, 12.3 samples/s, waiting for data 2.1%"
        assert progress_line({**logs, "mfu": 0.431}).endswith("samples/s, MFU 43.1%, waiting for data 2.1%")

    def test_samples_a_second_are_those_of_all_steps_since_the_last_log(self, folder, tmp_path, monkeypatch):
        step_clock.take(monkeypatch, {(CoverTrainer, "training_step"): 2})
        trainer = make_trainer(folder, tmp_path, max_steps=4, logging_steps=4)
        trainer.train()
        (entry,) = [entry for entry in trainer.state.log_history if "samples_per_second" in entry]
        assert entry["samples_per_second"] == pytest.approx(trainer.args.rows_per_step / 2)


class TestTheCurves:
    def test_they_are_drawn_at_the_end_also_of_a_resumed_run(self, folder, tmp_path, drawn):
        make_trainer(folder, tmp_path).train()
        first = (tmp_path / "training_curves.png").read_bytes()
        (tmp_path / "training_curves.png").unlink()
        make_trainer(folder, tmp_path).train(resume_from_checkpoint="auto")
        assert (tmp_path / "training_curves.png").read_bytes() == first

    def test_each_dataset_has_its_colour_in_both_panels(self, tmp_path):
        history = [
            {"step": step, f"{name}_{kind}": 0.5, f"eval_{name}_{kind}": 0.4}
            for name in ("k400", "ssv2")
            for kind in ("loss", "top1")
            for step in range(10)
        ]
        draw_training_curves(history, ["k400", "ssv2"], tmp_path / "curves.png")
        pixels = np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).astype(int)
        for half in np.array_split(pixels, 2, axis=1):
            for color in ((31, 119, 180), (255, 127, 14)):  # matplotlib's first two
                assert (np.abs(half - color).sum(axis=-1) < 12).sum() > 100

    def test_shares_of_the_update_are_below_where_there_are_some(self, tmp_path):
        history = [
            {"step": step, "a_loss": 1.0, "a_update_share": 0.3, "b_update_share": 0.7, "a_b_gradient_cosine": 0.1}
            for step in range(10)
        ]
        draw_training_curves(history, ["a", "b"], tmp_path / "with.png")
        draw_training_curves([{"step": 1, "a_loss": 1.0}], ["a", "b"], tmp_path / "without.png")
        sizes = {name: Image.open(tmp_path / f"{name}.png").size for name in ("with", "without")}
        assert sizes["with"][1] == 2 * sizes["without"][1]
        below = np.asarray(Image.open(tmp_path / "with.png").convert("RGB")).astype(int)[sizes["without"][1] :]
        for half, color in zip(np.array_split(below, 2, axis=1), ((255, 127, 14), (31, 119, 180)), strict=True):
            assert (np.abs(half - color).sum(axis=-1) < 12).sum() > 100

    def test_a_metric_that_was_never_measured_leaves_its_panel_empty(self, tmp_path):
        draw_training_curves([{"step": 1, "tags_loss": 0.5}], ["tags"], tmp_path / "curves.png")
        assert (tmp_path / "curves.png").stat().st_size > 1000


class TestReporting:
    def test_tensorboard_has_the_scalars_of_each_dataset(self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
        make_trainer(folder, tmp_path, report_to="tensorboard").train()
        events = EventAccumulator(str(tmp_path / "events")).Reload()
        assert {"train/videos_loss", "train/images_top1", "train/data_wait"} <= set(events.Tags()["scalars"])
        assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5]

    @pytest.mark.parametrize(
        ("extra", "options"),
        [
            ("tensorboard", {"report_to": "tensorboard"}),
            ("trackio", {"report_to": "trackio"}),
            ("deepspeed", {"deepspeed": {"zero_optimization": {"stage": 1}}}),
        ],
    )
    def test_what_is_not_installed_is_named_with_what_installs_it(self, tmp_path, monkeypatch, extra, options):
        monkeypatch.setitem(sys.modules, extra, None)
        with pytest.raises(ValueError, match=rf"{extra} is not installed, .*modeling-cover\[{extra}\]"):
            CoverTrainingArguments(str(tmp_path), **options)


class TestHowOftenARunLogs:
    @pytest.mark.parametrize(("steps", "between"), [(6, 1), (500, 10), (100_000, 50)])
    def test_where_nobody_says_it_has_at_least_fifty_logs(self, tmp_path, steps, between):
        args = CoverTrainingArguments(str(tmp_path), use_cpu=True)
        state = TrainerState(max_steps=steps)
        PaceCallback().on_train_begin(args, state, TrainerControl())
        assert state.logging_steps == between

    @pytest.mark.parametrize("given", [200, 0.5])
    def test_what_is_given_stays(self, tmp_path, given):
        args = CoverTrainingArguments(str(tmp_path), use_cpu=True, logging_steps=given)
        state = TrainerState(max_steps=100_000)
        PaceCallback().on_train_begin(args, state, TrainerControl())
        assert state.logging_steps == (200 if given == 200 else 50_000)

    def test_evaluations_are_no_more_often_than_before(self, tmp_path):
        args = CoverTrainingArguments(str(tmp_path), use_cpu=True, eval_strategy="steps")
        assert args.eval_steps == 500
        args = CoverTrainingArguments(str(tmp_path), use_cpu=True, eval_strategy="steps", logging_steps=7)
        assert args.eval_steps == 7  # as transformers has it

    def test_a_short_run_has_its_curves(self, folder, tmp_path):
        make_trainer(folder, tmp_path, logging_steps=CoverTrainingArguments(str(tmp_path)).logging_steps).train()
        assert (tmp_path / "training_curves.png").is_file()


class TestWaitingForData:
    def test_it_is_told_once_with_what_to_do(self, tmp_path, caplog):
        args = CoverTrainingArguments(str(tmp_path), use_cpu=True, dataloader_num_workers=3)
        pace, state = PaceCallback(), TrainerState(is_world_process_zero=True)
        pace.on_train_begin(args, state, TrainerControl())
        for step in range(10, 60, 10):  # of 8 rows each, so that 20 s pass between two logs
            state.global_step = step
            pace.on_log(args, state, TrainerControl(), logs={"samples_per_second": 4.0, "data_wait": 0.5})
        (told,) = [record.message for record in caplog.records]
        assert told.startswith("50% of the time is spent waiting for data: raise dataloader_num_workers, which is 3 (")
        assert "`cover prepare`" in told

    def test_neither_the_first_log_nor_a_moment_counts(self):
        waits = WaitForData()
        assert not waits.has_become_much(1000.0, 0.9)
        assert not waits.has_become_much(SECONDS_TO_MEASURE / 2, 0.9)
        assert waits.has_become_much(SECONDS_TO_MEASURE / 2, 0.9)
        assert not waits.has_become_much(1000.0, 0.9)

    def test_a_fifth_of_the_time_is_no_matter(self):
        waits = WaitForData()
        assert not any(waits.has_become_much(100.0, share) for share in (1.0, 0.2, 0.2, 0.1))
        assert waits.has_become_much(1000.0, 0.3)

    def test_a_run_that_resumes_is_not_warned_of_it(self, folder, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
        options = {"max_steps": 4, "logging_steps": 0.02, "save_steps": 0.5}
        make_trainer(folder, tmp_path, **options).train()
        shutil.rmtree(tmp_path / "checkpoint-4")
        trainer = make_trainer(folder, tmp_path, **options)
        trainer.train(resume_from_checkpoint="auto")
        assert [entry["step"] for entry in trainer.state.log_history if "loss" in entry] == [1, 2, 3, 4]
        assert "do not match" not in caplog.text
