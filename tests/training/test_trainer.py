# SPDX-License-Identifier: Apache-2.0
"""Co-training: the loss, its independence of accumulation and processes, what is logged, schedules, resuming."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import write_clip
from forked_runs import start_processes
from modeling_cover import (
    CoTrainingDataset,
    CoverForVideoClassification,
    CoverTrainer,
    CoverTrainingArguments,
    CoverVideoProcessor,
    collate_clips,
    prepare_cotraining,
)
from modeling_cover.data.mixture import MixtureSampler
from modeling_cover.recipe.recipe import ClipRecipe, DatasetRecipe, Recipe
from modeling_cover.training import batches
from PIL import Image
from tiny import ENCODER, tiny_trainer
from torch.nn import functional as F
from transformers import EarlyStoppingCallback, TrainerCallback


MODEL = {**ENCODER, "default_head": "videos", "initializer_range": 0.3}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    """Two datasets of real files: 6 clips in 2 classes and 10 images in 3, each of random noise."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split in ("train", "validation"):
        for index in range(6):
            path = folder / "videos" / split / f"class{index % 2}" / f"{index}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(path, rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8))
        for index in range(10):
            path = folder / "images" / split / f"class{index % 3}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return Recipe(
        datasets=tuple(
            DatasetRecipe(
                name=name,
                format="class_folders",
                modality=modality,
                splits={split: str(folder / name / split) for split in ("train", "validation")},
                weight=weight,
            )
            for name, modality, weight in (("videos", "video", 1.0), ("images", "image", 0.5))
        ),
        clips=ClipRecipe(num_frames=2, image_size=16, short_side=20),
        model=MODEL,
    )


def make_trainer(recipe: Recipe, output_dir: Path, **options) -> CoverTrainer:
    defaults = {
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": 0,
    }
    return tiny_trainer(recipe, output_dir, **{**defaults, **options})


def normalized(sample: dict) -> torch.Tensor:
    """A batch of one, as transformers' default mean and deviation have it: bytes become -1 to 1."""
    return sample["pixel_values"][None] / 127.5 - 1


def weights(model: CoverForVideoClassification) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def updates(recipe: Recipe, output_dir: Path, **options) -> dict[str, torch.Tensor]:
    """How one step of plain SGD moves each parameter: its gradient, but for a factor."""
    trainer = make_trainer(recipe, output_dir, **options)
    before = weights(trainer.model)
    trainer.train()
    return {name: parameter - before[name] for name, parameter in weights(trainer.model).items()}


