# SPDX-License-Identifier: Apache-2.0
"""LoRA by the peft library: the usual call, and runs of a CoverTrainer that train an adapter."""

import dataclasses
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from forked_runs import start_processes
from killed_runs import build_recipe
from modeling_cover import CoverForVideoClassification, prepare_cotraining
from modeling_cover.recipe.recipe import Recipe
from modeling_cover.training.checkpoints import CheckpointError
from modeling_cover.training.optimization import is_new
from modeling_cover.training.sharding import configure_sharding
from peft import LoraConfig, PeftModel, get_peft_model
from short_runs import final_weights, make_trainer, with_validation
from tiny import tiny_model
from transformers import pipeline


HEADS = {"actions": {"labels": ["up", "down", "left"]}, "objects": {"labels": ["cup", "box"], "modality": "image"}}
USUAL = {"r": 2, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifiers"]}


def with_lora(folder, **options) -> Recipe:
    recipe = with_validation(build_recipe(folder))
    return dataclasses.replace(recipe, model={**recipe.model, "lora": {"r": 2, **options}})


def trained_names(model: torch.nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


class TestUsualCall:
    def test_it_trains_adapters_and_all_heads(self):
        model = tiny_model(HEADS)
        pixel_values = torch.randn(2, 4, 3, 32, 32)
        expected = model(pixel_values).head_logits
        adapted = get_peft_model(model, LoraConfig(**USUAL))
        for name, logits in adapted(pixel_values).head_logits.items():
            assert torch.equal(logits, expected[name])  # the adapter begins with zeros
        names = trained_names(adapted)
        # In space and in time; of each head weight and bias.
        assert len([name for name in names if ".lora_" in name]) == 2 * 2 * 2
        assert len([name for name in names if ".classifiers.modules_to_save.default." in name]) == 4
        assert len(names) == 12
        adapted(pixel_values, labels=torch.tensor([0, 2])).loss.backward()
        assert all(dict(adapted.named_parameters())[name].grad is not None for name in names)

    def test_it_is_saved_and_loaded_by_peft_with_its_heads(self, tmp_path):
        adapted = get_peft_model(tiny_model(HEADS), LoraConfig(**USUAL))
        with torch.no_grad():
            for parameter in adapted.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1 if parameter.requires_grad else 0)
        adapted.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(tiny_model(HEADS), tmp_path).eval()
        pixel_values = torch.randn(2, 4, 3, 32, 32)
        for name, logits in adapted.eval()(pixel_values).head_logits.items():
            assert torch.equal(loaded(pixel_values).head_logits[name], logits)

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("base_model.model.classifiers.modules_to_save.default.a.weight", True),
            ("base_model.model.cover.layers.0.temporal_attention.q_proj.lora_A.default.weight", True),
            ("base_model.model.cover.layers.0.attention.q_proj.lora_A.default.weight", False),
            ("classifiers.a.weight", True),
        ],
    )
    def test_a_parameter_is_known_by_its_name_inside(self, name, expected):
        assert is_new(name) == expected


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}], ids=["plain", "average"])
class TestRuns:
    @pytest.fixture
    def trainer(self, folder, tmp_path, options):
        trainer = make_trainer(folder, tmp_path / "whole", with_lora(folder), learning_rate=0.05, **options)
        before = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
        trainer.train()
        changed = {
            name for name, weight in trainer.model.state_dict().items() if not torch.equal(weight, before[name])
        }
        assert changed == set(trained_names(trainer.model))
        return trainer

    def test_one_that_resumes_ends_with_the_same_weights_to_the_bit(self, folder, tmp_path, trainer, options):
        shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "resumed" / "checkpoint-3")
        resumed = make_trainer(folder, tmp_path / "resumed", with_lora(folder), learning_rate=0.05, **options)
        resumed.train(resume_from_checkpoint=True)
        expected = final_weights(trainer)
        for name, weight in final_weights(resumed).items():
            assert torch.equal(weight, expected[name]), name

    def test_its_checkpoints_are_whole_models_and_adapters(self, folder, tmp_path, trainer, options):
        """Merged weights are rounded: to 1e-5 of logits of about 1."""
        trainer.save_model(str(tmp_path / "final"))
        pixel_values = torch.randn(2, 2, 3, 16, 16)
        adapted = trainer.model.eval()
        expected = adapted(pixel_values).head_logits
        for saved in (tmp_path / "final", tmp_path / "whole" / "checkpoint-6"):
            model = CoverForVideoClassification.from_pretrained(saved)
            assert set(model.state_dict()) == set(tiny_model(model.config.heads, num_hidden_layers=2).state_dict())
            torch.manual_seed(0)
            base = prepare_cotraining(build_recipe(folder), 42).model
            loaded = PeftModel.from_pretrained(base, saved / "adapter").eval()
            for name, logits in expected.items():
                torch.testing.assert_close(model(pixel_values).head_logits[name], logits, rtol=1e-5, atol=1e-5)
                assert torch.equal(loaded(pixel_values).head_logits[name], logits)

    def test_the_best_checkpoint_is_loaded_and_the_pipeline_takes_what_is_saved(self, folder, tmp_path, options):
        best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3, **options}
        # The loss is the least at first: the rate is too high.
        best |= {"metric_for_best_model": "eval_videos_loss", "greater_is_better": False, "learning_rate": 10.0}
        trainer = make_trainer(folder, tmp_path, with_lora(folder), **best)
        trainer.train()
        losses = {
            entry["step"]: entry["eval_videos_loss"]
            for entry in trainer.state.log_history
            if "eval_videos_loss" in entry
        }
        assert trainer.state.best_global_step == min(losses, key=losses.get)
        assert trainer.evaluate()["eval_videos_loss"] == pytest.approx(min(losses.values()), abs=1e-6)
        trainer.save_model()
        classify = pipeline("cover-video-classification", model=str(tmp_path))
        answer = classify(str(next((folder / "videos" / "class1").glob("*.mp4"))), head="videos")
        assert {entry["label"] for entry in answer} == {"class0", "class1"}


