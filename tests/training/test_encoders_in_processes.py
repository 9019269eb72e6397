# SPDX-License-Identifier: Apache-2.0
"""Encoders of transformers sharded over two processes by FSDP2: the same weights as with DDP."""

from pathlib import Path

import killed_runs
import pytest
import torch
from encoders import CONFIGS, size_of
from forked_runs import start_processes
from safetensors.torch import load_file


KINDS = {"ddp": {}, "fsdp": {"fsdp": True, "fsdp_config": {"version": 2}, "activation_checkpointing": True}}
TEMPORAL = {"encoder_temporal_layers": 1, "hidden_dropout_prob": 0.0}


def train_each(folder: Path, how: str) -> None:
    for kind, config in CONFIGS.items():
        size, output_dir = size_of(kind), folder / f"{kind} {how}"
        output_dir.mkdir(exist_ok=True)
        trainer = killed_runs.build_trainer(
            folder,
            output_dir,
            model={"encoder": config.to_dict(), **(TEMPORAL if kind == "vit" else {})},
            clips={"num_frames": 4, "image_size": size, "short_side": size},
            per_device_train_batch_size=2,
            max_steps=2,
            save_steps=2,
            ema_decay=0.9,
            # The default, 1e-8, would make much of gradients that are rounded to nothing.
            adam_epsilon=1e-3,
            **KINDS[how],
        )
        trainer.train()


@pytest.fixture(scope="module")
def runs(folder) -> Path:
    """A folder with a run of each encoder, sharded and not: all of a kind in the same two processes."""
    for how in KINDS:
        log = folder / f"{how}.log"
        killed_runs.finish(
            start_processes(train_each, 2, log, {"ACCELERATE_USE_CPU": "true"}, folder, how), folder / how
        )
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", CONFIGS)
def test_sharded_it_ends_with_the_weights_of_ddp(runs, kind):
    for file in ("model", "training_state/weights", "training_state/optimizer"):
        sharded, whole = (
            load_file(runs / f"{kind} {how}" / "checkpoint-2" / f"{file}.safetensors") for how in ("fsdp", "ddp")
        )
        assert sharded.keys() == whole.keys()
        for name, tensor in whole.items():
            torch.testing.assert_close(sharded[name], tensor, atol=1e-5, rtol=1e-5, msg=f"{file} {name}")