def assert_same_direction_and_size(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    difference = sum((actual[name] - expected[name]).double().square().sum() for name in expected) ** 0.5
    norm = sum(update.double().square().sum() for update in expected.values()) ** 0.5
    assert norm > 1e-3
    assert difference / norm < 1e-5


def logged_and_evaluated(trainer: CoverTrainer) -> dict[str, float]:
    """What a step has left in the log about each dataset, and an evaluation."""
    logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
    metrics = trainer.evaluate()
    kinds = ("_loss", "_top1", "_share", "_top5")
    return {name: value for name, value in {**logged, **metrics}.items() if name.endswith(kinds)} | {
        "loss": logged["loss"]
    }


def train_once(recipe: Recipe, output: Path, options: dict[str, Any], processes: int) -> None:
    """One step of several processes, each with a part of the rows of its single-process twin, and an evaluation."""
    trainer = make_trainer(recipe, output.parent, **options)
    before = weights(trainer.model)
    trainer.train()
    metrics = logged_and_evaluated(trainer)
    assert trainer.accelerator.num_processes == processes
    if trainer.args.process_index == 0:
        after = weights(trainer.model)
        torch.save({name: after[name] - before[name] for name in after}, output)
        output.with_suffix(".json").write_text(json.dumps(metrics))
    trainer.end()


def rows_of_first_step(recipe: Recipe) -> tuple[CoverForVideoClassification, list[dict]]:
    torch.manual_seed(0)
    cotraining = prepare_cotraining(recipe, seed=0)
    references = list(itertools.islice(cotraining.schedule.references(), 8))
    return cotraining.model, [cotraining.train_dataset[reference] for reference in references]


class TestLoss:
    @pytest.mark.parametrize("reduction", ["per_dataset", "per_sample"])
    def test_it_is_that_of_the_paper_computed_by_hand_row_by_row(self, recipe, tmp_path, reduction):
        model, samples = rows_of_first_step(recipe)
        by_head = {0: [], 1: []}  # images, videos
        for sample in samples:
            logits = model(normalized(sample)).head_logits[["images", "videos"][sample["head_ids"]]]
            by_head[sample["head_ids"]].append(F.cross_entropy(logits[0], torch.tensor(sample["labels"])))
        assert all(by_head.values())
        if reduction == "per_dataset":
            loss = 0.5 * torch.stack(by_head[0]).mean() + 1.0 * torch.stack(by_head[1]).mean()
        else:
            loss = (0.5 * sum(by_head[0]) + 1.0 * sum(by_head[1])) / len(samples)
        loss.backward()
        expected = {name: -0.1 * parameter.grad for name, parameter in model.named_parameters()}

        trainer = make_trainer(recipe, tmp_path, loss_reduction=reduction)
        before = weights(trainer.model)
        trainer.train()
        actual = {name: parameter - before[name] for name, parameter in weights(trainer.model).items()}
        assert_same_direction_and_size(actual, expected)
        logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
        assert logged["loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert logged["images_loss"] == pytest.approx(torch.stack(by_head[0]).mean().item(), rel=1e-5)

    @pytest.mark.parametrize("reduction", ["per_dataset", "per_sample"])
    @pytest.mark.parametrize(("batch_size", "accumulation"), [(4, 2), (1, 8)])
    def test_accumulating_changes_no_gradient_though_micro_steps_lack_datasets(
        self, recipe, tmp_path, reduction, batch_size, accumulation
    ):
        whole = updates(recipe, tmp_path, loss_reduction=reduction)
        accumulated = updates(
            recipe,
            tmp_path,
            loss_reduction=reduction,
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
        )
        assert_same_direction_and_size(accumulated, whole)

    def test_an_uneven_last_step_counts_the_rows_it_has(self, recipe, tmp_path):
        moved = []
        for batch_size, accumulation in ((6, 2), (3, 4)):
            options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
            trainer = make_trainer(recipe, tmp_path, num_train_epochs=1, max_steps=-1, **options)
            # An epoch of 16 rows filled up to 18: a step of 12 and one of 6.
            trainer.train_sampler = MixtureSampler(trainer.train_sampler.schedule, step_size=6)
            before = weights(trainer.model)
            trainer.train()
            assert trainer.state.global_step == 2
            moved.append({name: weight - before[name] for name, weight in weights(trainer.model).items()})
        assert_same_direction_and_size(*moved)

    # With batches of 1, a process has videos or images at a time, never both.
    @pytest.mark.parametrize("reduction", ["per_dataset", pytest.param("per_sample", marks=pytest.mark.slow)])
    @pytest.mark.parametrize(
        ("processes", "options"),
        [
            pytest.param(2, {"per_device_train_batch_size": 4}, marks=pytest.mark.slow),
            (
                2,
                {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "activation_checkpointing": True},
            ),
            pytest.param(
                4, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}, marks=pytest.mark.slow
            ),
        ],
        ids=["2 with batches of 4", "2 with 4 batches of 1, checkpointed", "4 with 2 batches of 1"],
    )
    def test_several_processes_move_the_weights_as_one_does_and_evaluate_and_log_alike(
        self, recipe, tmp_path, reduction, processes, options
    ):
        trainer = make_trainer(recipe, tmp_path, loss_reduction=reduction)
        before = weights(trainer.model)
        trainer.train()
        whole = {name: parameter - before[name] for name, parameter in weights(trainer.model).items()}
        metrics = logged_and_evaluated(trainer)
        log, on_cpu = tmp_path / "log", {"ACCELERATE_USE_CPU": "true"}
        output = tmp_path / "several" / "updates.pt"  # a folder of theirs: `trainer` holds the other
        theirs = recipe, output, {"loss_reduction": reduction, **options}, processes
        assert start_processes(train_once, processes, log, on_cpu, *theirs).wait(600) == 0, log.read_text()[-3000:]
        assert_same_direction_and_size(torch.load(output, weights_only=True), whole)
        theirs = json.loads(output.with_suffix(".json").read_text())
        assert theirs == pytest.approx(metrics, rel=1e-5)

    def test_a_dataset_of_weight_zero_trains_nothing_but_is_still_logged(self, recipe, tmp_path):
        trainer = make_trainer(recipe, tmp_path)
        trainer.training_loss.weights[trainer.head_names.index("images")] = 0.0
        before = weights(trainer.model)
        trainer.train()
        after = weights(trainer.model)
        assert torch.equal(after["classifiers.images.weight"], before["classifiers.images.weight"])
        assert not torch.equal(after["classifiers.videos.weight"], before["classifiers.videos.weight"])
        assert any("images_loss" in entry for entry in trainer.state.log_history)


class TestEpochs:
    def test_one_that_a_callback_ends_early_is_followed_by_a_whole_one(self, recipe, tmp_path):
        class EndsEarly(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                control.should_epoch_stop = state.global_step == 1

        trainer = make_trainer(recipe, tmp_path, max_steps=5, per_device_train_batch_size=4)
        trainer.add_callback(EndsEarly())
        trainer.train()
        assert trainer.state.global_step == 5


class TestPixels:
    def test_bytes_are_normalised_by_the_processor_and_floats_are_ready(self, recipe, tmp_path):
        trainer = make_trainer(recipe, tmp_path)
        samples = [trainer.train_dataset[reference] for reference in itertools.islice(trainer.train_sampler, 4)]
        batch = batches.normalized(collate_clips(samples), trainer.processing_class)
        for group in batch["pixel_values"]:
            expected = [normalized(sample) for sample in samples if sample["pixel_values"].shape == group.shape[1:]]
            torch.testing.assert_close(group, torch.cat(expected), atol=1e-6, rtol=0)
        again = batches.normalized(batch, trainer.processing_class)["pixel_values"]
        assert all(torch.equal(one, other) for one, other in zip(again, batch["pixel_values"], strict=True))

    def test_the_processor_is_that_of_the_samples_and_is_saved_with_the_model(self, recipe, tmp_path):
        cotraining = prepare_cotraining(recipe)
        args = CoverTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
        trainer = CoverTrainer(cotraining.model, args, eval_dataset=cotraining.eval_datasets)
        assert trainer.processing_class is cotraining.processor
        trainer.save_model()
        assert CoverVideoProcessor.from_pretrained(tmp_path).size == cotraining.processor.size

    def test_what_is_saved_need_not_be_what_normalises(self, recipe, tmp_path):
        cotraining = prepare_cotraining(recipe)
        args = CoverTrainingArguments(output_dir=str(tmp_path), max_steps=1, report_to="none", use_cpu=True)
        CoverTrainer(args=args, **(cotraining.trainer_kwargs | {"processing_class": None})).train()

    def test_bytes_without_a_processor_are_refused(self, recipe, tmp_path):
        args = CoverTrainingArguments(output_dir=str(tmp_path), report_to="none", use_cpu=True)
        trainer = CoverTrainer(prepare_cotraining(recipe).model, args)
        batch = {"pixel_values": torch.zeros(1, 2, 3, 16, 16, dtype=torch.uint8), "head": "videos"}
        with pytest.raises(ValueError, match="bytes need the processing_class"):
            trainer.prediction_step(trainer.model, batch, prediction_loss_only=False)


class TestLog:
    def test_each_dataset_has_its_loss_and_its_share_of_the_samples_drawn(self, recipe, tmp_path):
        trainer = make_trainer(recipe, tmp_path, max_steps=4, per_device_train_batch_size=4, logging_steps=4)
        trainer.train()
        logged = next(entry for entry in trainer.state.log_history if "loss" in entry)
        # 16 samples: one epoch, each row once.
        assert logged["videos_share"] == pytest.approx(6 / 16)
        assert logged["images_share"] == pytest.approx(10 / 16)
        assert logged["videos_loss"] > 0
        assert logged["images_loss"] > 0

    def test_an_evaluation_has_top_1_and_top_5_of_each_dataset_and_their_mean(self, recipe, tmp_path):
        trainer = make_trainer(recipe, tmp_path)
        metrics = trainer.evaluate()
        hits = {"videos": [], "images": []}
        for name, dataset in trainer.eval_dataset.items():
            for row in range(len(dataset)):
                sample = dataset[row]
                with torch.no_grad():
                    logits = trainer.model.eval()(normalized(sample), head=name).logits
                hits[name].append(int(logits.argmax()) == sample["labels"])
        for name in hits:
            assert metrics[f"eval_{name}_top1"] == pytest.approx(np.mean(hits[name]))
            assert metrics[f"eval_{name}_top5"] == 1.0  # 2 and 3 classes
        mean = (metrics["eval_videos_top1"] + metrics["eval_images_top1"]) / 2
        assert metrics["eval_mean_top1"] == pytest.approx(mean)
        assert any(entry.get("eval_mean_top1") == metrics["eval_mean_top1"] for entry in trainer.state.log_history)

    def test_another_compute_metrics_sees_logits(self, recipe, tmp_path):
        seen = {}

        def compute_metrics(prediction):
            seen[prediction.predictions.shape] = prediction.predictions.dtype
            return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}

        cotraining = prepare_cotraining(recipe, seed=0)
        args = make_trainer(recipe, tmp_path).args
        trainer = CoverTrainer(args=args, compute_metrics=compute_metrics, **cotraining.trainer_kwargs)
        metrics = trainer.evaluate()
        assert seen == {(6, 2): np.float32, (10, 3): np.float32}
        assert "eval_videos_accuracy" in metrics
        assert "eval_mean_top1" not in metrics

    def test_one_dataset_may_be_evaluated_alone(self, recipe, tmp_path):
        trainer = make_trainer(recipe, tmp_path)
        metrics = trainer.evaluate(trainer.eval_dataset["images"])
        assert 0 <= metrics["eval_top1"] <= 1

    def test_early_stopping_looks_at_the_mean(self, recipe, tmp_path):
        trainer = make_trainer(
            recipe,
            tmp_path,
            max_steps=6,
            learning_rate=0.0,  # nothing gets better
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="steps",
            save_steps=1,
            load_best_model_at_end=True,
        )
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=2))
        trainer.train()
        assert trainer.args.metric_for_best_model == "eval_mean_score"
        assert trainer.state.global_step == 3

    def test_the_best_checkpoint_is_chosen_by_the_mean(self, recipe, tmp_path):
        trainer = make_trainer(
            recipe,
            tmp_path,
            max_steps=2,
            eval_strategy="steps",
            eval_steps=1,
            save_strategy="best",
            metric_for_best_model="eval_mean_top1",
        )
        trainer.train()
        best = max(entry["eval_mean_top1"] for entry in trainer.state.log_history if "eval_mean_top1" in entry)
        assert trainer.state.best_metric == best


