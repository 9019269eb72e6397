# SPDX-License-Identifier: Apache-2.0
"""Training on datasets that are given as objects: the same as by a recipe."""

import dataclasses
import itertools
import random
import shutil
import time
import tracemalloc

import datasets
import forked_runs
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Features, Video
from given_datasets import Rows, given_trainer, image_stream, interleaved, video_rows, videos
from killed_runs import build_recipe, faults_of, run_killed, run_whole
from modeling_cover import (
    CoTrainingDataset,
    CoverForVideoClassification,
    CoverTrainer,
    CoverTrainingArguments,
    CoverVideoProcessor,
)
from modeling_cover.data.mixture import MixtureSchedule
from modeling_cover.data.sources import to_source
from modeling_cover.recipe.augmentation_recipe import Augmentation
from modeling_cover.recipe.mixture_recipe import MixtureRecipe
from modeling_cover.training.checkpoints import CheckpointError
from modeling_cover.training.from_recipe import build_processor
from short_runs import final_weights, make_trainer, with_validation
from tiny import tiny_config, tiny_processor
from transformers import TrainerCallback


@pytest.fixture(scope="module")
def by_recipe(folder, tmp_path_factory):
    """The weights of a run by a recipe."""
    trainer = make_trainer(folder, tmp_path_factory.mktemp("recipe"), max_steps=6)
    trainer.train()
    return final_weights(trainer)


def shuffled_back(table: datasets.Dataset) -> datasets.Dataset:
    """The same rows in the same order, by way of an indices mapping."""
    order = [3, 1, 0, 5, 4, 2]
    return table.select(order).select([order.index(row) for row in range(6)])


@pytest.mark.parametrize(
    "given_videos",
    [
        pytest.param(lambda folder: videos(folder), id="video feature"),
        pytest.param(lambda folder: videos(folder, "path"), id="paths"),
        pytest.param(lambda folder: videos(folder, "bytes"), id="bytes"),
        pytest.param(lambda folder: shuffled_back(videos(folder)), id="indices mapping"),
        pytest.param(lambda folder: videos(folder).with_format("torch"), id="set_format"),
        pytest.param(
            lambda folder: videos(folder, "path").with_transform(lambda rows: {key: rows[key] for key in rows}),
            id="with_transform",
        ),
        pytest.param(lambda folder: videos(folder).rename_columns({"video": "clip", "label": "y"}), id="other names"),
        pytest.param(
            lambda folder: Rows(
                [
                    dict(zip(("video", "label"), row, strict=True))
                    for row in zip(*video_rows(folder).values(), strict=True)
                ],
                ["class0", "class1"],
            ),
            id="map-style",
        ),
    ],
)
def test_the_weights_are_those_of_a_run_by_a_recipe_to_the_bit(folder, tmp_path, by_recipe, given_videos):
    given = {"videos": given_videos(folder), "images": image_stream(folder)}
    trainer = given_trainer(folder, tmp_path, given)
    trainer.train()
    for name, weight in final_weights(trainer).items():
        assert torch.equal(weight, by_recipe[name]), name
    assert trainer.train_dataset.bad_files == {"videos": 1}


