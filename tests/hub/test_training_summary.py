# SPDX-License-Identifier: Apache-2.0
"""The record of a training run: what it says of the run, where it goes on after a stop, and that nothing in it is
private."""

import dataclasses
import getpass
import json
import shlex
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from killed_runs import build_recipe, train, write_data
from modeling_cover import CoverTrainer, CoverTrainingArguments, prepare_cotraining
from modeling_cover.hub.checkpoint_files import SUMMARY_NAME
from modeling_cover.hub.run_record import read_summary, write_summary
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from modeling_cover.recipe.mixture_recipe import MixtureRecipe
from modeling_cover.recipe.recipe import Recipe
from modeling_cover.training.run_facts import (
    dataset_origin,
    last_evaluations,
    launch_command,
    public_recipe,
    starting_point,
    training_arguments,
)
from short_runs import seal
from tiny import tiny_trainer
from transformers import HfArgumentParser


OPTIONS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
    "save_steps": 3,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "logging_steps": 1,
    "learning_rate": 0.01,
    "warmup_steps": 2,
}


def make_recipe(folder: Path) -> Recipe:
    """Six clips, one of them damaged, which are also evaluated, and a stream of twelve images."""
    write_data(folder)
    recipe = build_recipe(folder)
    videos, images = recipe.datasets
    videos = dataclasses.replace(
        videos, splits=dict.fromkeys(("train", "validation"), videos.splits["train"]), license="cc-by-4.0"
    )
    images = dataclasses.replace(images, weight=0.3, horizontal_flip=False, augmentation={"mixup_alpha": 0.2})
    return dataclasses.replace(recipe, datasets=(videos, images), training={"warmup_steps": 2, "seed": 42})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    return make_recipe(tmp_path_factory.mktemp("secret_data"))


def make_trainer(recipe: Recipe, output_dir: Path, **options: Any) -> CoverTrainer:
    return tiny_trainer(recipe, output_dir, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory) -> CoverTrainer:
    """A run of 6 steps that was not stopped, with checkpoints at 3 and 6."""
    trainer = make_trainer(recipe, tmp_path_factory.mktemp("secret_run"))
    trainer.train(resume_from_checkpoint="auto")
    trainer.save_model()
    return trainer


@pytest.fixture
def summary(finished) -> dict[str, Any]:
    return read_summary(finished.args.output_dir)


def without_times(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key != "time"}


class TestWhatItSays:
    def test_of_each_dataset(self, summary):
        videos, images = summary["datasets"]
        assert videos == {
            "name": "videos",
            "modality": "video",
            "problem_type": "single_label_classification",
            "rows": 6,
            "classes": 2,
            "share": pytest.approx(6 / 18),
            "weight": 1.0,
            "update_share": None,
            "bad_files": 1,
            "format": "class_folders",
            "license": "cc-by-4.0",
            "hub_id": None,
            "commit": None,
            "config_name": None,
            "validation_split": None,
        }
        assert (images["rows"], images["classes"], images["weight"]) == (12, 3, 0.3)
        assert (images["modality"], images["format"], images["license"]) == ("image", "parquet", None)

    def test_of_the_last_evaluation_without_the_rows_that_could_not_be_read(self, summary, finished):
        measured = finished.evaluate()
        evaluation = summary["evaluation"]["videos"]
        assert (evaluation["step"], evaluation["rows"], evaluation["unreadable"]) == (6, 5, 1)
        for key in ("top1", "top5", "loss"):
            assert evaluation[key] == pytest.approx(measured[f"eval_videos_{key}"])
        assert list(summary["evaluation"]) == ["videos"]

    def test_of_arguments_progress_time_hardware_and_software(self, summary):
        training, progress, time = summary["training"], summary["progress"], summary["time"]
        assert (training["rows_per_step"], training["precision"], training["sharding"]) == (4, "fp32", None)
        assert (training["learning_rate"], training["lr_scheduler_type"], training["seed"]) == (0.01, "linear", 42)
        assert "ema_decay" not in training
        assert (progress["step"], progress["last_step"], progress["max_steps"]) == (6, 6, 6)
        assert (progress["samples"], progress["skipped_steps"]) == (24, 0)
        assert time["samples_per_second"] == pytest.approx(24 / time["seconds"])
        assert summary["hardware"]["processes"] == 1
        assert summary["hardware"]["device"] == "CPU"
        assert summary["software"]["torch"] == torch.__version__
        assert (summary["curves"], summary["emissions"]) == ("training_curves.png", None)

    def test_a_checkpoint_in_the_middle_of_training_has_its_own(self, finished):
        summary = read_summary(Path(finished.args.output_dir) / "checkpoint-3")
        assert (summary["progress"]["step"], summary["progress"]["samples"]) == (3, 12)
        assert summary["evaluation"]["videos"]["step"] == 3
        assert summary["curves"] is None

    def test_emissions_are_those_that_codecarbon_measured_in_all_sessions(self, recipe, tmp_path):
        trainer = make_trainer(recipe, tmp_path)
        lines = "run_id,emissions,country_name\na,0.25,Somewhere\nb,0.5,Somewhere\nkilled"
        (tmp_path / "emissions.csv").write_text(lines)
        trainer.save_model()
        assert read_summary(tmp_path)["emissions"] == 0.75

    def test_weights_of_the_best_step_come_with_the_evaluation_of_that_step(self, recipe, tmp_path):
        # At a learning rate of 0 no later step is better than the first that is evaluated.
        options = {"learning_rate": 0.0, "load_best_model_at_end": True, "metric_for_best_model": "eval_videos_loss"}
        trainer = make_trainer(recipe, tmp_path, **options)
        trainer.train()
        trainer.save_model()
        summary = read_summary(tmp_path)
        assert (summary["progress"]["step"], summary["progress"]["last_step"]) == (3, 6)
        assert summary["evaluation"]["videos"]["step"] == 3
        assert read_summary(tmp_path / "checkpoint-6")["progress"]["step"] == 6

    def test_without_a_recipe_the_data_are_known_and_the_rest_is_none(self, recipe, tmp_path):
        cotraining = prepare_cotraining(recipe)
        args = CoverTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
        CoverTrainer(args=args, **(cotraining.trainer_kwargs | {"recipe": None})).save_model()
        summary = read_summary(tmp_path)
        assert (summary["recipe"], summary["command"], summary["starting_point"]) == (None, None, None)
        assert [(entry["rows"], entry["license"]) for entry in summary["datasets"]] == [(6, None), (12, None)]
        assert summary["progress"]["step"] == 0

    def test_a_trainer_that_only_evaluates_writes_none(self, recipe, tmp_path):
        cotraining = prepare_cotraining(recipe)
        args = CoverTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
        CoverTrainer(cotraining.model, args, eval_dataset=cotraining.eval_datasets).save_model()
        assert not (tmp_path / SUMMARY_NAME).exists()