class TestOptimisation:
    def test_the_learning_rate_drops_at_the_papers_epochs(self, recipe, tmp_path):
        trainer = make_trainer(
            recipe,
            tmp_path,
            max_steps=-1,
            num_train_epochs=20,
            learning_rate=5e-3,
            learning_rate_drop_epochs=[11, 15],
            optim_args="momentum=0.9",
        )
        optimizer = trainer.create_optimizer()
        assert isinstance(optimizer, torch.optim.SGD)
        assert optimizer.defaults["momentum"] == 0.9
        # 16 rows in batches of 8: 2 steps an epoch, 40 in 20 epochs.
        rates = self.rates(optimizer, trainer.create_scheduler(num_training_steps=40), 40)
        assert rates[:22] == pytest.approx([5e-3] * 22)
        assert rates[22:30] == pytest.approx([5e-4] * 8)
        assert rates[30:] == pytest.approx([5e-5] * 10)

    def test_a_run_cut_short_drops_at_the_same_epochs(self, recipe, tmp_path):
        options = {"max_steps": 10, "num_train_epochs": 20, "learning_rate_drop_epochs": [3]}
        trainer = make_trainer(recipe, tmp_path, **options)
        rates = self.rates(trainer.create_optimizer(), trainer.create_scheduler(num_training_steps=10), 10)
        assert rates == pytest.approx([0.1] * 6 + [0.01] * 4)

    @staticmethod
    def rates(optimizer, scheduler, steps: int) -> list[float]:
        rates = []
        for _ in range(steps):
            rates.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return rates

    def test_weight_decay_leaves_heads_without_data_as_they_are(self, recipe, tmp_path):
        cotraining = prepare_cotraining(recipe, seed=0)
        cotraining.model.add_head("zoo", labels=["lion", "seal"])
        train = CoTrainingDataset(
            list(cotraining.train_dataset.sources.values()),
            cotraining.model.config.head_names,
            cotraining.processor,
            0,
        )
        options = {"optim": "adamw_torch", "weight_decay": 0.5, "max_steps": 2}
        args = make_trainer(recipe, tmp_path, **options).args
        before = weights(cotraining.model)
        CoverTrainer(cotraining.model, args, train_dataset=train).train()
        after = weights(cotraining.model)
        assert torch.equal(after["classifiers.zoo.weight"], before["classifiers.zoo.weight"])
        assert not torch.equal(after["classifiers.images.weight"], before["classifiers.images.weight"])

    def test_any_other_optimizer_and_schedule_works(self, recipe, tmp_path):
        trainer = make_trainer(
            recipe, tmp_path, max_steps=3, optim="adamw_torch", lr_scheduler_type="cosine", warmup_steps=1
        )
        before = weights(trainer.model)
        trainer.train()
        assert isinstance(trainer.optimizer.optimizer, torch.optim.AdamW)
        assert not torch.equal(
            weights(trainer.model)["classifiers.videos.weight"], before["classifiers.videos.weight"]
        )

    @pytest.mark.parametrize("option", [{"activation_checkpointing": True}, {"bf16": True}, {"max_grad_norm": 1.0}])
    def test_usual_training_arguments_work_on_mixed_batches(self, recipe, tmp_path, option):
        trainer = make_trainer(recipe, tmp_path, max_steps=2, **option)
        result = trainer.train()
        assert np.isfinite(result.training_loss)


class TestCheckpoints:
    def test_a_run_resumed_inside_an_epoch_ends_with_the_weights_of_one_that_was_not_stopped(self, recipe, tmp_path):
        options = {"per_device_train_batch_size": 4, "optim": "adamw_torch", "max_steps": 7, "save_strategy": "steps"}
        whole = make_trainer(recipe, tmp_path / "whole", save_steps=6, **options)
        whole.train()
        resumed = make_trainer(recipe, tmp_path / "resumed", save_steps=6, **options)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
        for name, parameter in weights(resumed.model).items():
            assert torch.equal(parameter, weights(whole.model)[name]), name

    def test_what_is_saved_is_a_whole_checkpoint_with_its_processor_and_code(self, recipe, tmp_path):
        trainer = make_trainer(recipe, tmp_path)
        trainer.save_model()
        names = {file.name for file in tmp_path.iterdir()}
        assert {"config.json", "model.safetensors", "video_preprocessor_config.json"} <= names
        assert {"modeling_cover.py", "video_processing_cover.py"} <= names
