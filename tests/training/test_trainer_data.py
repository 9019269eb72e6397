# SPDX-License-Identifier: Apache-2.0
"""A whole training run on data that is not as it should be, or not plain: bad files, streams, several labels."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import step_clock
import torch
from clips import write_clip
from modeling_cover import (
    CoTrainingDataset,
    CoverTrainer,
    EvaluationDataset,
    Recipe,
    prepare_cotraining,
)
from modeling_cover.data.quarantine import TooManyBadFilesError
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from modeling_cover.recipe.mixture_recipe import MixtureRecipe
from modeling_cover.recipe.recipe import BadFilesRecipe, ClipRecipe
from PIL import Image
from test_trainer import normalized
from tiny import ENCODER, tiny_trainer


@pytest.fixture
def recipe(tmp_path) -> Recipe:
    """Six clips in two classes, and twelve images with one, two or three labels; one of each is broken."""
    rng = np.random.default_rng(0)
    for split, index in itertools.product(("train", "validation"), range(6)):
        path = tmp_path / "videos" / split / f"class{index % 2}" / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
    (tmp_path / "images").mkdir()
    for split in ("train", "validation"):
        lines = []
        for index in range(12):
            name = f"{split}{index}.png"
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
            labels = ["red", *(["green"] if index % 2 else []), *(["blue"] if index % 3 else [])]
            lines.append({"path": name, "label": labels})
        (tmp_path / "images" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for split in ("train", "validation"):
        (tmp_path / "videos" / split / "class0" / "2.mp4").write_bytes(b"no video")
        (tmp_path / "images" / f"{split}5.png").write_bytes(b"no image")
    return Recipe(
        datasets=(
            DatasetRecipe(
                name="videos",
                format="class_folders",
                modality="video",
                splits={split: str(tmp_path / "videos" / split) for split in ("train", "validation")},
            ),
            DatasetRecipe(
                name="images",
                format="manifest",
                modality="image",
                splits={split: str(tmp_path / "images" / f"{split}.jsonl") for split in ("train", "validation")},
                problem_type="multi_label_classification",
            ),
        ),
        clips=ClipRecipe(num_frames=2, image_size=16, short_side=20),
        bad_files=BadFilesRecipe(max_share=0.5),
        model={**ENCODER, "initializer_range": 0.3},
    )


def make_trainer(recipe: Recipe, output_dir: Path, **options) -> CoverTrainer:
    defaults = {
        "per_device_train_batch_size": 6,
        "per_device_eval_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 0.01,
        "logging_steps": 1,
        "save_strategy": "no",
    }
    return tiny_trainer(recipe, output_dir, **{**defaults, **options})


def trained(recipe: Recipe, output_dir: Path, **options) -> tuple[CoverTrainer, dict[str, torch.Tensor]]:
    trainer = make_trainer(recipe, output_dir, **options)
    trainer.train()
    return trainer, {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(first[name], second[name]) for name in first)


class TestBadFiles:
    def test_training_goes_on_without_them_and_the_log_counts_them(self, recipe, tmp_path):
        trainer, _ = trained(recipe, tmp_path / "run")
        last = [entry for entry in trainer.state.log_history if "loss" in entry][-1]
        assert (last["videos_bad_files"], last["images_bad_files"]) == (1, 1)
        lines = [json.loads(line) for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()]
        assert sorted(Path(line["path"]).name for line in lines) == ["2.mp4", "train5.png"]

    @pytest.mark.parametrize("num_workers", [1, 3])
    def test_the_weights_are_the_same_with_any_number_of_workers(self, recipe, tmp_path, num_workers):
        _, alone = trained(recipe, tmp_path / "alone")
        _, weights = trained(recipe, tmp_path / "workers", dataloader_num_workers=num_workers)
        assert_equal(weights, alone)

    def test_a_new_run_tries_them_again_and_a_resumed_one_does_not(self, recipe, tmp_path):
        options = {"save_strategy": "steps", "save_steps": 3}
        trained(recipe, tmp_path / "run", **options)
        quarantine = tmp_path / "run" / "quarantine.jsonl"
        with quarantine.open("a") as file:
            file.write('{"dataset": "videos", "path": "from an earlier run", "reason": ""}\n')
        make_trainer(recipe, tmp_path / "run", **options).train(resume_from_checkpoint=True)
        assert "from an earlier run" in quarantine.read_text()
        for checkpoint in (tmp_path / "run").glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        make_trainer(recipe, tmp_path / "run", **options).train(resume_from_checkpoint="auto")
        assert "from an earlier run" not in quarantine.read_text()
        assert len(quarantine.read_text().splitlines()) == 2

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_too_many_stop_it_with_examples(self, recipe, tmp_path, num_workers):
        recipe = dataclasses.replace(recipe, bad_files=BadFilesRecipe(max_share=0))
        with pytest.raises(
            TooManyBadFilesError, match=r"dataset 'videos', train split: 1 of the 6 rows .*\n.*2\.mp4: "
        ):
            trained(recipe, tmp_path / "run", dataloader_num_workers=num_workers)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_a_dataset_that_vanishes_stops_it_with_the_last_checkpoint_intact(self, recipe, tmp_path, num_workers):
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 50, "dataloader_num_workers": num_workers}
        trainer = make_trainer(recipe, tmp_path / "run", **options)
        save = trainer._save_checkpoint

        def save_and_pull_the_plug(*args, **kwargs):
            save(*args, **kwargs)
            shutil.rmtree(tmp_path / "videos", ignore_errors=True)

        trainer._save_checkpoint = save_and_pull_the_plug
        with pytest.raises(FileNotFoundError, match=r"dataset 'videos': .*train was there at the start"):
            trainer.train()
        recipe = dataclasses.replace(recipe, datasets=recipe.datasets[1:])
        assert (tmp_path / "run" / "checkpoint-2" / "model.safetensors").is_file()
        checkpoint = {"from_pretrained": str(tmp_path / "run" / "checkpoint-2")}
        recipe = dataclasses.replace(recipe, model=checkpoint)
        assert prepare_cotraining(recipe).model.config.head_names == ["images", "videos"]

    def test_an_evaluation_leaves_them_out_and_says_how_many(self, recipe, tmp_path):
        trainer = make_trainer(recipe, tmp_path / "run")
        metrics = trainer.evaluate()
        assert metrics["eval_videos_unreadable"] == metrics["eval_images_unreadable"] == 1
        predictions = trainer.predict(trainer.eval_dataset["videos"])
        readable = predictions.label_ids >= 0
        assert readable.sum() == 5
        hits = predictions.predictions[readable, 0] == predictions.label_ids[readable]
        assert metrics["eval_videos_top1"] == pytest.approx(hits.mean())
        losses = []
        for row in np.flatnonzero(readable).tolist():
            sample = trainer.eval_dataset["videos"][row]
            with torch.no_grad():
                logits = trainer.model.eval()(normalized(sample), head="videos").logits
            losses.append(torch.nn.functional.cross_entropy(logits[0], torch.tensor(sample["labels"])).item())
        assert metrics["eval_videos_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
        # Of a batch in which none can be decoded, nothing is in it either; nor where predictions are not gathered.
        for options in ({"per_device_eval_batch_size": 1}, {"prediction_loss_only": True}):
            trainer = make_trainer(recipe, tmp_path / "run", **options)
            assert trainer.evaluate()["eval_videos_loss"] == pytest.approx(np.mean(losses), rel=1e-4)

    def test_an_evaluation_by_itself_tries_files_again_that_may_have_been_mended(self, recipe, tmp_path):
        assert make_trainer(recipe, tmp_path / "run").evaluate()["eval_videos_unreadable"] == 1
        good = next(path for path in (tmp_path / "videos/validation").rglob("*.mp4") if path.stat().st_size > 100)
        (bad,) = [
            json.loads(line)["path"]
            for line in (tmp_path / "run" / "quarantine.jsonl").read_text().splitlines()
            if json.loads(line)["dataset"] == "videos"
        ]
        shutil.copy(good, bad)
        assert "eval_videos_unreadable" not in make_trainer(recipe, tmp_path / "run").evaluate()


class TestSeveralLabels:
    def test_their_loss_is_torchs_binary_cross_entropy(self, recipe, tmp_path):
        trainer = make_trainer(recipe, tmp_path / "run", max_steps=1, per_device_train_batch_size=18)
        logits, labels = [], []
        for reference in itertools.islice(trainer.train_sampler.schedule.references(), 18):
            sample = trainer.train_dataset[reference]
            if sample["dataset"] == "images":
                with torch.no_grad():
                    logits.append(trainer.model.eval()(normalized(sample), head="images").logits[0])
                labels.append(sample["labels"])
        trainer.train()
        expected = torch.nn.functional.binary_cross_entropy_with_logits(torch.stack(logits), torch.stack(labels))
        (logged,) = [entry["images_loss"] for entry in trainer.state.log_history if "images_loss" in entry]
        assert logged == pytest.approx(expected.item(), rel=1e-5)

    def test_an_evaluation_has_their_mean_average_precision(self, recipe, tmp_path):
        metrics = make_trainer(recipe, tmp_path / "run").evaluate()
        assert 0 < metrics["eval_images_map"] <= 1
        assert "eval_images_top1" not in metrics


class TestMixtures:
    def test_the_share_of_the_samples_is_the_recipes(self, recipe, tmp_path):
        recipe = dataclasses.replace(recipe, mixture=MixtureRecipe(sampling="equal"))
        trainer, _ = trained(recipe, tmp_path / "run", max_steps=1, per_device_train_batch_size=18)
        (logged,) = [entry for entry in trainer.state.log_history if "loss" in entry]
        drawn = [reference.dataset for reference in itertools.islice(trainer.train_sampler.references(), 1024)]
        assert drawn.count("videos") == pytest.approx(512, abs=2)  # of 6 rows beside 12
        assert logged["videos_share"] == pytest.approx(drawn[:18].count("videos") / 18)
        assert logged["images_share"] == pytest.approx(drawn[:18].count("images") / 18)

    def test_the_log_has_the_part_of_the_time_spent_waiting_for_data(self, recipe, tmp_path):
        trainer, _ = trained(recipe, tmp_path / "run", max_steps=3)
        waits = [entry["data_wait"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(waits) == 3
        assert all(0 < wait < 1 for wait in waits)

    def test_an_evaluation_is_no_time_of_training(self, recipe, tmp_path, monkeypatch):
        seconds = {(CoTrainingDataset, "__getitem__"): 1, (EvaluationDataset, "__getitem__"): 3600}
        step_clock.take(monkeypatch, {**seconds, (CoverTrainer, "training_step"): 1})
        trainer, _ = trained(recipe, tmp_path / "run", max_steps=4, eval_strategy="steps", eval_steps=1)
        waits = [entry["data_wait"] for entry in trainer.state.log_history if "loss" in entry]
        # Of an epoch of three steps of 6 rows, the loader is one step ahead.
        assert waits == pytest.approx([12 / 13, 6 / 7, 0, 12 / 13])

    def test_mixed_samples_train(self, recipe, tmp_path):
        recipe = dataclasses.replace(recipe, augmentation={"mixup_alpha": 0.8, "cutmix_alpha": 1.0})
        _, first = trained(recipe, tmp_path / "first")
        _, second = trained(recipe, tmp_path / "second", dataloader_num_workers=2)
        assert_equal(first, second)


class TestStreams:
    @pytest.fixture
    def streaming(self, recipe, tmp_path) -> Recipe:
        """The images as a stream out of two Parquet files, beside the videos, which are indexed."""
        (tmp_path / "shards").mkdir()
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
        for shard in range(2):
            rows = [tmp_path / "images" / f"train{index}.png" for index in range(6 * shard, 6 * shard + 6)]
            images = [{"path": path.name, "bytes": path.read_bytes()} for path in rows]
            table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2] * 2}, features=features)
            table.to_parquet(tmp_path / "shards" / f"{shard}.parquet")
        stream = DatasetRecipe(
            name="images",
            format="parquet",
            modality="image",
            splits={"train": str(tmp_path / "shards")},
            streaming=True,
            sizes={"train": 12},
            shuffle_buffer=4,
        )
        return dataclasses.replace(recipe, datasets=(recipe.datasets[0], stream))

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_they_train_beside_indexed_sources_and_a_resumed_run_ends_with_the_same_weights(
        self, streaming, tmp_path, num_workers
    ):
        options = {"save_strategy": "steps", "save_steps": 4, "max_steps": 10, "per_device_train_batch_size": 3}
        _, whole = trained(streaming, tmp_path / "run", **options)
        trainer = make_trainer(streaming, tmp_path / "run", dataloader_num_workers=num_workers, **options)
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-8"))  # inside the second epoch
        assert_equal(dict(trainer.model.named_parameters()), whole)
