# SPDX-License-Identifier: Apache-2.0
"""Parameters sharded over processes by FSDP2 or ZeRO: the same weights as with DDP, and checkpoints that go from one
to the other."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from forked_runs import start
from killed_runs import finish
from modeling_cover import CoverForVideoClassification
from modeling_cover.training.zero import check_options
from safetensors.torch import load_file


def zero(stage: int, **options) -> dict:
    config = json.loads((CONFIGS / "zero3.json").read_text())
    config["zero_optimization"]["stage"] = stage
    del config["torch_autocast"]
    return {"deepspeed": config | options}


CONFIGS = Path(__file__).parents[2] / "examples" / "accelerate_configs"
FSDP = {"fsdp": True, "fsdp_config": {"version": 2}}
POISONED = {"step": 1, "gradient_step": 2}  # steps in which nothing is evaluated
ALONE = {"processes": 1, "per_device_train_batch_size": 4, "poisoned": {**POISONED, "process": 0}}
KINDS = {"ddp": {}, "one process": ALONE, "fsdp": FSDP, "zero1": zero(1), "zero2": zero(2), "zero3": zero(3)}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


OPTIONS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
    "save_steps": 3,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "ema_decay": 0.9,
    "activation_checkpointing": True,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "load_best_model_at_end": True,
    "mixed_sizes": True,
    "poisoned": {**POISONED, "process": 1},
    # The default, 1e-8, would make much of gradients that are rounded to nothing.
    "adam_epsilon": 1e-3,
    "model": {"hidden_dropout_prob": 0.0, "drop_path_rate": 0.0},
}


class Runs:
    """One of 6 steps of each kind, with checkpoints at 3 and 6, and all that could go wrong together; when asked
    for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __getitem__(self, kind: str) -> Path:
        run = self.folder / kind
        if not run.exists():
            run.mkdir()
            finish(start(self.folder, run, **{"processes": 2, **OPTIONS, **KINDS[kind]}), run)
        return run


@pytest.fixture(scope="module")
def runs(folder) -> Runs:
    return Runs(folder)


def assert_close(path: Path, expected: Path) -> None:
    tensors, others = load_file(path), load_file(expected)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        torch.testing.assert_close(
            tensor, others[name], atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kind", [slow(kind) for kind in KINDS if kind != "ddp"])
@pytest.mark.parametrize("step", [3, 6])
@pytest.mark.parametrize("file", ["model", "training_state/weights", "training_state/optimizer"])
def test_average_weights_and_optimizer_agree_with_those_of_ddp(runs, kind, step, file):
    path = f"checkpoint-{step}/{file}.safetensors"
    assert_close(runs[kind] / path, runs["ddp"] / path)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        slow("ddp", "fsdp"),
        slow("ddp", "zero2"),
        slow("ddp", "zero3"),
        slow("fsdp", "ddp"),
        slow("zero3", "ddp"),
    ],
)
def test_a_checkpoint_of_one_goes_on_in_another(folder, runs, first, second):
    run = folder / f"{first} then {second}"
    shutil.copytree(runs[first] / "checkpoint-3", run / "checkpoint-3")
    finish(start(folder, run, 2, **OPTIONS, **KINDS[second]), run)
    for file in ("checkpoint-6/model", "checkpoint-6/training_state/weights", "final/model"):
        assert_close(run / f"{file}.safetensors", runs["ddp"] / f"{file}.safetensors")


@pytest.mark.parametrize("kind", [slow(kind) for kind in KINDS if kind != "ddp"])
def test_a_checkpoint_is_a_model_like_any_other(runs, kind):
    model = CoverForVideoClassification.from_pretrained(runs[kind] / "checkpoint-6")
    assert model.config.architectures == ["CoverForVideoClassification"]
    assert model.dtype == torch.float32
    sharded, whole = ({file.name for file in (runs[name] / "checkpoint-6").rglob("*")} for name in (kind, "ddp"))
    assert sharded == whole


@pytest.mark.parametrize("kind", list(map(slow, KINDS)))
def test_all_processes_have_the_best_model_at_the_end(runs, kind):
    state = json.loads((runs[kind] / "checkpoint-6/trainer_state.json").read_text())
    best = load_file(Path(state["best_model_checkpoint"]) / "model.safetensors")
    copies = ["final/model", "final-0", "final-1"] if kind == "ddp" else ["final/model"]
    for copy in copies:
        final = load_file(runs[kind] / f"{copy}.safetensors")
        assert final.keys() == best.keys()
        assert all(torch.equal(final[name], weight) for name, weight in best.items())


@pytest.mark.parametrize("kind", list(map(slow, KINDS)))
def test_steps_that_are_not_finite_are_skipped(runs, kind):
    skipped, expected = ((runs[name] / "skipped_steps.jsonl").read_text() for name in (kind, "ddp"))
    assert skipped == expected
    assert [json.loads(line)["step"] for line in skipped.splitlines()] == list(POISONED.values())
    states = [
        json.loads((runs[name] / "checkpoint-3/training_state/state.json").read_text()) for name in (kind, "ddp")
    ]
    rates, expected = ([group["lr"] for group in state["optimizer"]["param_groups"]] for state in states)
    assert rates == expected


BF16 = {
    "ddp": {"bf16": True},
    "fsdp": {**FSDP, "bf16": True},
    "zero3": zero(3, torch_autocast={"enabled": True, "dtype": "bfloat16"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(BF16))
def test_in_bf16_weights_stay_in_fp32_and_go_the_same_way(folder, runs, kind):
    run = folder / f"{kind} in bf16"
    run.mkdir()
    finish(start(folder, run, 2, **(OPTIONS | {"max_steps": 3}), **BF16[kind]), run)
    found = load_file(run / "checkpoint-3/training_state/weights.safetensors")
    assert {weight.dtype for weight in found.values()} == {torch.float32}
    expected, later = (load_file(runs["ddp"] / f"checkpoint-{n}/training_state/weights.safetensors") for n in (3, 6))
    assert distance(found, expected) < 0.2 * distance(later, expected)


def distance(weights: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    return sum((weight - others[name]).square().sum().item() for name, weight in weights.items()) ** 0.5


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"zero_optimization": {"stage": 0}}, "stage must be 1, 2 or 3, got 0"),
        ({"optimizer": {"type": "AdamW"}}, "the optimizer is CoverTrainingArguments' business"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}, "offload_optimizer is not"),
        ({"bf16": {"enabled": True}}, "its bf16 keeps weights in bf16"),
        ({"gradient_clipping": 0.5}, "gradient_clipping is 0.5 and max_grad_norm 1.0"),
    ],
)
def test_what_deepspeed_would_do_otherwise_than_it_is_told_is_refused(options, culprit):
    config = zero(3, gradient_clipping=1.0)["deepspeed"]
    check_options(config, 1.0)
    with pytest.raises(ValueError, match=culprit):
        check_options(config | options, 1.0)
