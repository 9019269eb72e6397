# SPDX-License-Identifier: Apache-2.0
"""What recipes on other encoders are predicted to take, from what was measured of ours."""

import json
import re
from pathlib import Path

import benchmark_scaling
import encoder_scaling
import paper_scaling
import pytest
import torch
from encoder_scaling import Measured, prediction, step_operations
from modeling_cover import CoverConfig, load_recipe


ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "examples" / "recipes" / "encoders"
MEASURED = Measured(rate=3e14, working=75.0)


@pytest.fixture(scope="module")
def found() -> dict:
    """What was measured."""
    return json.loads((ROOT / "docs" / "scaling.json").read_text())


@pytest.fixture(scope="module")
def config() -> CoverConfig:
    """Of the model that it was measured of."""
    with torch.device("meta"):
        return benchmark_scaling.build_model("large").config


@pytest.fixture(scope="module")
def measured(found, config) -> Measured:
    return Measured.of(found, config)


@pytest.mark.slow  # counts Large twice
def test_what_was_measured_is_predicted_of_the_model_that_it_was_measured_of(found, config, measured):
    clip, _ = encoder_scaling.operations(config, config.num_frames, config.image_size)
    assert 4 * clip * 16 / measured.rate == pytest.approx(found["step"]["16"]["16"])
    numbers = encoder_scaling.tokens_of(config, config.num_frames, config.image_size) * config.hidden_size
    of_row = numbers * (4 * config.num_hidden_layers + measured.working)
    assert 14 * of_row == pytest.approx(found["peak_memory"]["16"] - found["peak_memory"]["2"])


@pytest.mark.slow  # counts Base
def test_a_row_is_that_of_the_page(measured):
    page = (ROOT / "docs" / "scaling.md").read_text()
    row = prediction(RECIPES / "vit_base_ssv2_imagenet.yaml", benchmark_scaling.ROWS, measured)
    assert f"| {' | '.join(row)} |" in page
    assert f"{row[-1].removesuffix(' h')} hours" in " ".join(
        (RECIPES / "vit_base_ssv2_imagenet.yaml").read_text().split()
    )


def test_a_frozen_encoder_has_no_backward_pass():
    frozen, trained = (load_recipe(RECIPES / f"{name}_base_ssv2_imagenet.yaml") for name in ("dinov2", "vit"))
    assert step_operations(frozen) == encoder_scaling.operations_of(frozen)
    clip, image = encoder_scaling.operations_of(trained)
    assert step_operations(trained) == (4 * clip, 4 * image)


def test_rows_that_are_not_known_are_named():
    with pytest.raises(ValueError, match="how many rows has imagenet"):
        prediction(RECIPES / "vit_base_ssv2_imagenet.yaml", {"ssv2": 1}, MEASURED)


def test_an_encoder_whose_size_is_not_known_is_named(tmp_path):
    text = f"extends: {RECIPES / 'vit_base_ssv2_imagenet.yaml'}\nmodel: {{from_encoder: org/other}}\n"
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(ValueError, match="the size of 'org/other' is not known"):
        prediction(tmp_path / "other.yaml", benchmark_scaling.ROWS, MEASURED)


@pytest.mark.slow  # counts Large and Base
@pytest.mark.parametrize("name", ["paper/k400_ssv2_mit_imagenet_base", "k700_ssv2_mit_imagenet_large_16x448"])
def test_a_run_of_the_paper_takes_what_its_page_says(found, name):
    rows = {**benchmark_scaling.ROWS, **benchmark_scaling.OTHER_KINETICS}
    row = paper_scaling.prediction(ROOT / "examples" / "recipes" / f"{name}.yaml", rows, found)
    assert f"| {' | '.join(row)} |" in (ROOT / "docs" / "paper.md").read_text()


def test_every_run_of_the_paper_has_a_line_on_its_page():
    page = (ROOT / "docs" / "paper.md").read_text()
    recipes = ROOT / "examples" / "recipes"
    names = [path.stem for path in [*recipes.glob("*_imagenet_*.yaml"), *(recipes / "paper").glob("*.yaml")]]
    assert [name for name in names if not re.search(rf"^\| `{re.escape(name)}` \|.* h \|$", page, re.MULTILINE)] == []
