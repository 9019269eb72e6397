# SPDX-License-Identifier: Apache-2.0
"""What only a GPU has: fp16 and its scaler, kernels of its own, compiled graphs.

On one, run `python -m pytest tests/training/test_on_gpu.py`.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch._inductor.config
from modeling_cover import CoverConfig, CoverForVideoClassification
from test_skipped_steps import make_trainer
from transformers import TrainerCallback


pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FULL_SCALE = 65536.0  # a GradScaler's at first


def trained(folder, output_dir, poisoned=None, resume=None, **options):
    trainer = make_trainer(folder, output_dir, poisoned or {}, use_cpu=False, logging_steps=1, **options)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def state_of(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "training_state/state.json").read_text())


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "options", [{}, {"ema_decay": 0.9, "activation_checkpointing": True}, {"log_gradient_shares": 1}]
)
def test_a_run_goes_on_where_it_was_stopped(folder, tmp_path, precision, options):
    options = {precision: True, **options}
    whole = trained(folder, tmp_path / "whole", **options)
    shutil.copytree(tmp_path / "whole/checkpoint-4", tmp_path / "resumed/checkpoint-4")
    resumed = trained(folder, tmp_path / "resumed", resume="auto", **options)
    assert [entry["step"] for entry in resumed.state.log_history if "loss" in entry] == list(range(1, 7))
    for name, weight in resumed.model.state_dict().items():
        # Resizing time embeddings has no deterministic gradient on a GPU.
        torch.testing.assert_close(weight, whole.model.state_dict()[name], atol=1e-4, rtol=1e-3)


def test_a_compiled_model_trains_as_any_other(folder, tmp_path):
    options = {
        "max_steps": 3,
        "adam_epsilon": 1e-3,  # the default, 1e-8, would make much of gradients that are rounded to nothing
        "model": {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0},
    }
    plain, compiled = (
        trained(folder, tmp_path / name, torch_compile=name == "compiled", **options) for name in ("plain", "compiled")
    )
    for name, weight in compiled.model.state_dict().items():
        torch.testing.assert_close(weight, plain.model.state_dict()[name], atol=1e-4, rtol=1e-3)


def test_no_step_waits_for_the_device(folder, tmp_path):
    """Of those between two logs; torch says where it does."""

    class NeverWaits(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            torch.cuda.set_sync_debug_mode("error" if state.global_step in (4, 5) else "default")

    trainer = make_trainer(folder, tmp_path, {}, use_cpu=False, logging_steps=8, save_steps=8, max_steps=8)
    trainer.add_callback(NeverWaits())
    try:
        trainer.train()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert trainer.state.global_step == 8


class TestFp16:
    def test_a_scale_that_is_too_large_is_lowered_and_no_fault_of_the_samples(self, folder, tmp_path):
        trainer = trained(folder, tmp_path, {1: "gradient", 2: "gradient"}, fp16=True, max_skipped_steps=1)
        assert trainer.accelerator.scaler.get_scale() == FULL_SCALE / 4
        assert not (tmp_path / "skipped_steps.jsonl").exists()
        assert [entry.get("skipped_steps", 0) for entry in trainer.state.log_history if "loss" in entry] == [
            *[0, 1, 1],
            *[0] * 3,
        ]

    def test_the_schedule_does_not_fall_behind(self, folder, tmp_path):
        rates = []
        for name, poisoned in {"plain": {}, "overflown": {1: "gradient"}}.items():
            trained(folder, tmp_path / name, poisoned, fp16=True)
            rates.append(state_of(tmp_path / name / "checkpoint-6")["learning_rate_schedule"]["_last_lr"])
        assert rates[0] == rates[1]

    def test_a_loss_that_is_not_finite_is_the_samples_fault(self, folder, tmp_path):
        trained(folder, tmp_path, {1: "loss"}, fp16=True)
        (line,) = (tmp_path / "skipped_steps.jsonl").read_text().splitlines()
        assert json.loads(line)["step"] == 1

    def test_checkpoints_have_the_scale(self, folder, tmp_path):
        trained(folder, tmp_path / "whole", {1: "gradient"}, fp16=True)
        checkpoint = tmp_path / "whole/checkpoint-4"
        assert state_of(checkpoint)["gradient_scaler"]["scale"] == FULL_SCALE / 2
        shutil.copytree(checkpoint, tmp_path / "resumed/checkpoint-4")
        resumed = trained(folder, tmp_path / "resumed", resume="auto", fp16=True)
        assert resumed.accelerator.scaler.get_scale() == FULL_SCALE / 2


@pytest.fixture
def batch() -> dict:
    torch.manual_seed(0)
    return {
        "pixel_values": [torch.randn(2, 4, 3, 64, 64), torch.randn(3, 1, 3, 64, 64)],
        "head_ids": torch.tensor([1, 1, 0, 0, 0]),
        "labels": torch.tensor([0, 4, 1, 2, 0]),
    }


def build_model(implementation: str = "sdpa") -> CoverForVideoClassification:
    heads = {
        "images": {"labels": ["a", "b", "c"], "modality": "image"},
        "videos": {"labels": list("vwxyz"), "modality": "video"},
    }
    config = CoverConfig(
        heads=heads,
        default_head="videos",
        num_frames=4,
        image_size=64,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        initializer_range=0.1,
        attn_implementation=implementation,
    )
    torch.manual_seed(0)
    return CoverForVideoClassification(config)


def on(device: str, batch: dict) -> dict:
    move = lambda value: [clip.to(device) for clip in value] if isinstance(value, list) else value.to(device)  # noqa: E731
    return {name: move(value) for name, value in batch.items()}


def loss_and_gradients(model, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = model(**batch).loss
    loss.backward()
    return loss.detach().cpu(), {name: parameter.grad.cpu() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(("implementation", "compiled"), [("eager", False), ("sdpa", False), ("sdpa", True)])
def test_loss_and_gradients_are_those_of_a_cpu(batch, monkeypatch, implementation, compiled):
    expected, gradients = loss_and_gradients(build_model("eager"), batch)
    model = build_model(implementation).cuda()
    if compiled:
        monkeypatch.setattr(torch._inductor.config.triton, "coalesce_tiling_analysis", False)  # as training does
        model.compile(fullgraph=True)
    loss, found = loss_and_gradients(model, on("cuda", batch))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in found.items():
        torch.testing.assert_close(
            gradient, gradients[name], atol=1e-4, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_near_fp32(batch, dtype):
    expected = build_model()(**batch).loss
    model = build_model().cuda()
    with torch.autocast("cuda", dtype):
        loss = model(**on("cuda", batch)).loss
    torch.testing.assert_close(loss.cpu(), expected, atol=0.02, rtol=0.02)
