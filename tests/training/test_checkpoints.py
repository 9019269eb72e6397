# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: what is in them, which of them are kept, and that none is trained from which is damaged."""

import os
import resource
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from forked_runs import start_processes
from killed_runs import build_recipe
from modeling_cover import CoverForVideoClassification
from modeling_cover.hub.publishing import files_to_publish
from modeling_cover.training.checkpoints import (
    CheckpointError,
    RunCheckpoints,
    checkpoints_in,
    newest_checkpoint,
    what_is_wrong,
)
from short_runs import final_weights, make_trainer, with_validation
from transformers import EarlyStoppingCallback, TrainerCallback


def flip(path: Path, place: int = -1) -> None:
    """Change a bit of a file."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


STATE = "training_state/state.json"


class TestDamage:
    @pytest.mark.parametrize(
        ("name", "damage", "fault"),
        [
            ("model.safetensors", Path.unlink, "model.safetensors is missing"),
            ("model.safetensors", flip, "model.safetensors is not as it was written"),
            ("training_state/optimizer.safetensors", lambda file: os.truncate(file, 100), "has 100 bytes, expected"),
            ("training_state/optimizer.safetensors", flip, "optimizer.safetensors is not as it was written"),
            ("training_state/rng.safetensors", flip, "rng.safetensors is not as it was written"),
            ("training_state/quarantine.jsonl", flip, "quarantine.jsonl is not as it was written"),
            ("config.json", lambda file: file.write_text(" " * file.stat().st_size), "config.json is not as it was"),
            ("trainer_state.json", lambda file: flip(file, 10), "trainer_state.json is not as it was written"),
            (STATE, Path.unlink, "state.json cannot be read"),
            (STATE, lambda file: os.truncate(file, 50), "state.json cannot be read"),
            (STATE, lambda file: file.write_text(""), "state.json cannot be read"),
            (STATE, lambda file: file.write_text("[]"), "state.json cannot be read: expected a JSON object, found list"),
            (STATE, lambda file: file.write_text("{}"), "state.json does not say which files there are"),
            (STATE, lambda file: file.write_text('{"version": 3, "files": {}}'), "state.json has no 'run'"),
            (STATE, lambda file: file.write_text(file.read_text().replace("0.9", "0.8")), "state.json is not as it was"),
            ("training_state/SHA256SUMS", Path.unlink, "SHA256SUMS cannot be read"),
            ("training_state/SHA256SUMS", lambda file: os.truncate(file, 0), "SHA256SUMS cannot be read: line 1"),
            ("training_state/SHA256SUMS", lambda file: os.truncate(file, 90), "SHA256SUMS"),
        ],
    )  # fmt: skip
    def test_of_any_kind_is_told(self, run, name, damage, fault):
        assert what_is_wrong(run / "checkpoint-6") is None
        damage(run / "checkpoint-6" / name)
        assert fault in what_is_wrong(run / "checkpoint-6")

    @pytest.mark.parametrize("name", ["model.safetensors", STATE])
    def test_the_checkpoint_before_is_taken_and_the_reason_said(self, folder, finished, run, name, caplog):
        flip(run / "checkpoint-6" / name, 100)
        with pytest.raises(CheckpointError, match=f"checkpoint-6 is no whole checkpoint: .*{name} "):
            make_trainer(folder, run).train(resume_from_checkpoint=str(run / "checkpoint-6"))
        trainer = make_trainer(folder, run, save_total_limit=1)
        trainer.train(resume_from_checkpoint="auto")
        assert f"{name} is not as it was written" in caplog.text
        assert (
            "is kept as damaged-checkpoint-6, which may be removed; the run resumes from checkpoint-3" in caplog.text
        )
        assert {path.name for path in run.glob("*checkpoint-*")} == {"damaged-checkpoint-6", "checkpoint-6"}
        assert what_is_wrong(run / "checkpoint-6") is None
        expected = CoverForVideoClassification.from_pretrained(finished / "checkpoint-6").state_dict()
        torch.testing.assert_close(final_weights(trainer), expected, rtol=0, atol=0)

    def test_where_no_checkpoint_is_whole_none_is_written_over(self, folder, run):
        for step in (3, 6):
            flip(run / f"checkpoint-{step}" / "model.safetensors")
        trainer = make_trainer(folder, run)
        with pytest.raises(CheckpointError, match=r"no checkpoint is whole:\n  checkpoint-6: model\.safetensors is"):
            trainer.train(resume_from_checkpoint="auto")
        assert len(checkpoints_in(run)) == 2

    def test_hashes_are_not_compared_where_that_would_take_too_long(self, folder, run):
        flip(run / "checkpoint-6/model.safetensors")
        trainer = make_trainer(folder, run, verify_checkpoints=False, max_steps=7)
        trainer.train(resume_from_checkpoint="auto")
        assert trainer.resumed_from.endswith("checkpoint-6")
        flip(run / "checkpoint-7/model.safetensors", 8)  # of the header
        assert "model.safetensors is damaged: " in what_is_wrong(run / "checkpoint-7", check_hashes=False)
        flip(run / "checkpoint-3/config.json")
        assert "config.json is not as it was written" in what_is_wrong(run / "checkpoint-3", check_hashes=False)

    def test_the_best_model_is_not_loaded_from_one(self, folder, tmp_path, caplog):
        options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.0, "max_steps": 3}
        recipe = with_validation(build_recipe(folder))
        trainer = make_trainer(folder, tmp_path, recipe, load_best_model_at_end=True, **options)

        class DamagesTheBest(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 3:
                    flip(tmp_path / "checkpoint-1/model.safetensors")

        trainer.add_callback(DamagesTheBest())
        trainer.train()
        assert "checkpoint-1, the best checkpoint, is not loaded: model.safetensors is not as it" in caplog.text
        assert trainer.state.best_model_checkpoint is None
        assert trainer.record.summary(trainer.state, {}, tmp_path)["progress"]["step"] == 3

    def test_the_hashes_are_such_as_other_tools_know(self, run):
        checked = subprocess.run(
            ["sha256sum", "--check", "training_state/SHA256SUMS"],
            cwd=run / "checkpoint-6",
            capture_output=True,
            text=True,
        )
        assert checked.returncode == 0, checked.stderr
        names = {file.relative_to(run / "checkpoint-6").as_posix() for file in (run / "checkpoint-6").rglob("*.*")}
        assert {line.removesuffix(": OK") for line in checked.stdout.splitlines()} == names


def test_what_is_published_of_a_run_is_a_whole_checkpoint(folder, run, tmp_path):
    (run / "checkpoint-6/training_curves.png").write_bytes(b"drawn later")
    for name, file in files_to_publish(run / "checkpoint-6", "org/name", "checkpoint-6").items():
        target = tmp_path / "published" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file if isinstance(file, bytes) else file.read_bytes())
    assert what_is_wrong(tmp_path / "published/checkpoint-6") is None
    flip(tmp_path / "published/checkpoint-6/trainer_state.json")
    assert what_is_wrong(tmp_path / "published/checkpoint-6") is not None


class TestCheckpoints:
    def test_each_is_a_model_and_all_else_that_a_run_needs_without_a_pickle(self, finished):
        model = CoverForVideoClassification.from_pretrained(finished / "checkpoint-6")
        assert model.config.head_names == ["images", "videos"]
        names = {file.name for file in (finished / "checkpoint-6").rglob("*") if file.is_file()}
        assert {"state.json", "optimizer.safetensors", "rng.safetensors", "quarantine.jsonl"} <= names
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]

    def test_the_oldest_go_and_never_the_newest_nor_the_best(self, tmp_path):
        writer = RunCheckpoints(tmp_path)
        for step in (2, 10, 4, 6):
            writer.path(step).mkdir()
        writer.keep(2, best=writer.path(2))
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10", "checkpoint-2"]
        writer.keep(1, best=writer.path(2))
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10", "checkpoint-2"]
        writer.keep(1)
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10"]
        # A run that has gone on from an older one.
        writer.path(5).mkdir()
        writer.keep(1, written=writer.path(5))
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-10", "checkpoint-5"]

    def test_a_run_that_has_ended_keeps_its_newest_beside_the_best(self, folder, tmp_path):
        options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.0, "max_steps": 3}
        options |= {"load_best_model_at_end": True, "save_total_limit": 1}
        make_trainer(folder, tmp_path, with_validation(build_recipe(folder)), **options).train()
        assert [path.name for path in checkpoints_in(tmp_path)] == ["checkpoint-3", "checkpoint-1"]

    def test_early_stopping_goes_on_counting_and_what_it_has_stopped_stays_so(self, folder, tmp_path):
        recipe = with_validation(build_recipe(folder))
        options = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "learning_rate": 0.0, "max_steps": 9}
        options |= {"load_best_model_at_end": True, "save_total_limit": 9}

        def trained(output_dir: Path) -> int:
            trainer = make_trainer(folder, output_dir, recipe, **options)
            trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=3))
            trainer.train(resume_from_checkpoint="auto")
            return trainer.state.global_step

        assert trained(tmp_path) == 4  # the first is the best: nothing gets better
        assert trained(tmp_path) == 4
        shutil.rmtree(tmp_path / "checkpoint-4")
        assert trained(tmp_path) == 4

    def test_a_disk_that_is_full_is_named_and_the_last_checkpoint_stays(self, folder, run, tmp_path):
        log = tmp_path / "log"
        assert start_processes(go_on_with_a_full_disk, 1, log, {}, folder, run).wait(600) == 1
        said = log.read_text()
        assert "checkpoint-9 cannot be written" in said
        assert f"The last checkpoint is {run / 'checkpoint-6'}." in said
        assert newest_checkpoint(run) == run / "checkpoint-6"
        assert not list(run.glob(".incomplete-*"))


def go_on_with_a_full_disk(folder: Path, run: Path) -> None:
    """The limit on the size of a file stands in for the disk: the write fails just so."""
    trainer = make_trainer(folder, run, max_steps=9)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    trainer.train(resume_from_checkpoint="auto")