def train_in_parts(folder, output_dir, batch_size: int) -> None:
    options = {"max_steps": 2, "save_steps": 2, "per_device_train_batch_size": batch_size, "optim": "sgd"}
    recipe = with_lora(folder)
    exact = {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0}  # which processes draw apart
    recipe = dataclasses.replace(recipe, model={**recipe.model, **exact})
    trainer = make_trainer(folder, output_dir, recipe, learning_rate=0.05, **options)
    trainer.train()
    trainer.save_model()
    trainer.accelerator.end_training()


def test_two_processes_train_it_as_one_does(folder, tmp_path):
    for processes in (1, 2):
        log = tmp_path / f"{processes}.log"
        arguments = folder, tmp_path / str(processes), 4 // processes
        run = start_processes(train_in_parts, processes, log, {"ACCELERATE_USE_CPU": "true"}, *arguments)
        assert run.wait(600) == 0, log.read_text()[-3000:]
    one, two = (CoverForVideoClassification.from_pretrained(tmp_path / name).state_dict() for name in "12")
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5)


class TestBadInput:
    def test_peft_that_is_not_installed_is_named_with_its_extra(self, folder, monkeypatch):
        monkeypatch.setitem(sys.modules, "peft", None)
        with pytest.raises(ValueError, match=r'lora: peft is not installed: pip install "modeling-cover\[peft\]"'):
            prepare_cotraining(with_lora(folder), 42)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"rank": 2}, "lora: .*'rank'"),
            ({"target_modules": ["query"]}, "lora: No modules were targeted for adaptation"),
            ({"r": 0}, "lora: `r` should be a positive integer"),
        ],
    )
    def test_options_that_make_no_sense_are_named(self, folder, options, message):
        with pytest.raises(ValueError, match=message):
            prepare_cotraining(with_lora(folder, **options), 42)

    def test_a_checkpoint_of_another_adapter_is_refused(self, folder, tmp_path):
        make_trainer(folder, tmp_path, with_lora(folder), max_steps=3).train()
        trainer = make_trainer(folder, tmp_path, with_lora(folder, r=4), max_steps=6)
        with pytest.raises(CheckpointError, match=r"the checkpoint is of another adapter: cover.layers.0.*differs"):
            trainer.train(resume_from_checkpoint=True)

    def test_it_is_not_sharded(self):
        accelerator = SimpleNamespace(distributed_type=DistributedType.FSDP)
        with pytest.raises(ValueError, match="FSDP: an adapter is trained on one GPU, or by DDP"):
            configure_sharding(accelerator, get_peft_model(tiny_model(HEADS), LoraConfig(**USUAL)), 1.0)
