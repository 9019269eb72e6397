# SPDX-License-Identifier: Apache-2.0
"""What a run that goes on has in common with one that was not stopped: its generators, its logs, its data."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from killed_runs import build_recipe, logged, write_data
from modeling_cover import CoverTrainer
from modeling_cover.training.checkpoints import CheckpointError
from modeling_cover.training.stop_signals import TrainingPreempted
from short_runs import final_weights, make_trainer, resumed_from, seal, with_validation
from test_skipped_steps import make_trainer as make_poisoned_trainer
from transformers import TrainerCallback


class TestGenerators:
    """Dropout and drop path draw from torch's generator: what happens beside the steps of training must not."""

    @pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}])
    def test_an_evaluation_after_a_checkpoint_changes_no_step(self, folder, tmp_path, options):
        """An epoch has 5 steps: the checkpoint of the last is written before the evaluation that the epoch ends
        with."""
        recipe = with_validation(build_recipe(folder))
        options = {"max_steps": 8, "save_steps": 5, "eval_strategy": "epoch", **options}
        trainer = make_trainer(folder, tmp_path / "whole", recipe, **options)
        trainer.train()
        resumed = resumed_from(tmp_path / "whole", 5, tmp_path / "resumed", folder, recipe, **options)
        torch.testing.assert_close(final_weights(resumed), final_weights(trainer), rtol=0, atol=0)

    def test_nor_do_workers_that_stay_through_the_epochs(self, folder, tmp_path):
        options = {"max_steps": 12, "dataloader_num_workers": 1, "dataloader_persistent_workers": True}
        trainer = make_trainer(folder, tmp_path / "whole", **options)
        trainer.train()
        resumed = resumed_from(tmp_path / "whole", 3, tmp_path / "resumed", folder, build_recipe(folder), **options)
        torch.testing.assert_close(final_weights(resumed), final_weights(trainer), rtol=0, atol=0)

    def test_nothing_beside_the_steps_leaves_them_changed(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path, with_validation(build_recipe(folder)), max_steps=1)
        trainer.train()

        def state() -> tuple:
            version, keys, *others = np.random.get_state()
            return random.getstate(), (version, keys.tolist(), others), torch.get_rng_state().tolist()

        class Draws(TrainerCallback):
            def on_log(self, args, state, control, **kwargs):
                random.random(), np.random.rand(), torch.rand(1)

            on_evaluate = on_predict = on_save = on_log

        trainer.add_callback(Draws())
        before = state()
        trainer.evaluate()
        assert state() == before
        trainer.predict(trainer.eval_dataset["videos"])
        assert state() == before
        trainer.control.should_log = trainer.control.should_save = trainer.control.should_evaluate = True
        trainer.state.global_step += 1
        trainer._maybe_log_save_evaluate(torch.tensor(0.0), None, trainer.model, None, 0, None, 0.0)
        assert state() == before
        torch.manual_seed(1)
        assert state() != before


def mean_loss(trainer: CoverTrainer) -> float:
    """That of the steps of its session, as it is logged at the end."""
    (end,) = [entry for entry in trainer.state.log_history if "train_loss" in entry]
    return end["train_loss"]