class TestGoingOn:
    def test_the_record_of_a_run_that_was_stopped_differs_in_the_time_alone(self, recipe, finished, tmp_path, summary):
        shutil.copytree(Path(finished.args.output_dir) / "checkpoint-3", tmp_path / "checkpoint-3")
        trainer = make_trainer(recipe, tmp_path)
        trainer.train(resume_from_checkpoint="auto")
        trainer.save_model()
        resumed = read_summary(tmp_path)
        assert without_times(resumed) == without_times(summary)
        earlier = read_summary(tmp_path / "checkpoint-3")["time"]["seconds"]
        assert resumed["time"]["seconds"] > earlier > 0

    def test_skipped_steps_are_counted_on(self, tmp_path):
        write_data(tmp_path / "data")
        run = tmp_path / "run"
        run.mkdir()
        train(tmp_path / "data", run, poisoned={"step": 1, "process": 0}, max_steps=3)
        assert read_summary(run / "checkpoint-3")["progress"]["skipped_steps"] == 1
        train(tmp_path / "data", run, max_steps=6)
        assert read_summary(run / "final")["progress"]["skipped_steps"] == 1

    def test_a_run_that_takes_the_weights_of_another_starts_from_them(self, recipe, finished, tmp_path):
        first = Path(finished.args.output_dir) / "checkpoint-3"
        options = {"restart_schedule": True, "max_steps": 3}
        make_trainer(recipe, tmp_path, **options).train(resume_from_checkpoint=first)
        assert read_summary(tmp_path / "checkpoint-3")["starting_point"]["kind"] == "restart_schedule"
        trainer = make_trainer(recipe, tmp_path, **options)
        trainer.train(resume_from_checkpoint=first)  # resumes from its own
        trainer.save_model()
        assert read_summary(tmp_path)["starting_point"]["kind"] == "restart_schedule"

    def test_the_time_before_a_checkpoint_that_has_no_record_is_not_known(self, recipe, finished, tmp_path):
        shutil.copytree(Path(finished.args.output_dir) / "checkpoint-6", tmp_path / "checkpoint-6")
        state = tmp_path / "checkpoint-6" / "training_state" / "state.json"
        content = json.loads(state.read_text())
        del content["files"][SUMMARY_NAME]
        state.write_text(json.dumps(content))
        (tmp_path / "checkpoint-6" / SUMMARY_NAME).unlink()
        seal(tmp_path / "checkpoint-6")
        trainer = make_trainer(recipe, tmp_path)
        trainer.train(resume_from_checkpoint="auto")
        trainer.save_model()
        assert read_summary(tmp_path)["time"] == {"seconds": None, "samples_per_second": None}


