# SPDX-License-Identifier: Apache-2.0
"""What each dataset does to the encoder, against torch's own gradients; its part of the log; weights that adapt."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest
import torch
from forked_runs import start_processes
from killed_runs import build_recipe, finish
from modeling_cover import CoverForVideoClassification, EqualUpdates, collate_clips
from modeling_cover.recipe.mixture_recipe import MixtureRecipe
from modeling_cover.training import gradient_watch
from modeling_cover.training.equal_updates import AdaptedWeights, presence_in_steps
from modeling_cover.training.gradient_shares import EncoderGradients, cosines, norms, rows_of_dataset, shares
from modeling_cover.training.loss import TrainingLoss
from short_runs import final_weights, make_trainer, resumed_from
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import TRAINING, tiny_config, tiny_trainer
from torch.nn.functional import cross_entropy
from two_layers import HEADS, SIZES, clips, randomise


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0}
HEAD_IDS, LABELS = torch.tensor([1, 2, 1, 2, 2]), torch.tensor([1, 2, 0, 0, 1])
ADAPTING = MixtureRecipe(weights="equal_updates")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return randomise(CoverForVideoClassification(tiny_config(HEADS, **SIZES)), std=0.1).train()


def batches() -> list[dict]:
    """Five rows of two of three heads, in two batches, as [`collate_clips`] makes them."""
    pixels = [clips(2), clips(1, 2), clips(2, 1)]
    return [
        {"pixel_values": pixels[:1], "labels": LABELS[:2], "head_ids": HEAD_IDS[:2]},
        {"pixel_values": pixels[1:], "labels": LABELS[2:], "head_ids": HEAD_IDS[2:]},
    ]


class NoMetrics:
    def add(self, *sums):
        raise AssertionError("a measurement is not counted")


def gradients_of(model, kind=TrainingLoss, reduction="per_dataset") -> EncoderGradients:
    args = dataclasses.make_dataclass("Arguments", ["device", "loss_reduction", "label_smoothing_factor"])
    loss = kind(model.config, dict.fromkeys(HEADS, 1.0), args("cpu", reduction, 0.0), NoMetrics())
    return EncoderGradients(model, model.config, loss, reduction)


def products_of(gradients, batches, rows=(0, 2, 3)):
    names, of_datasets = gradients.of_step(batches, torch.tensor(rows))
    return gradients.products(names, of_datasets, iter([1.0] * len(of_datasets)))


class TestGradients:
    @pytest.mark.parametrize("reduction", ["per_dataset", "per_sample"])
    def test_they_are_those_of_torch_of_the_whole_step(self, model, reduction):
        step = batches()
        gradients = gradients_of(model, reduction=reduction)
        names, of_datasets = gradients.of_step(step, torch.tensor([0, 2, 3]))
        assert names == model.config.head_names[1:]
        logits = [model(batch["pixel_values"]).head_logits for batch in step]
        for place, name in enumerate(names):
            own = place + 1 == HEAD_IDS
            of_rows = cross_entropy(torch.cat([part[name] for part in logits])[own], LABELS[own], reduction="none")
            loss = of_rows.mean() if reduction == "per_dataset" else of_rows.sum() / 5
            expected = torch.autograd.grad(loss, gradients.parameters, retain_graph=True, allow_unused=True)
            for found, gradient in zip(of_datasets, expected, strict=True):
                torch.testing.assert_close(found[place], gradient, atol=1e-6, rtol=1e-5)

    def test_products_are_of_the_vectors_and_of_each_depth(self, model):
        gradients = gradients_of(model)
        names, of_datasets = gradients.of_step(batches(), torch.tensor([0, 2, 3]))
        found = gradients.products(names, of_datasets, iter([2.0] * len(of_datasets)))
        whole = torch.cat([part.flatten(1) for part in of_datasets], dim=1).double()
        torch.testing.assert_close(found.of_gradients, whole @ whole.T, rtol=1e-5, atol=0)
        torch.testing.assert_close(found.of_updates, 4 * whole @ whole.T, rtol=1e-5, atol=0)
        assert len(found.by_depth) == 2 + SIZES["num_hidden_layers"]
        assert (norms(found.by_depth) > 0).all()
        of_second_layer = [
            part.flatten(1)
            for parameter, part in zip(gradients.parameters, of_datasets, strict=True)
            if any(parameter is other for other in model.cover.layers[1].parameters())
        ]
        vectors = torch.cat(of_second_layer, dim=1).double()
        torch.testing.assert_close(found.by_depth[2], vectors @ vectors.T, rtol=1e-5, atol=0)

    def test_a_copy_of_a_dataset_agrees_with_it_and_its_negative_loss_does_not(self, model):
        class Negated(TrainingLoss):
            def of_heads(self, *args, **kwargs):
                outputs, (losses, rows, hits) = super().of_heads(*args, **kwargs)
                return outputs, (losses * torch.tensor([1, 1, -1]), rows, hits)

        model.classifiers[model.config.head_names[2]] = copy.deepcopy(model.classifiers[model.config.head_names[1]])
        pixels, labels = clips(2), torch.tensor([1, 0])
        step = [{"pixel_values": [pixels], "labels": labels, "head_ids": torch.full((2,), index)} for index in (1, 2)]
        for kind, expected in ((TrainingLoss, 1.0), (Negated, -1.0)):
            found = products_of(gradients_of(model, kind), step, rows=(0, 2, 2))
            assert cosines(found.of_gradients)[0, 1].item() == pytest.approx(expected, abs=1e-6)

    def test_a_measurement_goes_through_the_model_with_each_row_once(self, model):
        rows = []
        model.register_forward_pre_hook(lambda module, args: rows.append(sum(map(len, args[0]))))
        gradients_of(model).of_step(batches(), torch.tensor([0, 2, 3]))
        assert sum(rows) == 5

    def test_nothing_is_left_in_the_gradients_of_the_step(self, model):
        products_of(gradients_of(model), batches())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_rows_of_a_dataset_keep_the_labels_that_are_vectors(self):
        samples = [
            {
                "pixel_values": clips(1)[0],
                "labels": torch.tensor([0.0, float(index)]),
                "head_ids": head,
                "dataset": name,
            }
            for index, (head, name) in enumerate([(0, "a"), (1, "b"), (0, "a")])
        ]
        batch = collate_clips(samples)
        assert rows_of_dataset(batch, 2, "c") is None
        part = rows_of_dataset(batch, 0, "a")
        assert list(part["labels"]) == ["a"]
        assert part["labels"]["a"].tolist() == [[0.0, 0.0], [0.0, 2.0]]
        torch.testing.assert_close(part["pixel_values"][0][1], samples[2]["pixel_values"])

    def test_a_frozen_encoder_is_refused(self, model):
        model.cover.requires_grad_(False)
        with pytest.raises(ValueError, match="the encoder is frozen"):
            gradients_of(model)


class TestShares:
    def test_they_add_up_to_1_and_go_with_the_weights(self):
        products = torch.tensor([[4.0, 1.0], [1.0, 9.0]])
        torch.testing.assert_close(shares(products, [1, 1]), torch.tensor([0.4, 0.6]))
        torch.testing.assert_close(shares(products, [3, 1]), torch.tensor([2 / 3, 1 / 3]))
        torch.testing.assert_close(shares(torch.zeros(2, 2), [1, 1]), torch.zeros(2))
        torch.testing.assert_close(cosines(products)[0, 1], torch.tensor(1 / 6))
        torch.testing.assert_close(cosines(torch.zeros(2, 2)), torch.zeros(2, 2))


class TestTheOptimizersScale:
    @pytest.mark.parametrize("steps", [0, 1, 3])
    @pytest.mark.parametrize(
        "build",
        [
            lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.0, betas=(0.0, 0.9)),
            lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        ],
        ids=["adamw", "sgd"],
    )
    def test_makes_of_a_gradient_what_the_optimizer_makes_of_it(self, model, build, steps):
        """Without momentum, the optimizer's own step is the weighted sum of the datasets' scaled gradients. In the
        first one temporal attention has none, as where its output projection is 0: its mean of squares stays 0."""
        gradients, optimizer = gradients_of(model), build(model.parameters())
        for step in range(steps):
            model(clips(2)).logits.pow(2).sum().backward()
            for name, parameter in model.named_parameters():
                if step == 0 and "temporal_attention" in name:
                    parameter.grad.zero_()
            optimizer.step()
            optimizer.zero_grad()
        _, of_datasets = gradients.of_step(batches(), torch.tensor([0, 2, 3]))
        scales = list(gradients.scales(optimizer, of_datasets, [1.0, 2.0]))
        before = [parameter.detach().clone() for parameter in gradients.parameters]
        for parameter, of_parameter in zip(gradients.parameters, of_datasets, strict=True):
            parameter.grad = of_parameter[0] + 2 * of_parameter[1]
        optimizer.step()
        for parameter, start, of_parameter, scale in zip(
            gradients.parameters, before, of_datasets, scales, strict=True
        ):
            update = (of_parameter[0] + 2 * of_parameter[1]) * scale
            torch.testing.assert_close(start - update, parameter.detach(), atol=1e-5, rtol=1e-4)

    def test_clipping_does_not_change_shares_but_what_is_remembered(self, model):
        gradients, optimizer = gradients_of(model), torch.optim.AdamW(model.parameters(), lr=0.1, betas=(0.0, 0.9))
        model(clips(2)).logits.pow(2).sum().backward()
        optimizer.step()
        _, of_datasets = gradients.of_step(batches(), torch.tensor([0, 2, 3]))
        total = torch.cat([(part[0] + part[1]).flatten() for part in of_datasets]).norm().item()
        plain, clipped, loose = (
            list(gradients.scales(optimizer, of_datasets, [1.0, 1.0], max_norm))
            for max_norm in (0.0, total / 10, 10 * total)
        )
        for one, same, other in zip(plain, loose, clipped, strict=True):
            torch.testing.assert_close(same, one)
            assert (other >= one * (1 - 1e-5)).all()

    def test_of_another_optimizer_is_refused_by_name(self, model):
        gradients, optimizer = gradients_of(model), torch.optim.RMSprop(model.parameters(), lr=0.1)
        _, of_datasets = gradients.of_step(batches(), torch.tensor([0, 2, 3]))
        with pytest.raises(ValueError, match="what RMSprop makes of a gradient is not known: expected Adam, AdamW or"):
            list(gradients.scales(optimizer, of_datasets, [1.0, 1.0]))

    @pytest.mark.parametrize("momentum", [0.0, 0.9])
    def test_the_length_of_a_step_is_that_of_its_momentum(self, model, momentum):
        gradients = gradients_of(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=momentum)
        model(clips(2)).logits.pow(2).sum().backward()
        optimizer.step()
        length = gradients.length_of_step(optimizer, [0.1] * len(gradients.parameters))
        if momentum == 0.0:
            assert length is None
            return
        # After one step, it is the gradient.
        whole = torch.cat([p.grad.flatten() for p in gradients.parameters if p.grad is not None])
        assert length == pytest.approx(0.1 * whole.norm().item(), rel=1e-5)


def logged(trainer, kind: str) -> list[dict]:
    entries = [{key: value for key, value in entry.items() if kind in key} for entry in trainer.state.log_history]
    return [entry for entry in entries if entry]


class TestRuns:
    def test_no_weight_changes_and_the_log_has_shares_and_cosines(self, folder, tmp_path):
        plain = make_trainer(folder, tmp_path / "plain")
        plain.train()
        trainer = make_trainer(folder, tmp_path / "measured", log_gradient_shares=2, logging_steps=2)
        trainer.train()
        for name, weight in final_weights(plain).items():
            torch.testing.assert_close(trainer.model.state_dict()[name], weight, atol=0, rtol=0)
        for kind in ("_gradient_share", "_update_share"):
            assert [sum(entry.values()) for entry in logged(trainer, kind)] == pytest.approx([1] * 3)
        angles = logged(trainer, "_cosine")
        assert all(list(entry) == ["images_videos_gradient_cosine"] for entry in angles)
        assert all(-1 <= value <= 1 for entry in angles for value in entry.values())

    def test_tensorboard_has_them(self, folder, tmp_path, monkeypatch):
        monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
        options = {"max_steps": 2, "log_gradient_shares": 1, "logging_steps": 1, "report_to": "tensorboard"}
        trainer = make_trainer(folder, tmp_path / "run", **options)
        trainer.train()
        events = EventAccumulator(str(tmp_path / "events")).Reload()
        for name in ("videos_update_share", "images_gradient_share", "images_videos_gradient_cosine"):
            logged_values = [entry[name] for entry in trainer.state.log_history if name in entry]
            assert [event.value for event in events.Scalars(f"train/{name}")] == pytest.approx(logged_values)
            assert len(logged_values) == 2

    @pytest.mark.parametrize(
        "options",
        [
            {"label_smoothing_factor": 0.1},
            {"activation_checkpointing": True},
            {"bf16": True},
            pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.slow),
            {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
        ],
        ids=str,
    )
    def test_it_goes_with_other_options(self, folder, tmp_path, options):
        trainer = make_trainer(folder, tmp_path, max_steps=2, log_gradient_shares=1, logging_steps=1, **options)
        trainer.train()
        assert len(logged(trainer, "_cosine")) == 2

    def test_it_goes_with_an_adapter_and_with_mixed_samples(self, folder, tmp_path):
        recipe = build_recipe(folder)
        recipe = dataclasses.replace(
            recipe, model={**recipe.model, "lora": {"r": 2}}, augmentation={"mixup_alpha": 0.8}
        )
        trainer = make_trainer(folder, tmp_path, recipe, max_steps=2, log_gradient_shares=1, logging_steps=1)
        trainer.train()
        assert len(logged(trainer, "_cosine")) == 2

    def test_one_dataset_alone_is_refused(self, folder, tmp_path):
        recipe = build_recipe(folder)
        recipe = dataclasses.replace(recipe, datasets=recipe.datasets[:1])
        with pytest.raises(ValueError, match="log_gradient_shares: 'videos' is trained alone"):
            make_trainer(folder, tmp_path, recipe, log_gradient_shares=1)
        with pytest.raises(ValueError, match="equal_updates: 'videos' is trained alone"):
            make_trainer(folder, tmp_path, dataclasses.replace(recipe, mixture=ADAPTING))

    def test_a_frozen_encoder_is_refused(self, folder, tmp_path):
        with pytest.raises(ValueError, match="log_gradient_shares: the encoder is frozen"):
            make_trainer(folder, tmp_path, log_gradient_shares=1, trained_part="heads")

    def test_gradients_that_are_not_finite_are_named_and_not_logged(self, folder, tmp_path, caplog):
        trainer = make_trainer(folder, tmp_path, max_steps=1, log_gradient_shares=1, logging_steps=1)
        with torch.no_grad():
            trainer.model.cover.layernorm.weight.fill_(torch.inf)
        trainer.train()
        assert "step 0: gradients of images, videos are not finite" in caplog.text
        assert logged(trainer, "_gradient_share") == []


def train_measured(folder: Path, output_dir: Path, rows: int, per_device: int) -> None:
    recipe = build_recipe(folder)
    recipe = dataclasses.replace(recipe, model={**recipe.model, **NO_DROPOUT}, mixture=ADAPTING)
    options = {"max_steps": 4, "log_gradient_shares": 1, "logging_steps": 1, "adam_epsilon": 1e-3}
    options |= {"per_device_train_batch_size": per_device, "ignore_data_skip": False}
    trainer = tiny_trainer(recipe, output_dir, **{**TRAINING, **options})
    trainer.train()
    trainer.save_state()


@pytest.mark.slow
def test_they_are_the_same_on_1_2_and_4_processes(folder, tmp_path):
    found = {}
    for processes in (1, 2, 4):
        output = tmp_path / str(processes)
        output.mkdir()
        finish(
            start_processes(
                train_measured,
                processes,
                output.with_suffix(".log"),
                {"ACCELERATE_USE_CPU": "true"},
                folder,
                output,
                8,
                8 // processes,
            ),
            output,
        )
        history = json.loads((output / "trainer_state.json").read_text())["log_history"]
        found[processes] = [
            {key: value for key, value in entry.items() if key.endswith(("_share", "_cosine", "_weight", "_loss"))}
            for entry in history[:4]
        ]
    for processes in (2, 4):
        for entry, expected in zip(found[processes], found[1], strict=True):
            assert entry == pytest.approx(expected, abs=1e-4)


class TestAdaptedWeights:
    def test_each_dataset_gets_its_share_of_the_update(self):
        adapted = AdaptedWeights({"a": 0.5, "b": 0.3, "c": 0.2}, dict.fromkeys("abc", 1.0))
        assert adapted.weights() == {"a": 1.0, "b": 1.0, "c": 1.0}
        adapted.see({"a": 4.0, "b": 1.0})
        assert adapted.weights() == {"a": 1.0, "b": 1.0, "c": 1.0}  # nothing is known of c
        adapted.see({"a": 4.0, "b": 1.0, "c": 0.1})
        weights = adapted.weights()
        assert sum(weights.values()) == pytest.approx(3)
        moved = {"a": weights["a"] * 4, "b": weights["b"] * 1, "c": weights["c"] * 0.1}
        total = sum(moved.values())
        assert {name: part / total for name, part in moved.items()} == pytest.approx({"a": 0.5, "b": 0.3, "c": 0.2})

    def test_one_that_is_seldom_drawn_weighs_more(self):
        adapted = AdaptedWeights({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 0.25})
        adapted.see({"a": 1.0, "b": 1.0})
        assert adapted.weights() == pytest.approx({"a": 0.4, "b": 1.6})

    def test_a_norm_is_forgotten_slowly(self):
        adapted = AdaptedWeights({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 1.0})
        for _ in range(50):
            adapted.see({"a": 1.0, "b": 1.0})
        adapted.see({"a": 2.0, "b": 1.0})
        assert adapted.weights()["b"] / adapted.weights()["a"] == pytest.approx(2**0.1)

    def test_that_all_norms_fall_by_orders_of_magnitude_does_not_matter(self):
        adapted = AdaptedWeights({"a": 0.5, "b": 0.5}, {"a": 1.0, "b": 1.0})
        for scale in (500.0, 80.0, 10.0, 1.0, 0.5):
            adapted.see({"a": scale, "b": scale})  # heads are random: both are alike
        for _ in range(12):
            adapted.see({"a": 0.2, "b": 0.05})
        assert adapted.weights()["b"] == pytest.approx(1.6, abs=0.15)

    def test_the_steps_that_have_a_dataset(self):
        assert presence_in_steps({"a": 0.5, "b": 0.5}, 2) == {"a": 0.75, "b": 0.75}

    @pytest.mark.parametrize("share", [0, -1, "much", float("nan"), True])
    def test_a_share_that_is_none_is_named(self, share):
        with pytest.raises(ValueError, match="update_shares: that of 'a' must be a positive number"):
            EqualUpdates({"a": share})

    def test_shares_of_other_datasets_are_refused(self):
        with pytest.raises(ValueError, match=r"expected one for each of \['a', 'b'\], got \['a', 'c'\]"):
            EqualUpdates({"a": 1, "c": 1}).targets({"a": 0.5, "b": 0.5})


class TestRunsThatAdapt:
    def test_shares_of_the_update_come_to_those_asked_for(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(gradient_watch, "ADAPTING_INTERVAL", 1)  # so few rows have gradients of all sizes
        recipe = build_recipe(folder)
        mixture = MixtureRecipe(weights="equal_updates", update_shares={"videos": 3, "images": 1})
        recipe = dataclasses.replace(recipe, model={**recipe.model, **NO_DROPOUT}, mixture=mixture)
        options = {"max_steps": 60, "log_gradient_shares": 1, "logging_steps": 1, "save_strategy": "no"}
        trainer = make_trainer(folder, tmp_path, recipe, per_device_train_batch_size=12, **options)
        trainer.train()
        late = [entry["videos_update_share"] for entry in logged(trainer, "_update_share")[30:]]
        assert 0.65 < sum(late) / len(late) < 0.85
        weights = logged(trainer, "_loss_weight")[-1]
        assert sum(weights.values()) == pytest.approx(2)
        assert weights == pytest.approx(
            {f"{name}_loss_weight": trainer.loss_weights[name] for name in ("images", "videos")}
        )

    @pytest.mark.parametrize("step", [1, 2, 3, 4])  # some are measured, with dropout
    def test_a_run_that_resumes_ends_with_the_same_weights_and_logs(self, folder, tmp_path, step):
        recipe = dataclasses.replace(build_recipe(folder), mixture=ADAPTING)
        options = {"logging_steps": 1, "log_gradient_shares": 2, "save_steps": 1}
        whole = make_trainer(folder, tmp_path / "whole", recipe, **options)
        whole.train()
        (tmp_path / "resumed").mkdir()
        resumed = resumed_from(tmp_path / "whole", step, tmp_path / "resumed", folder, recipe, **options)
        for name, weight in final_weights(whole).items():
            torch.testing.assert_close(resumed.model.state_dict()[name], weight, atol=0, rtol=0)
        assert logged(resumed, "_loss_weight") == logged(whole, "_loss_weight")
        assert logged(resumed, "_gradient_share") == logged(whole, "_gradient_share")
        assert resumed.record.settings == whole.record.settings

    def test_they_are_in_the_record(self, folder, tmp_path):
        recipe = dataclasses.replace(build_recipe(folder), mixture=ADAPTING)
        trainer = make_trainer(folder, tmp_path, recipe, max_steps=3)
        trainer.train()
        trainer.save_model()
        summary = json.loads((tmp_path / "training_summary.json").read_text())
        for entry in summary["datasets"]:
            assert entry["weight"] == pytest.approx(trainer.loss_weights[entry["name"]], abs=1e-6)
            assert entry["update_share"] == pytest.approx(entry["share"], abs=1e-6)
        trainer.create_model_card()
        assert "at the end, for 67% of the update" in (tmp_path / "README.md").read_text()

    def test_a_checkpoint_of_fixed_weights_is_told_apart(self, folder, tmp_path):
        fixed = make_trainer(folder, tmp_path / "fixed")
        adapting = make_trainer(
            folder, tmp_path / "adapting", dataclasses.replace(build_recipe(folder), mixture=ADAPTING)
        )
        assert "weight of 'videos'" in fixed.record.settings
        assert adapting.record.settings["weight of 'videos'"] is None
        assert adapting.record.settings["update share of 'videos'"] == pytest.approx(1 / 3)
