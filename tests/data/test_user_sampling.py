# SPDX-License-Identifier: Apache-2.0
"""Rules of the mixture of a user's own: the share of each dataset by its rows."""

import numpy as np
import pytest
from modeling_cover import load_recipe, register_sampling
from modeling_cover.recipe.mixture_recipe import SAMPLINGS, MixtureRecipe


SIZES = {"small": 100, "large": 900}


def by_root(sizes):
    return {name: size**0.5 for name, size in sizes.items()}


@pytest.fixture
def register():
    """Registers a rule until the test ends."""
    yield lambda rule: register_sampling("mine", rule)
    SAMPLINGS.pop("mine", None)


def test_its_shares_add_up_to_one(register):
    register(by_root)
    assert MixtureRecipe(sampling="mine").shares(SIZES, {}) == pytest.approx({"small": 0.25, "large": 0.75})


def test_its_shares_may_be_any_real_numbers(register):
    register(lambda sizes: {"small": np.float32(0.5), "large": np.int64(1)})
    shares = MixtureRecipe(sampling="mine").shares(SIZES, {})
    assert shares == pytest.approx({"small": 1 / 3, "large": 2 / 3})
    assert {type(share) for share in shares.values()} == {float}


def test_a_recipe_names_it(register, tmp_path):
    register(by_root)
    (tmp_path / "recipe.yaml").write_text(
        "mixture: {sampling: mine}\n"
        "datasets: [{name: small, format: class_folders, modality: video, splits: {train: a}}]\n"
    )
    assert load_recipe(tmp_path / "recipe.yaml").mixture.sampling == "mine"


def test_it_cannot_change_the_sizes_of_others(register):
    def spoil(sizes):
        sizes.clear()
        return {"small": 1, "large": 1}

    register(spoil)
    sizes = dict(SIZES)
    assert MixtureRecipe(sampling="mine").shares(sizes, {}) == {"small": 0.5, "large": 0.5}
    assert sizes == SIZES


def test_a_name_that_nobody_registered_says_how_to():
    message = r"mixture: sampling must be one of \('proportional', .*'shares'\), got 'mine'; .*register_sampling` adds"
    with pytest.raises(ValueError, match=message):
        MixtureRecipe(sampling="mine")


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("equal", by_root, "sampling 'equal' is one of the package's own"),
        ("a b", by_root, "sampling name 'a b': expected letters"),
        ("mine", "equal", "sampling 'mine': expected a function of the sizes, got 'equal'"),
    ],
)
def test_what_cannot_be_registered_is_named(name, rule, message):
    before = dict(SAMPLINGS)
    with pytest.raises(ValueError, match=message):
        register_sampling(name, rule)
    assert before == SAMPLINGS


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"small": 1}, r"expected a share of each of \['large', 'small'\], got \['small'\]"),
        ({"small": 1, "large": 1, "other": 1}, r"expected a share of each of .* got \['large', 'other', 'small'\]"),
        ([1, 2], r"expected a share of each of .* got \[1, 2\]"),
        ({"small": 0, "large": 1}, "the share of small must be a finite number above 0, got 0"),
        ({"small": 1, "large": float("nan")}, "the share of large must be a finite number above 0, got nan"),
    ],
)
def test_what_are_no_shares_is_named(register, found, message):
    register(lambda sizes: found)
    with pytest.raises(ValueError, match=f"sampling 'mine': {message}"):
        MixtureRecipe(sampling="mine").shares(SIZES, {})


def test_shares_that_datasets_list_do_not_go_with_it(register):
    register(by_root)
    with pytest.raises(ValueError, match="mixture: small list a share: set `sampling: shares`"):
        MixtureRecipe(sampling="mine").shares(SIZES, {"small": 1.0})