class TestLicenseOfTheStart:
    @pytest.mark.parametrize(
        ("card", "license"),
        [
            ("---\nlicense: cc-by-nc-4.0\n---\n# V-JEPA 2", "cc-by-nc-4.0"),
            ("---\nlicense: other\nlicense_name: dinov3-license\n---\n", "dinov3-license"),
            ("---\nlicense: [mit, apache-2.0]\n---\n", "mit, apache-2.0"),
            ("---\ntags: [video]\n---\n", None),
            ("---\nlicense: [\n---\n", None),
            ("# No metadata", None),
            (None, None),
        ],
    )
    def test_it_is_the_one_that_the_checkpoints_card_names(self, tmp_path, card, license):
        if card is not None:
            (tmp_path / "README.md").write_text(card)
        entry = DatasetRecipe(name="a", format="dataset", modality="image", path="org/a", splits={"train": "train"})
        recipe = Recipe(datasets=(entry,), model={"from_encoder": str(tmp_path)})
        start = {"kind": "from_encoder", "hub_id": None, "commit": None, "license": license}
        assert starting_point(recipe) == start


class TestNothingPrivate:
    def test_a_run_tells_no_path_no_name_and_no_token(self, recipe, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_environmentsecretsecret")
        start = tmp_path / "secret_start"
        prepare_cotraining(recipe).model.save_pretrained(start)
        prepare_cotraining(recipe).processor.save_pretrained(start)
        recipe = dataclasses.replace(recipe, model={"from_pretrained": str(start)})
        private = {"hub_token": "hf_argumentsecretsecret", "run_name": "secret_name", "hub_model_id": "secret/secret"}
        trainer = make_trainer(recipe, tmp_path / "secret_output", **private)
        trainer.save_model()
        text = (tmp_path / "secret_output" / SUMMARY_NAME).read_text()
        assert "secret" not in text
        assert socket.gethostname() not in text
        assert f"/{getpass.getuser()}" not in text
        assert read_summary(tmp_path / "secret_output")["starting_point"] == {
            "kind": "from_pretrained",
            "hub_id": None,
            "commit": None,
            "license": None,
            "stale_heads": [],
        }

    @pytest.mark.parametrize(
        "dataset",
        [
            {"format": "manifest", "media_root": "secret/videos", "labels": "secret/labels.txt"},
            {"format": "kinetics", "media_root": "/secret", "labels": ["secret", "other"]},
            {"format": "webdataset", "streaming": True, "sizes": {"train": 5}},
            {"format": "dataset", "path": "./secret data", "splits": {"train": "train"}},
        ],
        ids=lambda dataset: dataset["format"],
    )
    def test_every_path_of_a_recipe_is_replaced(self, dataset):
        splits = {"train": "secret/train", "validation": "/secret/val"}
        entry = DatasetRecipe(**{"name": "k400", "modality": "video", "splits": splits, **dataset})
        public = public_recipe(Recipe(datasets=(entry,), model={"from_timesformer": "/secret/model.pyth"}))
        assert "secret" not in json.dumps(public)
        assert public["model"] == {"from_timesformer": "PATH"}
        (shown,) = public["datasets"]
        assert set(shown) == {"name", "modality", "splits", *dataset}

    def test_ids_of_the_hub_are_kept_and_folders_of_the_same_name_are_not(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        entry = DatasetRecipe(
            name="ucf",
            format="dataset",
            modality="video",
            path="org/ucf101",
            config_name="full",
            splits={"train": "train", "validation": "test"},
        )
        recipe = Recipe(datasets=(entry,), model={"from_image_checkpoint": "google/vit"})
        # Which was never loaded.
        expected = {"kind": "from_image_checkpoint", "hub_id": "google/vit", "commit": None, "license": None}
        assert starting_point(recipe) == expected
        assert dataset_origin(entry)["hub_id"] == "org/ucf101"
        assert (dataset_origin(entry)["config_name"], dataset_origin(entry)["validation_split"]) == ("full", "test")
        assert public_recipe(recipe)["datasets"][0]["splits"] == {"train": "train", "validation": "test"}
        (tmp_path / "org" / "ucf101").mkdir(parents=True)
        (tmp_path / "google" / "vit").mkdir(parents=True)
        assert starting_point(recipe)["hub_id"] is None
        assert dataset_origin(entry)["hub_id"] is None
        assert public_recipe(recipe)["model"] == {"from_image_checkpoint": "PATH"}


class TestRecipeAndCommand:
    def test_the_recipe_is_what_was_given_of_it(self, summary):
        recipe = summary["recipe"]
        assert recipe["clips"] == {
            "num_frames": 2,
            "image_size": 16,
            "short_side": 20,
            "sampling": "uniform",
            "frame_stride": 1,
        }
        assert recipe["datasets"][1] == {
            "name": "images",
            "format": "parquet",
            "modality": "image",
            "splits": {"train": "PATH"},
            "weight": 0.3,
            "horizontal_flip": False,
            "augmentation": {"mixup_alpha": 0.2},
            "streaming": True,
            "sizes": {"train": 12},
            "shuffle_buffer": 4,
        }
        assert recipe["training"] == {"warmup_steps": 2, "seed": 42}
        assert recipe["bad_files"] == {"max_share": 0.5}

    def test_a_public_recipe_says_how_datasets_are_mixed(self):
        entry = DatasetRecipe(name="a", format="class_folders", modality="video", splits={"train": "a"}, share=2)
        public = public_recipe(Recipe(datasets=(entry,), mixture=MixtureRecipe(sampling="shares")))
        assert public["mixture"] == {"sampling": "shares"}
        assert public["datasets"][0]["share"] == 2

    def test_the_command_has_what_is_neither_in_the_recipe_nor_a_default(self, summary):
        assert summary["command"] == (
            "accelerate launch examples/cotrain.py RECIPE.yaml --max_steps 6 --per_device_train_batch_size 2 "
            "--gradient_accumulation_steps 2 --learning_rate 0.01"
        )

    def test_it_is_one_that_the_example_understands(self, recipe, tmp_path):
        options = {
            "lr_scheduler_type": "constant",
            "learning_rate_drop_epochs": [1.0, 2.5],
            "warmup_steps": 3,
            "bf16": True,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
        }
        fixed = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True}
        args = CoverTrainingArguments(**fixed, **options)
        command = shlex.split(launch_command(recipe, args, processes=8))
        # On CPUs, accelerate's launcher would start one.
        assert command[:5] == ["ACCELERATE_USE_CPU=true", "torchrun", "--standalone", "--nproc_per_node", "8"]
        assert not any("metric_for_best_model" in word for word in command)
        parser = HfArgumentParser(CoverTrainingArguments)
        parser.set_defaults(**fixed, **recipe.training, eval_strategy="epoch", save_strategy="epoch")
        (parsed,) = parser.parse_args_into_dataclasses(command[7:])
        assert training_arguments(parsed) == training_arguments(args)


class TestEvaluations:
    HISTORY = [
        {"step": 2, "eval_a_loss": 1.0, "eval_a_top1": 0.5},
        {"step": 4, "eval_a_loss": 0.5, "eval_a_map": 0.25, "eval_a_unreadable": 2},
        {"step": 4, "eval_b_loss": float("nan"), "eval_b_top1": 0.75},
    ]

    def test_they_are_the_last_up_to_a_step(self):
        assert last_evaluations(self.HISTORY, {"a": 9}, 3) == {
            "a": {"step": 2, "top1": 0.5, "loss": 1.0, "rows": 9, "unreadable": 0}
        }
        assert last_evaluations(self.HISTORY, {"a": 9}, 4) == {
            "a": {"step": 4, "map": 0.25, "loss": 0.5, "rows": 7, "unreadable": 2}
        }
        assert last_evaluations(self.HISTORY, {"a": 9}, 1) == {}

    def test_what_is_not_finite_is_left_out(self):
        assert last_evaluations(self.HISTORY, {"b": None}, 4) == {
            "b": {"step": 4, "top1": 0.75, "rows": None, "unreadable": 0}
        }


class TestReading:
    def test_there_may_be_none(self, tmp_path):
        assert read_summary(tmp_path) is None

    @pytest.mark.parametrize(
        ("content", "message"), [("{", "cannot be read"), ("[]", "version 1"), ('{"version": 2}', "version 1")]
    )
    def test_one_that_is_damaged_or_unknown_is_named(self, tmp_path, content, message):
        (tmp_path / SUMMARY_NAME).write_text(content)
        with pytest.raises(ValueError, match=rf"{SUMMARY_NAME}.*{message}"):
            read_summary(tmp_path)

    def test_what_is_written_is_read(self, tmp_path):
        write_summary({"command": None, "training": {"max_grad_norm": float("inf")}, "parts": []}, tmp_path)
        expected = {"version": 1, "command": None, "training": {"max_grad_norm": "inf"}, "parts": []}
        assert read_summary(tmp_path) == expected

    def test_a_record_from_before_runs_had_parts_has_none(self, tmp_path):
        write_summary({"command": None}, tmp_path)
        assert read_summary(tmp_path)["parts"] == []
