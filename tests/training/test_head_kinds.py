# SPDX-License-Identifier: Apache-2.0
"""Runs of recipes whose datasets say what their heads are made of."""

import dataclasses

import pytest
import torch
from checkpoints import save_timesformer
from killed_runs import build_recipe
from modeling_cover import CoverForVideoClassification, load_recipe, prepare_cotraining
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from modeling_cover.training.checkpoints import CheckpointError
from short_runs import final_weights, make_trainer, resumed_from, with_validation


MLP = {"type": "mlp", "hidden_size": 24}
ATTENTIVE = {"type": "attentive", "num_heads": 2}
FC1 = "classifiers.videos.fc1.weight"


def with_head(recipe, head, **changes):
    """The recipe whose videos have this head."""
    videos, images = recipe.datasets
    return dataclasses.replace(recipe, datasets=(dataclasses.replace(videos, head=head), images), **changes)


@pytest.fixture
def recipe(folder):
    return with_head(build_recipe(folder), MLP)


class TestARecipeWithAnMlp:
    def test_it_is_trained_beside_a_linear_one_and_resumes_to_the_same_weights(self, recipe, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path / "whole", recipe)
        before = final_weights(trainer)
        trainer.train()
        after = final_weights(trainer)
        assert before[FC1].shape == (24, 16) and before["classifiers.images.weight"].shape == (3, 16)
        assert all(not torch.equal(after[name], before[name]) for name in (FC1, "classifiers.images.weight"))
        resumed = resumed_from(tmp_path / "whole", 3, tmp_path / "resumed", folder, recipe)
        torch.testing.assert_close(final_weights(resumed), after, rtol=0, atol=0)

    def test_a_run_of_another_kind_is_another_run(self, recipe, folder, tmp_path):
        make_trainer(folder, tmp_path / "run", recipe, max_steps=3).train()
        with pytest.raises(CheckpointError, match=r"head 'videos': {'type': 'mlp', .* in the checkpoint, linear now"):
            make_trainer(folder, tmp_path / "run").train(resume_from_checkpoint="auto")

    def test_only_what_is_new_and_the_same_is_taken_by_another_schedule(self, recipe, folder, tmp_path):
        make_trainer(folder, tmp_path / "run", recipe, max_steps=3).train()
        restarted = make_trainer(
            folder,
            tmp_path / "other",
            restart_schedule=True,
            resume_from_checkpoint=str(tmp_path / "run/checkpoint-3"),
        )
        restarted.train(resume_from_checkpoint=restarted.args.resume_from_checkpoint)
        assert "classifiers.videos.weight" in final_weights(restarted)

    def test_it_is_what_an_evaluation_looks_at(self, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path, with_head(with_validation(build_recipe(folder)), MLP))
        with torch.no_grad():
            trainer.model.classifiers["videos"].fc2.weight.zero_()
            trainer.model.classifiers["videos"].fc2.bias.copy_(torch.tensor([0.0, 40.0]))
        assert trainer.evaluate()["eval_videos_top1"] == pytest.approx(0.6)  # 3 of 5 files that can be read

    def test_its_layers_are_trained_and_decay_as_a_head_does(self, recipe, folder, tmp_path):
        options = {"learning_rate": 1.0, "layer_decay": 0.5, "weight_decay": 0.1, "trained_part": "heads"}
        trainer = make_trainer(folder, tmp_path, recipe, **options)
        names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
        found = {
            names[id(weight)]: (group["lr"], group["weight_decay"])
            for group in trainer.create_optimizer().param_groups
            for weight in group["params"]
        }
        layers = ("videos.fc1", "videos.fc2", "images")
        assert found == {
            f"classifiers.{layer}.{name}": (1.0, decay)
            for layer in layers
            for name, decay in (("weight", 0.1), ("bias", 0.0))
        }

    def test_an_adapter_trains_all_of_it(self, recipe, folder, tmp_path):
        trainer = make_trainer(
            folder, tmp_path, dataclasses.replace(recipe, model={**recipe.model, "lora": {"r": 2}}), max_steps=1
        )
        trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
        assert sum("videos.fc1" in name or "videos.fc2" in name for name in trained) == 4

    def test_yaml_says_it_too(self, tmp_path):
        (tmp_path / "recipe.yaml").write_text(
            "datasets: [{name: a, format: class_folders, modality: video, splits: {train: a}, "
            "head: {type: mlp, hidden_size: 24}}]"
        )
        assert load_recipe(tmp_path / "recipe.yaml").datasets[0].head == MLP