class TestResuming:
    @pytest.fixture(scope="class")
    @staticmethod
    def whole(folder, tmp_path_factory):
        """The output folder and the weights of a run that was not stopped, by way of 3 passes over its stream."""
        output_dir = tmp_path_factory.mktemp("whole")
        trainer = given_trainer(folder, output_dir, interleaved(folder), max_steps=12, save_steps=5)
        trainer.train()
        return output_dir, final_weights(trainer)

    @pytest.mark.parametrize(("step", "workers"), [(5, 0), (5, 1), (10, 3)])
    def test_inside_an_epoch_it_goes_on_to_the_same_weights(self, folder, tmp_path, whole, step, workers):
        output_dir, weights = whole
        shutil.copytree(output_dir / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
        options = {"max_steps": 12, "save_steps": 5, "dataloader_num_workers": workers}
        trainer = given_trainer(folder, tmp_path, interleaved(folder), **options)
        trainer.train(resume_from_checkpoint=True)
        for name, weight in final_weights(trainer).items():
            assert torch.equal(weight, weights[name]), name

    def test_rows_in_another_order_are_another_run(self, folder, tmp_path, whole):
        shutil.copytree(whole[0] / "checkpoint-5", tmp_path / "checkpoint-5")
        given = interleaved(folder) | {"videos": videos(folder).shuffle(seed=2)}
        trainer = given_trainer(folder, tmp_path, given, max_steps=12)
        with pytest.raises(CheckpointError, match=r"dataset 'videos': .*rows have other labels"):
            trainer.train(resume_from_checkpoint=True)

    @pytest.mark.slow
    @pytest.mark.parametrize("processes", [1, 2])
    def test_a_killed_run_ends_as_one_that_was_not_stopped(self, folder, tmp_path, processes):
        """It is killed with one worker, goes on with three, is killed again, and goes on without."""
        options = {"given": True, "processes": processes, "per_device_train_batch_size": 4 // processes}
        whole = run_whole(folder, tmp_path / "whole", launch=forked_runs.start, **options)
        run, how = tmp_path / "killed", {"kills": 2, "workers": (1, 3), "rng": random.Random(processes)}
        run_killed(folder, run, launch=forked_runs.start, **how, **options)
        assert faults_of(run, whole, processes) == []


class TestMixture:
    @pytest.mark.parametrize(
        ("trainer", "recipe"),
        [
            ({}, {}),
            ({"mixture": "equal"}, {"sampling": "equal"}),
            ({"mixture": "temperature", "temperature": 2.0}, {"sampling": "temperature", "temperature": 2.0}),
            ({"mixture": {"videos": 3, "images": 1}, "when_exhausted": "stop"}, None),
            ({"mixture": lambda sizes: {"videos": sizes["videos"], "images": 2}, "when_exhausted": "stop"}, None),
        ],
    )
    def test_it_is_drawn_as_by_a_recipe(self, folder, tmp_path, trainer, recipe):
        given = {"videos": videos(folder), "images": image_stream(folder)}
        found = given_trainer(folder, tmp_path / "given", given, trainer=trainer).train_sampler.schedule
        if recipe is None:
            shares = {"videos": 0.75, "images": 0.25}
            expected = MixtureSchedule({"videos": 6, "images": 12}, 42, shares, when_exhausted="stop")
        else:
            by_recipe = dataclasses.replace(build_recipe(folder), mixture=MixtureRecipe(**recipe))
            expected = make_trainer(folder, tmp_path / "recipe", by_recipe).train_sampler.schedule
        draws = itertools.islice(zip(found.references(), expected.references(), strict=True), 100)
        assert all(one == other for one, other in draws)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"mixture": "shares"},
                r"mixture must be one of \('proportional', 'equal', 'temperature'\), got 'shares'",
            ),
            ({"mixture": lambda sizes: {"videos": 1}}, r"mixture: expected a share of each of \['images', 'videos'\]"),
            ({"mixture": {"videos": 1.0}}, "needs a share of each dataset, missing: images"),
            ({"mixture": {"videos": 1.0, "images": 1.0, "audio": 1.0}}, r"mixture: unknown datasets \['audio'\]"),
            ({"mixture": {"videos": -1.0, "images": 1.0}}, "mixture: videos must be a finite number above 0"),
            ({"temperature": 2.0}, "temperature 2.0 has no effect with sampling 'proportional'"),
            ({"when_exhausted": "restart"}, "when_exhausted must be one of"),
            ({"sizes": {"images": 12, "audio": 3}}, r"sizes: unknown datasets \['audio'\]"),
            ({"sizes": {"images": 0}}, "sizes: images must be a positive whole number, got 0"),
            ({"sizes": {"images": 12, "videos": 6}}, "dataset 'videos': sizes: of use to a datasets.IterableDataset"),
            ({"sizes": None}, "dataset 'images': nothing says how many rows"),
            ({"shuffle_buffer": 0}, "shuffle_buffer must be a positive whole number"),
            ({"clip_sampling": "random"}, "clip_sampling must be one of"),
            ({"augmentations": {"audio": Augmentation()}}, r"augmentations: unknown datasets \['audio'\]"),
            ({"processing_class": None}, "processing_class: expected the CoverVideoProcessor .*, got NoneType"),
            (
                {"processing_class": CoverVideoProcessor()},
                r"makes clips of 8 frames of 224x224 .*the model takes 2 of 16x16",
            ),
        ],
    )
    def test_options_that_make_no_sense_are_named(self, folder, tmp_path, options, message):
        given = {"videos": videos(folder), "images": image_stream(folder)}
        with pytest.raises(ValueError, match=message):
            given_trainer(folder, tmp_path, given, trainer=options)

    def test_they_are_of_use_to_datasets_alone(self, folder, tmp_path):
        made = make_trainer(folder, tmp_path / "made")
        given = {"model": made.model, "args": made.args, "train_dataset": made.train_dataset}
        with pytest.raises(ValueError, match=r"mixture: of use where train_dataset is \{name: dataset\}"):
            CoverTrainer(**given, mixture="equal")
        with pytest.raises(ValueError, match="schedule: of use with a CoTrainingDataset"):
            CoverTrainer(**given | {"train_dataset": {"videos": videos(folder)}}, schedule=made.train_sampler.schedule)


