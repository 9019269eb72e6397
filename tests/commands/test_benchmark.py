# SPDX-License-Identifier: Apache-2.0
"""The candidates of `cover benchmark`, and the cells of its tables."""

import pytest
import torch
from modeling_cover.commands.accounting import Account
from modeling_cover.commands.benchmark import (
    COMPILED,
    IN_BF16,
    MODELS,
    OURS,
    PRESETS,
    Setting,
    candidates,
    cells,
    columns,
    parse_arguments,
)
from modeling_cover.commands.benchmarking import median_times


CPU = Setting(preset="tiny", device="cpu", rows=4)
ACCOUNT = Account(flops=3 * 10**12, launches=7, graphs=None, peak_bytes=None)


@pytest.mark.parametrize("name", ["rounds", "batch_size"])
def test_less_than_one_is_refused_by_name(name, capsys):
    with pytest.raises(SystemExit):
        parse_arguments([f"--{name}", "0"])
    assert f"--{name} must be at least 1, got 0" in capsys.readouterr().err


def test_no_rounds_have_no_median():
    with pytest.raises(ValueError, match="rounds must be a positive whole number, got 0"):
        median_times({"nothing": lambda: None}, 0)


def test_a_cpu_compiles_if_it_is_told_to():
    assert not parse_arguments(["--device", "cpu"]).compile
    assert parse_arguments(["--device", "cpu", "--compile"]).compile


@pytest.mark.parametrize("preset", PRESETS)
def test_all_models_have_one_size(preset):
    fields = PRESETS[preset]["config"]
    configs = [config_class(**fields) for _, config_class in MODELS.values()]
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert len({getattr(config, name) for config in configs}) == 1


@pytest.mark.parametrize(("training", "has_bf16"), [(False, False), (False, True), (True, True)])
def test_each_candidate_has_the_same_rows_and_classes(training, has_bf16, monkeypatch):
    """In bf16 on a CPU that has it, and the forward pass alone."""
    monkeypatch.setattr(Setting, "has_bf16", has_bf16)
    found = candidates(CPU, training)
    assert {what for name, what in found if name == OURS} == {"clips", "images", "half of each"}
    assert {name for name, what in found if what == "clips"} == set(MODELS) - {COMPILED} - (
        {IN_BF16} if training or not has_bf16 else set()
    )
    for candidate in found.values():
        with torch.inference_mode():
            assert candidate.model(candidate.pixel_values).logits.shape == (CPU.rows, 400)
    mixed = found[OURS, "half of each"].pixel_values
    assert [len(group) for group in mixed] == [2, 2]
    assert [group.shape[1] for group in mixed] == [4, 1]


def test_one_row_has_no_halves():
    found = candidates(Setting(preset="tiny", device="cpu", rows=1), training=False)
    assert (OURS, "half of each") not in found


def test_a_training_step_keeps_weights_inputs_and_momentum():
    candidate = candidates(CPU, training=True)[OURS, "images"]
    weights = [parameter.detach().clone() for parameter in candidate.model.parameters()]
    candidate.calls(CPU)()
    assert any(not torch.equal(*pair) for pair in zip(weights, candidate.model.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in candidate.model.parameters())
    numbers = sum(tensor.numel() for tensor in candidate.tensors())
    buffers = sum(buffer.numel() for buffer in candidate.model.buffers())
    assert numbers == 2 * sum(map(torch.numel, weights)) + buffers + candidate.pixel_values.numel()


def test_a_row_has_rate_and_share():
    found = cells(ACCOUNT, 2.0, CPU, ceiling=6e12, reference=4.0)
    assert dict(zip(columns(CPU), found, strict=True)) == {
        "ms": "2000",
        "x": "0.50",
        "clips/s": "2",
        "TFLOP/s": "1.5",
        "ceiling": "25%",
        "operators": "7",
    }


def test_a_gpu_has_memory_launches_and_graphs():
    gpu = Setting(preset="tiny", device="cuda", rows=8, compiles=True)
    found = Account(flops=10**12, launches=7, graphs=2, peak_bytes=3 * 10**9)
    row = dict(zip(columns(gpu), cells(found, 0.5, gpu, ceiling=4e12, reference=None), strict=True))
    assert (row["GB"], row["launches"], row["graphs"], row["ceiling"], row["x"]) == ("3.00", "7", "2", "50%", "")


def test_a_row_says_that_memory_was_not_enough():
    assert cells(None, None, CPU, 1.0, None) == ["out of memory", *[""] * 5]
