# SPDX-License-Identifier: Apache-2.0
"""Nothing in a step of training makes the CPU wait for the device to know a number.

On the device "meta" tensors have no numbers: whatever needs one is an error there.
"""

from functools import partial

import pytest
import torch
from modeling_cover import CoverConfig, CoverForVideoClassification, CoverModel, CoverVideoProcessor
from modeling_cover.model import packed_frames_cover
from modeling_cover.training.arguments import CoverTrainingArguments
from modeling_cover.training.batches import normalized, rows_of_heads
from modeling_cover.training.loss import TrainingLoss
from modeling_cover.training.step_guard import StepGuard
from modeling_cover.training.step_metrics import StepMetrics
from torch.nn.utils import get_total_norm
from torch.utils._python_dispatch import TorchDispatchMode


META = torch.device("meta")
HEADS = {
    "clips": {"labels": ["a", "b", "c"], "modality": "video"},
    "photos": {"labels": ["d", "e"], "modality": "image"},
}
SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "num_frames": 2}


class Copies(TorchDispatchMode):
    """Notes what is copied to the device, for which the CPU waits."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.found = []
        for name in ("tensor", "as_tensor"):
            monkeypatch.setattr(torch, name, partial(self._made, getattr(torch, name)))

    def _made(self, make, data, *args, **kwargs):
        made = make(data, *args, **kwargs)
        if not isinstance(data, torch.Tensor) and made.device == META:
            self.found.append(data)
        return made

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and args[0].device != result.device:
            self.found.append(args[0])
        return result


@pytest.fixture(params=["plain", "packed"])
def step(request, tmp_path, monkeypatch):
    """A function that computes a step of a mixed batch, up to the votes on it; it returns the norm of the gradient."""
    if request.param == "packed":
        monkeypatch.setattr(CoverModel, "packing_devices", ("meta",))
        monkeypatch.setattr(packed_frames_cover, "has_kernel", lambda device: True)
        # Which asks for autocast, that the device does not have.
        monkeypatch.setattr(packed_frames_cover, "_product_dtype", lambda model, device: torch.float32)
    config = CoverConfig(**SIZES, drop_path_rate=0.1, image_size=16, patch_size=8, heads=HEADS, default_head="clips")
    model = CoverForVideoClassification(config).to(META).train()
    processor = CoverVideoProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    metrics, guard = StepMetrics(HEADS, META), StepGuard(META)
    args = CoverTrainingArguments(str(tmp_path), use_cpu=True)
    loss_of = TrainingLoss(config, dict.fromkeys(HEADS, 1.0), args, metrics)
    loss_of.weights = loss_of.weights.to(META)
    groups = [torch.zeros(2, frames, 3, 16, 16, dtype=torch.uint8, device=META) for frames in (2, 1)]
    labels = torch.zeros(4, dtype=torch.long, device=META)

    def compute(labels: torch.Tensor | dict = labels) -> torch.Tensor:
        batch = {"pixel_values": groups, "labels": labels, "head_ids": torch.zeros(4, dtype=torch.long, device=META)}
        metrics.begin_step()
        guard.begin_step()
        loss, _ = loss_of(model, normalized(batch, processor), rows_of_heads(batch["head_ids"], len(HEADS)))
        loss.backward()
        guard.see(loss)
        metrics.add_loss(loss.detach())
        return get_total_norm([weight.grad for weight in model.parameters()])

    return compute


def test_a_step_needs_no_number_of_the_device_before_the_votes(step):
    """Which are copied, and looked at a step later."""
    assert step().device == META


def test_nothing_is_copied_to_the_device_once_it_has_been_there(step, monkeypatch):
    with Copies(monkeypatch) as copies:
        step()
        first = len(copies.found)
        step()
    assert len(copies.found) == first > 0


def have(monkeypatch, device: str) -> None:
    """As on a machine with such a device; arguments find it as they prepare for processes, which they still do."""
    found = property(lambda args: (args._setup_devices, torch.device(device))[1])
    monkeypatch.setattr(CoverTrainingArguments, "device", found)


def test_batches_are_copied_while_the_device_computes_but_where_the_user_says_otherwise(tmp_path, monkeypatch):
    def copies(**options) -> bool:
        return CoverTrainingArguments(str(tmp_path), **options).accelerator_config.non_blocking

    have(monkeypatch, "cuda")
    assert copies()
    assert not copies(
        use_cpu=True
    )  # where nothing is copied, and transformers warns of copies from what is not pinned
    assert not copies(dataloader_pin_memory=False)
    assert not copies(accelerator_config={"even_batches": True})


@pytest.mark.parametrize("options", [{}, {"use_cpu": True}])
def test_where_there_is_no_device_nothing_is_pinned_or_copied_ahead_of_which_one_would_be_warned(
    tmp_path, monkeypatch, options
):
    have(monkeypatch, "cpu")
    args = CoverTrainingArguments(str(tmp_path), **options)
    assert not args.dataloader_pin_memory and not args.accelerator_config.non_blocking


def test_a_number_that_is_needed_is_noticed(step):
    """Labels of a dict are of the rows of a mask, whose number is not known."""
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        step({"clips": torch.zeros(4, dtype=torch.long, device=META)})