class TestHeads:
    def trainer(self, folder, tmp_path, labels: list[str], name: str = "videos", **options) -> CoverTrainer:
        """Of a model whose only head has these labels."""
        model = CoverForVideoClassification(
            tiny_config({name: {"labels": labels, **options}}, num_frames=2, image_size=16)
        )
        args = CoverTrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
        processor = build_processor(build_recipe(folder))
        return CoverTrainer(model, args, train_dataset={"videos": videos(folder)}, processing_class=processor)

    @pytest.mark.parametrize(
        ("labels", "options", "message"),
        [
            (["class0", "class1"], {"name": "clips"}, r"train_dataset: no head 'videos': the model's heads are \['clips'\]"),
            (["class0", "class1", "class2"], {}, "dataset 'videos' has 2 classes, its head 3"),
            (["class0", "other"], {}, "dataset 'videos': class 1 is 'class1', and 'other' in its head"),
            (["class1", "class0"], {}, "class 0 is 'class0', and 'class1' in its head. .*same in another order"),
            (
                ["class0", "class1"],
                {"problem_type": "multi_label_classification"},
                "dataset 'videos' is for single_label_classification, its head for multi_label_classification",
            ),
        ],
    )  # fmt: skip
    def test_one_that_does_not_go_with_its_dataset_is_told_with_both(self, folder, tmp_path, labels, options, message):
        with pytest.raises(ValueError, match=message):
            self.trainer(folder, tmp_path, labels, **options)


class TestEvaluating:
    @pytest.fixture(scope="class")
    @staticmethod
    def trainer(folder, tmp_path_factory) -> CoverTrainer:
        given = {"videos": videos(folder), "images": image_stream(folder)}
        return given_trainer(
            folder, tmp_path_factory.mktemp("run"), given, trainer={"eval_dataset": {"videos": videos(folder)}}
        )

    def test_datasets_are_evaluated_as_by_a_recipe(self, folder, trainer, tmp_path):
        expected = make_trainer(folder, tmp_path, with_validation(build_recipe(folder)))
        expected.model.load_state_dict(trainer.model.state_dict())
        metrics, others = trainer.evaluate(), expected.evaluate()
        of_model = [key for key in others if not key.endswith(("_runtime", "_per_second", "_time"))]
        assert {key: metrics[key] for key in of_model} == {key: others[key] for key in of_model}
        assert metrics["eval_videos_unreadable"] == 1

    def test_so_are_those_that_are_given_later(self, folder, trainer):
        at_first = trainer.evaluate()
        by_name = trainer.evaluate(eval_dataset={"videos": videos(folder, "bytes")})
        alone = trainer.evaluate(eval_dataset=videos(folder))  # the default head's
        assert by_name["eval_videos_top1"] == alone["eval_top1"] == at_first["eval_videos_top1"]
        predicted = trainer.predict(videos(folder).select([0, 2, 3]))
        assert predicted.label_ids.tolist() == [0, 0, 1]
        assert predicted.metrics["test_loss"] > 0
        named = trainer.predict({"videos": videos(folder).select([3])})
        assert named.label_ids.tolist() == [1]
        with pytest.raises(ValueError, match=r"predictions are of one dataset, got \['images', 'videos'\]"):
            trainer.predict(dict.fromkeys(("videos", "images"), videos(folder)))

    def test_a_bad_row_of_one_dataset_is_none_of_the_next(self, folder, trainer):
        bad = trainer.evaluate(eval_dataset={"videos": videos(folder, "bytes")})
        good = videos(folder, "bytes").select([0, 2, 3, 4, 5, 0])
        assert bad["eval_videos_unreadable"] == 1
        assert trainer.evaluate(eval_dataset={"videos": good}).get("eval_videos_unreadable", 0) == 0
        assert trainer.evaluate()["eval_videos_unreadable"] == 1

    def test_a_head_that_is_not_there_is_named(self, folder, trainer):
        with pytest.raises(ValueError, match="eval_dataset: no head 'audio'"):
            trainer.evaluate(eval_dataset={"audio": videos(folder)})