class TestLogs:
    """A checkpoint is written in between two logs: what was summed up by then is in it."""

    @pytest.fixture(scope="class")
    @staticmethod
    def whole_trainer(folder) -> CoverTrainer:
        trainer = make_trainer(folder, folder / "logging", logging_steps=5, save_steps=3, max_steps=6)
        trainer.train()
        trainer.save_state()
        return trainer

    @pytest.fixture(scope="class")
    @staticmethod
    def whole(whole_trainer) -> Path:
        return Path(whole_trainer.args.output_dir)

    def test_the_first_is_of_all_its_steps(self, folder, whole, whole_trainer, tmp_path):
        trainer = resumed_from(whole, 3, tmp_path, folder, build_recipe(folder), logging_steps=5)
        trainer.save_state()
        assert logged(tmp_path) == logged(whole)
        assert logged(tmp_path)[0]["step"] == 5
        # The mean of the session is of its own steps, the last three of six.
        state = json.loads((whole / "checkpoint-3/training_state/state.json").read_text())["unlogged"]
        assert state["steps"] == 3
        assert mean_loss(trainer) * 3 == pytest.approx(mean_loss(whole_trainer) * 6 - state["sums"][0]["loss"])

    def test_so_it_is_where_there_were_more_processes(self, folder, whole, tmp_path):
        """Each of two with half of the rows, whose loss is a mean over processes."""
        shutil.copytree(whole / "checkpoint-3", tmp_path / "checkpoint-3")
        path = tmp_path / "checkpoint-3/training_state/state.json"
        state = json.loads(path.read_text())
        (sums,) = state["unlogged"]["sums"]
        halves = (np.array(sums["data_sets"]) / 2).tolist()
        state["unlogged"]["sums"] = [{"loss": sums["loss"] * share, "data_sets": halves} for share in (0.5, 1.5)]
        path.write_text(json.dumps(state))
        seal(tmp_path / "checkpoint-3")
        trainer = make_trainer(folder, tmp_path, logging_steps=5)
        trainer.train(resume_from_checkpoint="auto")
        trainer.save_state()
        assert logged(tmp_path)[0] == pytest.approx(logged(whole)[0])

    def test_that_of_an_epoch_is_made_up_for(self, folder, tmp_path):
        options = {"logging_strategy": "epoch", "save_steps": 5}  # the last of an epoch
        trainer = make_trainer(folder, tmp_path / "whole", **options)
        trainer.train()
        trainer.save_state()
        resumed = resumed_from(tmp_path / "whole", 5, tmp_path / "resumed", folder, build_recipe(folder), **options)
        resumed.save_state()
        assert [entry["step"] for entry in logged(tmp_path / "whole")] == [5, 6]
        assert logged(tmp_path / "resumed") == logged(tmp_path / "whole")

    def test_steps_that_were_left_out_are_counted_on(self, folder, tmp_path):
        def trained(name: str, resume: str | None = None, **options):
            poisoned = {1: "loss", 2: "loss"}
            options = {"logging_steps": 6, "save_steps": 2, **options}
            trainer = make_poisoned_trainer(folder, tmp_path / name, poisoned, **options)
            trainer.train(resume_from_checkpoint=resume)
            trainer.save_state()

        trained("whole")
        shutil.copytree(tmp_path / "whole/checkpoint-2", tmp_path / "resumed/checkpoint-2")
        trained("resumed", "auto")
        (entry,) = logged(tmp_path / "whole")
        assert entry["skipped_steps"] == 2
        assert logged(tmp_path / "resumed") == [entry]
        shutil.copytree(tmp_path / "whole/checkpoint-2", tmp_path / "stopped/checkpoint-2")
        with pytest.raises(ValueError, match="not finite in 2 steps in a row, up to step 2"):
            trained("stopped", "auto", max_skipped_steps=2)


class TestChangedRows:
    @pytest.fixture
    def run(self, tmp_path) -> Path:
        """The folder of a run of 3 steps, beside its data."""
        write_data(tmp_path)
        make_trainer(tmp_path, tmp_path / "run", max_steps=3).train()
        return tmp_path / "run"

    def test_files_that_were_renamed_are_refused_unless_one_says_so(self, run, caplog):
        folder = run.parent
        (folder / "videos/class1/1.mp4").rename(folder / "videos/class1/renamed.mp4")
        message = (
            "was written when datasets had other rows:\n  dataset 'videos': files were renamed, moved or swapped\n"
        )
        with pytest.raises(CheckpointError, match=message):
            make_trainer(folder, run).train(resume_from_checkpoint="auto")
        trainer = make_trainer(folder, run, accept_changed_rows=True)
        trainer.train(resume_from_checkpoint="auto")
        assert "The run resumes from step 3 with them as they are now." in caplog.text
        assert trainer.state.global_step == 6
        make_trainer(folder, run, max_steps=7).train(
            resume_from_checkpoint="auto"
        )  # from checkpoint-6, which has them

    def test_so_are_files_of_a_stream(self, run):
        (run.parent / "images/1.parquet").rename(run.parent / "images/2.parquet")
        with pytest.raises(CheckpointError, match="dataset 'images': files were renamed"):
            make_trainer(run.parent, run).train(resume_from_checkpoint="auto")

    def test_a_folder_may_be_elsewhere(self, run, tmp_path):
        moved = tmp_path / "moved"
        moved.mkdir()
        for name in ("videos", "images", "run"):
            (tmp_path / name).rename(moved / name)
        trainer = make_trainer(moved, moved / "run")
        trainer.train(resume_from_checkpoint="auto")
        assert trainer.state.global_step == 6


class TestBeforeTheFirstStep:
    def test_a_run_that_is_told_to_stop_says_that_there_is_no_checkpoint(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path, with_validation(build_recipe(folder)), eval_on_start=True)

        class ToldToStop(TrainerCallback):
            def on_train_begin(self, args, state, control, **kwargs):
                trainer.stop_signals.received = True

        trainer.add_callback(ToldToStop())
        with pytest.raises(TrainingPreempted) as stopped:
            trainer.train()
        assert stopped.value.checkpoint is None
        assert str(stopped.value) == "told to stop before the first step; the same command starts again"
        assert not list(tmp_path.glob("checkpoint-*"))
