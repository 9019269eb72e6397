# SPDX-License-Identifier: Apache-2.0
"""Layers that are compiled train as others do: alone, by DDP and by FSDP2, and with all clips in one pass."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType, TorchDynamoPlugin
from forked_runs import start_processes
from killed_runs import build_trainer, finish
from killed_runs import train as train_run
from modeling_cover import CoverModel
from modeling_cover.training.arguments import CoverTrainingArguments
from modeling_cover.training.compiling import compile_layers
from safetensors.torch import load_file
from short_runs import final_weights


COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}
EXACT = {
    "adam_epsilon": 1e-3,  # the default, 1e-8, would make much of gradients that are rounded to nothing
    "per_device_train_batch_size": 4,
    "model": {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0},
}
OPTIONS = {**EXACT, "max_steps": 2, "save_steps": 2, "mixed_sizes": True}
KINDS = {
    "ddp": {},
    "ddp, packed and compiled": COMPILED,
    "fsdp, packed and compiled": {
        "fsdp": True,
        "fsdp_config": {"version": 2},
        "torch_compile": True,
        "torch_compile_backend": "aot_eager",
    },
}


def train(folder: Path, output_dir: Path, options: dict) -> None:
    if "packed" in output_dir.name:
        CoverModel.packing_devices = ("cpu",)
    trainer = train_run(folder, output_dir, **options)
    compiled = [layer._compiled_call_impl is not None for layer in trainer.model.cover.layers]
    (output_dir / "compiled.json").write_text(json.dumps(compiled))


def trained(folder: Path, output_dir: Path, **options) -> dict[str, torch.Tensor]:
    trainer = build_trainer(folder, output_dir, **{**options, "max_steps": 2})
    trainer.train()
    compiled = [layer._compiled_call_impl is not None for layer in trainer.model.cover.layers]
    assert set(compiled) == {bool(options.get("torch_compile"))}
    return final_weights(trainer)


def assert_close(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.slow
def test_compiled_layers_train_as_others_and_have_the_same_names(folder, tmp_path):
    plain = trained(folder, tmp_path / "plain", **EXACT)
    assert_close(trained(folder, tmp_path / "compiled", **EXACT, **COMPILED), plain)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "ddp"])
def test_two_processes_end_with_the_weights_of_ddp(folder, kind):
    runs = folder / "compiling"
    runs.mkdir(exist_ok=True)
    for name in ("ddp", kind):
        run = runs / name
        if (run / "final").exists():
            continue
        run.mkdir(exist_ok=True)
        process = start_processes(
            train, 2, run.with_suffix(".log"), {"ACCELERATE_USE_CPU": "true"}, folder, run, {**OPTIONS, **KINDS[name]}
        )
        finish(process, run)
    assert set(json.loads((runs / kind / "compiled.json").read_text())) == {"compiled" in kind}
    for file in ("checkpoint-2/model", "final/model"):
        assert_close(*(load_file(runs / name / f"{file}.safetensors") for name in (kind, "ddp")))


def test_a_second_trainer_with_the_same_arguments_is_compiled_as_well(folder, tmp_path):
    first = build_trainer(folder, tmp_path, **COMPILED, max_steps=1)
    second = type(first)(model=copy.deepcopy(first.model), args=first.args, train_dataset=first.train_dataset)
    for trainer in (first, second):
        assert all(layer._compiled_call_impl is not None for layer in trainer.model.cover.layers)


def test_a_budget_that_means_nothing_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="activation_memory_budget must be from 0 to 1"):
        build_trainer(folder, tmp_path, activation_memory_budget=1.5, **COMPILED)
    with pytest.raises(ValueError, match="activation_memory_budget needs torch_compile"):
        build_trainer(folder, tmp_path, activation_memory_budget=0.5)


def test_deepspeed_is_refused(tmp_path):
    state = SimpleNamespace(dynamo_plugin=TorchDynamoPlugin(backend="eager"))
    accelerator = SimpleNamespace(state=state, distributed_type=DistributedType.DEEPSPEED)
    args = CoverTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match="torch_compile: DeepSpeed adds up gradients in the order"):
        compile_layers(accelerator, None, args)