class TestWhatATransformersUserTriesNext:
    def test_metrics_callbacks_and_the_best_checkpoint(self, folder, tmp_path):
        seen = []

        class Watching(TrainerCallback):
            def on_evaluate(self, args, state, control, metrics=None, **kwargs):
                seen.append(state.global_step)

        def compute_metrics(prediction) -> dict[str, float]:
            return {"right": float((prediction.predictions.argmax(-1) == prediction.label_ids).sum())}

        given, validation = {"videos": videos(folder)}, {"videos": videos(folder).select([0, 1, 3])}
        best = {"load_best_model_at_end": True, "metric_for_best_model": "videos_right", "greater_is_better": True}
        trainer = given_trainer(
            folder,
            tmp_path,
            given,
            **best,
            eval_strategy="steps",
            eval_steps=3,
            trainer={"eval_dataset": validation, "compute_metrics": compute_metrics, "callbacks": [Watching()]},
        )
        trainer.train()
        assert set(seen) == {3, 6}
        assert trainer.state.best_metric == max(
            entry["eval_videos_right"] for entry in trainer.state.log_history if "eval_videos_right" in entry
        )

    def test_a_search_of_hyperparameters_is_a_trainer_of_each_trial(self, folder, tmp_path):
        trainer = given_trainer(folder, tmp_path, {"videos": videos(folder)})
        message = "hyperparameter_search: a trainer is of one run, .*; make a trainer of each trial"
        with pytest.raises(ValueError, match=message):
            trainer.hyperparameter_search(n_trials=2)
        with pytest.raises(ValueError, match=message):
            CoverTrainer(trainer.model, trainer.args, model_init=lambda: trainer.model)
        for trial, rate in enumerate((1e-4, 1e-3)):
            options = {"learning_rate": rate, "max_steps": 1}
            given_trainer(folder, tmp_path / str(trial), {"videos": videos(folder)}, **options).train()


def test_floats_that_the_model_takes_train_as_they_are(folder, tmp_path):
    rows = [{"pixel_values": torch.full((2, 3, 16, 16), float(row)), "label": row % 2} for row in range(4)]
    given = {"videos": Rows(rows, ["a", "b"])}
    trainer = given_trainer(
        folder, tmp_path, given, max_steps=2, eval_strategy="steps", trainer={"eval_dataset": given}
    )
    seen = [
        trainer.train_dataset[reference]["pixel_values"] for reference in itertools.islice(trainer.train_sampler, 4)
    ]
    assert sorted(clip.unique().item() for clip in seen) == [0, 1, 2, 3]
    trainer.train()
    mixing = {"augmentations": {"videos": Augmentation(mixup_alpha=0.8)}, "eval_dataset": None}
    trainer = given_trainer(folder, tmp_path / "mixing", given, trainer=mixing)
    with pytest.raises(ValueError, match="dataset 'videos': its pixel_values are floats, which are not mixed"):
        trainer.train_dataset[next(iter(trainer.train_sampler))]


def test_a_million_rows_behind_an_indices_mapping_cost_little():
    """In seconds of the processor, of which a busy machine has none to spare; what Arrow allocates, and Python."""
    count = 1_000_000
    features = Features({"video": Video(decode=False), "label": ClassLabel(names=[f"class {i}" for i in range(400)])})
    paths = pa.StructArray.from_arrays(
        [pa.nulls(count, pa.binary()), pa.array([f"folder/{row:07}.mp4" for row in range(count)])], ["bytes", "path"]
    )
    table = pa.table({"video": paths, "label": np.arange(count) % 400}).cast(features.arrow_schema)
    table = datasets.Dataset(table, info=datasets.DatasetInfo(features=features)).shuffle(seed=0)
    to_source("given", table.select(range(10)))  # what is imported then
    began, arrow = time.process_time(), pa.total_allocated_bytes()
    tracemalloc.start()
    dataset = CoTrainingDataset([to_source("given", table)], ["given"], tiny_processor(), seed=0)
    sampler = dataset.sampler(MixtureSchedule(dataset.sizes, seed=0), step_size=8, batch_size=8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    seconds = time.process_time() - began
    assert seconds < 1.0
    assert peak + pa.total_allocated_bytes() - arrow < 100e6
    began = time.process_time()
    drawn = sum(1 for _ in itertools.islice(sampler, 100_000))
    assert (time.process_time() - began) / drawn < 20e-6
