# Copyright 2026 The CoVeR for Transformers authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Parameters sharded over processes by FSDP2: the same weights as with DDP, and checkpoints that go from one to the other."""

import shutil
from pathlib import Path

import pytest
import torch
from killed_runs import finish, start, write_data
from modeling_cover import CoverForVideoClassification
from safetensors.torch import load_file


FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}
# Without dropout, whose masks would differ; in batches of 2, a process may have just videos, just images, or both.
OPTIONS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 10,
    "save_steps": 5,
    "max_grad_norm": 1.0,
    # The default, 1e-8, would make much of gradients that are rounded to nothing.
    "adam_epsilon": 1e-3,
    "model": {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_data(folder)
    return folder


@pytest.fixture(scope="module")
def runs(folder) -> dict[str, Path]:
    """One of 10 steps of each kind, with a checkpoint at 5."""
    found = {"ddp": folder / "ddp", "fsdp": folder / "fsdp"}
    for kind, run in found.items():
        run.mkdir()
        finish(start(folder, run, 2, **OPTIONS, **(FSDP if kind == "fsdp" else {})), run)
    return found


def assert_close(run: Path, expected: Path) -> None:
    weights, others = load_file(run / "final/model.safetensors"), load_file(expected / "final/model.safetensors")
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=1e-5, rtol=1e-5)


def test_weights_after_ten_steps_agree_with_those_of_ddp(runs):
    assert_close(runs["fsdp"], runs["ddp"])


@pytest.mark.parametrize(("first", "second"), [("ddp", "fsdp"), ("fsdp", "ddp")])
def test_a_checkpoint_of_either_goes_on_in_the_other(folder, runs, first, second):
    run = folder / f"{first} then {second}"
    shutil.copytree(runs[first] / "checkpoint-5", run / "checkpoint-5")
    finish(start(folder, run, 2, **OPTIONS, **(FSDP if second == "fsdp" else {})), run)
    assert_close(run, runs["ddp"])


def test_a_checkpoint_is_a_model_like_any_other(runs):
    model = CoverForVideoClassification.from_pretrained(runs["fsdp"] / "checkpoint-10")
    assert model.config.architectures == ["CoverForVideoClassification"]
    sharded, whole = ({file.name for file in (run / "checkpoint-10").rglob("*")} for run in runs.values())
    assert sharded == whole


def test_averages_are_sharded_too(folder, runs):
    saved = {}
    for kind in runs:
        run = folder / f"{kind} averaged"
        run.mkdir()
        finish(start(folder, run, 2, **OPTIONS, ema_decay=0.9, **(FSDP if kind == "fsdp" else {})), run)
        saved[kind] = run
    assert_close(saved["fsdp"], saved["ddp"])