class TestARecipeWithAnAttentiveHead:
    @pytest.fixture
    def recipe(self, folder):
        return with_head(build_recipe(folder), ATTENTIVE)

    def test_it_is_trained_beside_a_linear_one_and_resumes_to_the_same_weights(self, recipe, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path / "whole", recipe)
        before = final_weights(trainer)
        trainer.train()
        after = final_weights(trainer)
        of_head = [name for name in before if name.startswith("classifiers.videos.")]
        assert len(of_head) == 9  # the query, attention's four, two of LayerNorm, two of the classifier
        assert not any(torch.equal(after[name], before[name]) for name in of_head)
        resumed = resumed_from(tmp_path / "whole", 3, tmp_path / "resumed", folder, recipe)
        torch.testing.assert_close(final_weights(resumed), after, rtol=0, atol=0)

    def test_its_query_does_not_decay_and_all_of_it_is_trained_on_a_frozen_encoder(self, recipe, folder, tmp_path):
        trainer = make_trainer(folder, tmp_path, recipe, weight_decay=0.1, trained_part="heads")
        names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
        decays = {
            names[id(weight)].removeprefix("classifiers.videos."): group["weight_decay"] > 0
            for group in trainer.create_optimizer().param_groups
            for weight in group["params"]
            if "videos" in names[id(weight)]
        }
        assert len(decays) == 9
        weights = {"attention.in_proj_weight", "attention.out_proj.weight", "classifier.weight"}
        assert {name for name, decaying in decays.items() if decaying} == weights

    def test_an_adapter_trains_all_of_it(self, recipe, folder, tmp_path):
        recipe = dataclasses.replace(recipe, model={**recipe.model, "lora": {"r": 2}})
        trainer = make_trainer(folder, tmp_path, recipe, max_steps=1)
        trainer.train()
        trained = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
        assert sum("classifiers" in name and ".videos." in name for name in trained) == 9


class TestAStartingPointWithHeads:
    @pytest.fixture
    def checkpoint(self, recipe, tmp_path) -> str:
        cotraining = prepare_cotraining(recipe)
        for part in (cotraining.model, cotraining.processor):
            part.save_pretrained(tmp_path / "start")
        return str(tmp_path / "start")

    @pytest.mark.parametrize("head", [{}, MLP])
    def test_they_stay_what_they_are(self, checkpoint, recipe, head):
        model = prepare_cotraining(with_head(recipe, head, model={"from_pretrained": checkpoint})).model
        assert torch.equal(
            model.state_dict()[FC1], CoverForVideoClassification.from_pretrained(checkpoint).state_dict()[FC1]
        )

    @pytest.mark.parametrize("head", [{"type": "linear"}, {**MLP, "hidden_size": 25}])
    def test_a_recipe_that_says_otherwise_is_refused(self, checkpoint, recipe, head):
        message = r"dataset 'videos': its head in .* is {'type': 'mlp', 'hidden_size': 24}, and the recipe says {'ty"
        with pytest.raises(ValueError, match=message):
            prepare_cotraining(with_head(recipe, head, model={"from_pretrained": checkpoint}))

    def test_a_classifier_that_is_linear_becomes_no_mlp(self, tmp_path):
        save_timesformer(tmp_path / "timesformer", num_frames=8, num_hidden_layers=1)
        heads = {"k400": {"head": MLP}}
        with pytest.raises(
            ValueError, match=r"head 'k400': the classifier of .*timesformer is linear, leave out {'type"
        ):
            CoverForVideoClassification.from_timesformer(tmp_path / "timesformer", "k400", heads=heads)


@pytest.mark.parametrize("head", ["mlp", {"type": "mlp"}, ["mlp"]])
def test_a_recipe_with_a_head_of_no_kind_is_refused(head):
    with pytest.raises(ValueError, match=r"dataset 'a': head must be {'type': 'linear'}, "):
        DatasetRecipe(name="a", format="class_folders", modality="video", splits={"train": "a"}, head=head)
