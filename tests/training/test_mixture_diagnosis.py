# SPDX-License-Identifier: Apache-2.0
"""The diagnosis of a mixture: measured in a run's steps, and changing none of them."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from forked_runs import start_processes
from killed_runs import build_recipe, finish
from modeling_cover.commands.diagnose import diagnose
from modeling_cover.files import write_json
from modeling_cover.training.mixture_diagnosis import MixtureDiagnosis, signal_cosine
from short_runs import final_weights, make_trainer
from tiny import TRAINING, tiny_trainer


NO_DROPOUT = {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0}
OPTIONS = {"max_steps": 12, "save_strategy": "no", "per_device_train_batch_size": 12}


def of_copies(folder: Path, path: Path, names=("clips", "copies")):
    """A recipe of two or more datasets of the same files."""
    recipe = build_recipe(folder)
    entries = []
    for name in names:
        shutil.copytree(folder / "videos", path / name)
        splits = {"train": str(path / name)}
        entries.append(dataclasses.replace(recipe.datasets[0], name=name, splits=splits))
    return dataclasses.replace(recipe, datasets=tuple(entries), model={**recipe.model, **NO_DROPOUT})


class TestDiagnosis:
    def test_copies_of_a_dataset_help_each_other_and_no_weight_changes(self, folder, tmp_path):
        recipe = of_copies(folder, tmp_path)
        plain, trainer = (make_trainer(folder, tmp_path / name, recipe, **OPTIONS) for name in ("plain", "diagnosed"))
        for model in (plain.model, trainer.model):  # else what their heads ask of the encoder is not the same
            model.classifiers["copies"].load_state_dict(model.classifiers["clips"].state_dict())
        plain.train()
        found = diagnose(trainer)
        for name, weight in final_weights(plain).items():
            torch.testing.assert_close(trainer.model.state_dict()[name], weight, atol=0, rtol=0)
        assert (found["steps"], found["measured_steps"]) == (12, 4)  # from the third on every third
        assert found["row_share"] == {"clips": 0.5, "copies": 0.5}
        assert found["signal_cosine"]["clips"]["copies"]["mean"] > 0.9  # flips are drawn, and a bad file replaced
        effects = [found["effect"][first][second]["mean"] for first in found["effect"] for second in found["effect"]]
        assert max(effects) < 0
        assert sum(share["mean"] for share in found["update_share"].values()) == pytest.approx(1)
        by_depth = [share["mean"] for share in found["share_by_depth"].values()]
        assert [sum(shares) for shares in zip(*by_depth, strict=True)] == pytest.approx([1] * 4)
        assert found["feature_overlap"]["clips"]["copies"] > 0.8

    def test_an_effect_is_that_of_the_weights_moved(self, folder, tmp_path, monkeypatch):
        """The loss after a step along the gradient, by hand, with plain SGD, of which nothing scales it."""
        trainer = make_trainer(folder, tmp_path / "run", of_copies(folder, tmp_path), **OPTIONS, optim="sgd")
        diagnosis = trainer.gradient_watch = MixtureDiagnosis(trainer)
        seen = []
        measure = diagnosis._effects

        def effects(gradients, scales, factors):
            if not seen:
                model, parameters = trainer.model, diagnosis._gradients.parameters
                vectors = [torch.cat([g[place].flatten() for g in gradients]).double() for place in range(2)]
                length = 0.1 * trainer.args.learning_rate * (vectors[0] + vectors[1]).norm()
                before = [parameter.detach().clone() for parameter in parameters]
                batches, _ = diagnosis._before

                def losses():
                    model.eval()
                    found = []
                    for batch in batches:
                        pixels = [trainer.pixel_processor.normalize_pixels(clips) for clips in batch["pixel_values"]]
                        for index, name in enumerate(("clips", "copies")):
                            own = batch["head_ids"] == index
                            with torch.no_grad():
                                logits = model(pixels).head_logits[name][own]
                            found.append(torch.nn.functional.cross_entropy(logits, batch["labels"][own]))
                    return torch.stack(found)

                start = losses()
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter -= (length / vectors[0].norm()).float() * gradient[0]
                seen.append(losses() - start)
                with torch.no_grad():
                    for parameter, values in zip(parameters, before, strict=True):
                        parameter.copy_(values)
            return measure(gradients, scales, factors)

        monkeypatch.setattr(diagnosis, "_effects", effects)
        trainer.train()
        torch.testing.assert_close(
            torch.from_numpy(diagnosis._measured[0]["effect"][0]), seen[0].double(), atol=1e-6, rtol=1e-3
        )

    def test_it_costs_less_than_as_many_steps_for_each_dataset(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path / "run", of_copies(folder, tmp_path), **{**OPTIONS, "max_steps": 60})
        passes = []

        def count(module, args, kwargs):
            rows = sum(map(len, args[0]))
            passes.append(rows * (3 if torch.is_grad_enabled() else 1))  # the backward pass is two forward ones

        trainer.model.register_forward_pre_hook(count, with_kwargs=True)
        diagnose(trainer)
        assert sum(passes) <= 2 * 3 * 60 * 12

    def test_cosines_without_noise_are_those_of_the_expected_gradients(self):
        rng = np.random.default_rng(0)
        expected = np.array([[1.0, 0.0], [0.6, 0.8]])  # of two datasets: a cosine of 0.6
        noisy = expected[:, None, None] + 3 * rng.normal(size=(2, 2, 20_000, 2))
        products = np.einsum("amd,bmd->mab", noisy[:, 0], noisy[:, 1])
        found = signal_cosine(products, 0, 1)
        assert found["mean"] == pytest.approx(0.6, abs=4 * found["error"])
        assert 0 < found["error"] < 0.1
        assert signal_cosine(products, 0, 0)["mean"] == 1
        assert signal_cosine(-products, 0, 1)["mean"] is None
        products[:, 1] = np.nan
        assert signal_cosine(products, 0, 1) == {"mean": None, "error": None, "steps": 0}

    def test_one_dataset_alone_is_refused(self, folder, tmp_path):
        recipe = build_recipe(folder)
        recipe = dataclasses.replace(recipe, datasets=recipe.datasets[:1])
        with pytest.raises(ValueError, match="diagnose: 'videos' is trained alone, expected at least two datasets"):
            diagnose(make_trainer(folder, tmp_path, recipe))

    def test_a_frozen_encoder_is_refused(self, folder, tmp_path):
        with pytest.raises(ValueError, match="diagnose: the encoder is frozen"):
            diagnose(make_trainer(folder, tmp_path, trained_part="heads"))

    def test_a_dataset_without_rows_in_the_steps_is_named(self, folder, tmp_path):
        recipe = of_copies(folder, tmp_path)
        rare, often = (
            dataclasses.replace(entry, share=share) for entry, share in zip(recipe.datasets, (1, 2000), strict=True)
        )
        mixture = dataclasses.replace(recipe.mixture, sampling="shares")
        recipe = dataclasses.replace(recipe, datasets=(rare, often), mixture=mixture)
        trainer = make_trainer(folder, tmp_path / "run", recipe, **{**OPTIONS, "per_device_train_batch_size": 2})
        with pytest.raises(ValueError, match="diagnose: clips had no row in the 4 steps that were looked at"):
            diagnose(trainer)

    def test_gradients_that_are_not_finite_are_named(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path / "run", of_copies(folder, tmp_path), **OPTIONS)
        with torch.no_grad():
            trainer.model.cover.layernorm.weight.fill_(torch.inf)
        with pytest.raises(ValueError, match="diagnose: gradients of clips, copies are not finite at step 2"):
            diagnose(trainer)


def diagnose_in_processes(folder: Path, output: Path, per_device: int) -> None:
    recipe = build_recipe(folder)
    recipe = dataclasses.replace(recipe, model={**recipe.model, **NO_DROPOUT})
    options = {**TRAINING, **OPTIONS, "per_device_train_batch_size": per_device, "adam_epsilon": 1e-3}
    trainer = tiny_trainer(recipe, output / "run", **options)
    found = diagnose(trainer)
    if trainer.is_world_process_zero():
        write_json(output / "diagnosis.json", found)


@pytest.mark.slow
def test_it_is_the_same_on_1_2_and_4_processes(folder, tmp_path):
    found = {}
    for processes in (1, 2, 4):
        output = tmp_path / str(processes)
        output.mkdir()
        log, on_cpu = output.with_suffix(".log"), {"ACCELERATE_USE_CPU": "true"}
        finish(start_processes(diagnose_in_processes, processes, log, on_cpu, folder, output, 12 // processes), output)
        found[processes] = json.loads((output / "diagnosis.json").read_text())
    for processes in (2, 4):
        assert found[processes].keys() == found[1].keys()
        for key in ("gradient_share", "update_share"):
            for name, statistics in found[1][key].items():
                assert found[processes][key][name]["mean"] == pytest.approx(statistics["mean"], abs=1e-4)
        for key in ("gradient_cosine", "signal_cosine", "effect"):
            for first, of_first in found[1][key].items():
                for second, statistics in of_first.items():
                    assert found[processes][key][first][second]["mean"] == pytest.approx(statistics["mean"], abs=1e-4)
        for first, overlaps in found[1]["feature_overlap"].items():
            assert found[processes]["feature_overlap"][first] == pytest.approx(overlaps, abs=1e-6)
