# SPDX-License-Identifier: Apache-2.0
"""Which parameters are trained and how fast, and the average of the weights."""

import math
from pathlib import Path

import pytest
import torch
from killed_runs import build_recipe
from modeling_cover import CoverForVideoClassification, CoverTrainer
from modeling_cover.training.batches import normalized
from safetensors.torch import load_file
from short_runs import with_validation
from tiny import tiny_trainer
from transformers import TrainerCallback


def make_trainer(folder: Path, output_dir: Path, **options) -> CoverTrainer:
    defaults = {"max_steps": 5, "learning_rate": 0.01, "save_steps": 3, "logging_steps": 1}
    recipe = with_validation(build_recipe(folder))
    return tiny_trainer(recipe, output_dir, **{**defaults, "per_device_train_batch_size": 4, **options})


def copied(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def groups_by_name(trainer: CoverTrainer) -> dict[str, dict]:
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    groups = trainer.create_optimizer().param_groups
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


class TestLearningRates:
    def test_each_layer_has_a_fraction_of_that_above_it(self, folder, tmp_path):
        groups = groups_by_name(make_trainer(folder, tmp_path, learning_rate=1.0, layer_decay=0.5))
        rates = {
            "classifiers.videos.weight": 1.0,
            "cover.layernorm.weight": 1.0,
            "cover.layers.1.fc1.weight": 0.5,
            "cover.layers.0.temporal_attention.q_proj.bias": 0.25,
            "cover.embeddings.cls_token": 0.125,
            "cover.embeddings.patch_embeddings.projection.weight": 0.125,
        }
        assert {name: groups[name]["lr"] for name in rates} == rates

    def test_new_parameters_may_have_one_of_their_own_whatever_the_layer(self, folder, tmp_path):
        options = {"learning_rate": 1.0, "layer_decay": 0.5, "new_parameters_learning_rate": 3.0}
        groups = groups_by_name(make_trainer(folder, tmp_path, **options))
        new = {name for name, group in groups.items() if group["lr"] == 3.0}
        expected = {name for name in groups if "temporal" in name or "classifiers" in name or "time_emb" in name}
        assert new == expected
        assert groups["cover.layers.0.fc1.weight"]["lr"] == 0.25

    def test_norms_biases_and_embeddings_do_not_decay(self, folder, tmp_path):
        groups = groups_by_name(make_trainer(folder, tmp_path, weight_decay=0.1))
        decaying = {name for name, group in groups.items() if group["weight_decay"]}
        kinds = ("norm", "bias", "cls_token", "position_embeddings", "time_embeddings")
        assert decaying == {name for name in groups if not any(kind in name for kind in kinds)}
        assert {group["weight_decay"] for group in groups.values()} == {0.0, 0.1}

    def test_they_follow_the_schedule_from_their_own_peak(self, folder, tmp_path):
        seen = []

        class Looks(TrainerCallback):
            def on_step_begin(self, args, state, control, optimizer, **kwargs):
                seen.append([group["lr"] for group in optimizer.param_groups])

        trainer = make_trainer(
            folder, tmp_path, layer_decay=0.5, warmup_steps=2, lr_scheduler_type="constant_with_warmup"
        )
        trainer.add_callback(Looks())
        trainer.train()
        for rates in zip(*seen, strict=True):
            assert rates == pytest.approx([0, rates[-1] / 2, rates[-1], rates[-1], rates[-1]])
        assert len(set(seen[-1])) == 4


class TestFreezing:
    @pytest.mark.parametrize(
        ("part", "is_trained"),
        [
            ("heads", lambda name: name.startswith("classifiers")),
            ("last_1_layers", lambda name: "embeddings" not in name and ".layers.0." not in name),
            (
                "temporal_and_heads",
                lambda name: name.startswith("classifiers") or "temporal" in name or "time" in name,
            ),
        ],
    )
    def test_only_the_part_moves_and_a_run_goes_on_from_its_checkpoint(self, folder, tmp_path, part, is_trained):
        trainer = make_trainer(folder, tmp_path, trained_part=part)
        before = copied(trainer.model)
        trainer.train()
        for name, weight in trainer.model.state_dict().items():
            assert torch.equal(weight, before[name]) != is_trained(name), name
        (tmp_path / "checkpoint-5" / "training_state" / "state.json").unlink()
        resumed = make_trainer(folder, tmp_path, trained_part=part)
        resumed.train(resume_from_checkpoint="auto")
        assert all(torch.equal(weight, copied(trainer.model)[name]) for name, weight in copied(resumed.model).items())


class TestTheAverage:
    def test_it_is_that_of_torch_with_a_decay_that_warms_up(self, folder, tmp_path):
        seen = []

        class Keeps(TrainerCallback):
            def on_step_end(self, args, state, control, model, **kwargs):
                seen.append(copied(model))

        trainer = make_trainer(folder, tmp_path, ema_decay=0.3)
        start = copied(trainer.model)
        trainer.add_callback(Keeps())
        trainer.train()
        for name, weight in trainer.model.state_dict().items():
            average = start[name].double()
            for number, weights in enumerate(seen, 1):
                decay = min(0.3, (1 + number) / (10 + number))
                average = decay * average + (1 - decay) * weights[name].double()
            torch.testing.assert_close(weight.double(), average, atol=1e-6, rtol=1e-5)
            assert not torch.equal(weight, seen[-1][name])

    def test_it_is_what_is_evaluated_and_saved_and_training_is_as_without(self, folder, tmp_path):
        plain = make_trainer(folder, tmp_path / "plain")
        plain.train()
        trainer = make_trainer(folder, tmp_path / "run", ema_decay=0.9, eval_strategy="steps", eval_steps=5)
        trainer.train()
        checkpoint = tmp_path / "run" / "checkpoint-5"
        for name, weight in load_file(checkpoint / "training_state" / "weights.safetensors").items():
            assert torch.equal(weight, plain.model.state_dict()[name]), name
        saved = CoverForVideoClassification.from_pretrained(checkpoint)
        assert all(torch.equal(weight, saved.state_dict()[name]) for name, weight in copied(trainer.model).items())
        logged = next(entry for entry in trainer.state.log_history if "eval_videos_loss" in entry)
        assert trainer.evaluate()["eval_videos_loss"] == pytest.approx(logged["eval_videos_loss"], rel=1e-6)
        assert logged["eval_videos_loss"] != pytest.approx(plain.evaluate()["eval_videos_loss"], rel=1e-4)

    def test_a_resumed_run_ends_with_the_same(self, folder, tmp_path):
        whole = make_trainer(folder, tmp_path, ema_decay=0.9)
        whole.train()
        (tmp_path / "checkpoint-5" / "training_state" / "state.json").unlink()
        resumed = make_trainer(folder, tmp_path, ema_decay=0.9)
        resumed.train(resume_from_checkpoint="auto")
        assert resumed.resumed_from.endswith("checkpoint-3")
        assert all(torch.equal(weight, copied(whole.model)[name]) for name, weight in copied(resumed.model).items())


class TestLabelSmoothing:
    def test_it_is_that_of_torch(self, folder, tmp_path):
        losses = {}
        for factor in (0.0, 0.2):
            trainer = make_trainer(folder, tmp_path / str(factor), label_smoothing_factor=factor, max_steps=1)
            trainer.model.config.hidden_dropout_prob = 0.0
            batch = trainer.data_collator([trainer.train_dataset[row] for row in _first(trainer, 8)])
            inputs = normalized(batch, trainer.processing_class)
            trainer.model.eval()
            with torch.no_grad():
                logits = trainer.model(inputs["pixel_values"]).head_logits
            # Dropout would make each pass another.
            for module in trainer.model.modules():
                module.train = lambda mode=True, module=module: module
            trainer.model.training = True
            with torch.no_grad():
                loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.ones(2))
            rows = {name: inputs["head_ids"] == index for index, name in enumerate(trainer.head_names)}
            losses[factor] = sum(
                torch.nn.functional.cross_entropy(
                    logits[name][mask], inputs["labels"][mask], label_smoothing=factor, reduction="sum"
                )
                for name, mask in rows.items()
            )
            torch.testing.assert_close(loss, losses[factor], atol=1e-5, rtol=1e-5)
        assert not math.isclose(losses[0.0], losses[0.2], rel_tol=1e-3)


def _first(trainer: CoverTrainer, count: int) -> list:
    return [row for row, _ in zip(trainer.train_sampler, range(count), strict=False)]
