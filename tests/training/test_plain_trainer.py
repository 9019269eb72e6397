# SPDX-License-Identifier: Apache-2.0
"""transformers' own Trainer on one head of several, as in its guide to video classification."""

from pathlib import Path

import pytest
import torch
from forked_runs import start_processes
from modeling_cover import CoverForVideoClassification
from tiny import tiny_config
from transformers import Trainer, TrainingArguments


HEADS = {"actions": {"labels": ["up", "down", "left"]}, "objects": {"labels": ["cup", "box"], "modality": "image"}}


def train(output_dir: Path, batch_size: int, processes: int) -> None:
    """Two steps of 4 rows, with activation checkpointing, which has DDP look for no unused parameters."""
    torch.manual_seed(0)
    rows = [{"pixel_values": torch.randn(2, 3, 16, 16), "labels": row % 3} for row in range(8)]
    model = CoverForVideoClassification(tiny_config(heads=HEADS, default_head="actions"))
    args = TrainingArguments(
        str(output_dir),
        per_device_train_batch_size=batch_size,
        num_train_epochs=1,
        learning_rate=1e-2,
        optim="sgd",
        activation_checkpointing=True,
        report_to="none",
        use_cpu=True,
        dataloader_pin_memory=False,
    )
    model.save_pretrained(output_dir / "before")
    trainer = Trainer(model, args, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.accelerator.num_processes == processes
    assert trainer.evaluate()["eval_loss"] > 0
    trainer.save_model(str(output_dir / "after"))
    trainer.accelerator.end_training()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return CoverForVideoClassification.from_pretrained(folder).state_dict()


def test_it_trains_the_default_head_on_one_and_on_two_processes(tmp_path):
    for processes in (1, 2):
        log = tmp_path / f"{processes}.log"
        arguments = tmp_path / str(processes), 4 // processes, processes
        run = start_processes(train, processes, log, {"ACCELERATE_USE_CPU": "true"}, *arguments)
        assert run.wait(600) == 0, log.read_text()[-3000:]
    before, one, two = (weights(tmp_path / name) for name in ("1/before", "1/after", "2/after"))
    for name, weight in before.items():
        if name.startswith("classifiers."):
            assert torch.equal(one[name], weight) == ("objects" in name)
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("head", ["actions", "objects"])
def test_heads_without_rows_have_a_gradient_of_zeros(head):
    model = CoverForVideoClassification(tiny_config(heads=HEADS, default_head="actions"))
    model(torch.randn(2, 2, 3, 16, 16), labels=torch.tensor([0, 1]), head=head).loss.backward()
    for name, classifier in model.classifiers.items():
        assert bool(classifier.weight.grad.any()) == (name == head)
