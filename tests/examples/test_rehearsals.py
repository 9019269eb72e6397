# SPDX-License-Identifier: Apache-2.0
"""`cover rehearse`: every recipe that comes with the package, from its files to a prediction, on stand-ins."""

import dataclasses
import re
from pathlib import Path

import pytest
from modeling_cover import CoverForVideoClassification, load_recipe
from modeling_cover.commands.rehearse import main, small
from modeling_cover.training.arguments import parse_training_arguments


RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
PAPER = "k400_ssv2_mit_imagenet_large_16x448"


def taken(path: Path) -> object:
    return pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem != PAPER))


class TestRehearse:
    @pytest.mark.parametrize("path", [taken(path) for path in sorted(RECIPES.rglob("*.yaml"))])
    def test_a_recipe_trains_resumes_and_predicts_on_stand_ins(self, path, tmp_path, capsys):
        assert main([str(path), "--output", str(tmp_path / "out")]) == 0
        said, recipe = capsys.readouterr().out, load_recipe(path)
        assert re.search(r"Trained 6 steps, stopped by a signal on the way and resumed from checkpoint-[345]\.", said)
        model = CoverForVideoClassification.from_pretrained(tmp_path / "out" / "run")
        names = [dataset.name for dataset in recipe.datasets]
        assert {*names} == {*model.config.head_names}
        for dataset in recipe.datasets:
            assert re.search(rf"^{dataset.name} +{dataset.format} +\d+ +\d+ +\d+ +\d+\.\d\d +\S", said, re.MULTILINE)
            for place in dataset.splits.values():
                assert re.search(rf"^{dataset.name} +{re.escape(place)} +(yes|no)$", said, re.MULTILINE)
        assert "Traceback" not in said

    def test_a_folder_of_something_else_is_left_alone(self, tmp_path, capsys):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "thesis.txt").write_text("all of it")
        assert main([str(RECIPES / f"{PAPER}.yaml"), "--output", str(tmp_path / "out")]) == 2
        assert f"--output: {tmp_path / 'out'} holds something else" in capsys.readouterr().err
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]

    def test_a_dataset_without_stand_ins_is_named(self, tmp_path, capsys):
        recipe = tmp_path / "streamed.yaml"
        recipe.write_text(
            "datasets:\n  - {name: mine, format: dataset, path: org/mine, modality: image, splits: {train: train}}\n"
        )
        assert main([str(recipe), "--output", str(tmp_path / "out")]) == 2
        assert "dataset 'mine': no stand-ins for the format 'dataset'" in capsys.readouterr().err

    def test_two_labels_of_one_list_with_a_seed_of_the_data(self, tmp_path, capsys):
        recipe = tmp_path / "two.yaml"
        recipe.write_text(
            "datasets:\n"
            "  - {name: verbs, format: manifest, modality: image, splits: {train: epic.csv}, columns: {label: verb}}\n"
            "  - {name: nouns, format: manifest, modality: image, splits: {train: epic.csv}, columns: {label: noun}}\n"
            "training: {data_seed: 7}\n"
        )
        assert main([str(recipe), "--output", str(tmp_path / "out")]) == 0, capsys.readouterr().err

    def test_it_is_not_done_in_fewer_steps_than_it_takes_to_stop_on_the_way(self, capsys):
        with pytest.raises(SystemExit):
            main([str(RECIPES / f"{PAPER}.yaml"), "--steps", "3"])
        assert "--steps must be at least 4, to stop half-way, got 3" in capsys.readouterr().err

    def test_rows_that_are_held_out_are_counted_as_such(self, tmp_path, capsys):
        recipe = tmp_path / "small.yaml"
        recipe.write_text(
            "datasets:\n  - {name: own, format: class_folders, modality: image, splits: {train: own}, validation: 0.2}\n"
        )
        assert main([str(recipe), "--output", str(tmp_path / "out")]) == 0
        assert re.search(r"^own +class_folders +10 +40 +10 +\d", capsys.readouterr().out, re.MULTILINE)

    def test_what_is_about_the_recipes_own_model_or_its_evaluations_is_left_out(self, tmp_path):
        recipe = load_recipe(RECIPES / f"{PAPER}.yaml")
        training = {
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "trained_part": "last_8_layers",
            "eval_strategy": "epoch",
        }
        model = {"lora": {"r": 2, "target_modules": ["query", "value"]}}
        (dataset, *_) = recipe.datasets
        attentive = dataclasses.replace(dataset, head={"type": "attentive", "num_heads": 12})
        changed = dataclasses.replace(recipe, training=training, model=model, datasets=(attentive,))
        rehearsed = small(changed, tmp_path, 6)
        assert rehearsed.datasets[0].head["num_heads"] == 2  # which divides what the small model has
        assert rehearsed.model["lora"] == {"r": 2}
        assert rehearsed.training["trained_part"] == "last_2_layers"
        assert "lr_scheduler_type" not in rehearsed.training
        parse_training_arguments(rehearsed, [])

    @pytest.mark.parametrize("argument", ["--max_steps", "--max-steps"])
    def test_arguments_that_a_rehearsal_has_of_its_own_are_named(self, tmp_path, capsys, argument):
        options = ["--output", str(tmp_path / "out"), argument, "2"]
        assert main([str(RECIPES / f"{PAPER}.yaml"), *options]) == 2
        assert "--max_steps: of a rehearsal these are --output and --steps" in capsys.readouterr().err
