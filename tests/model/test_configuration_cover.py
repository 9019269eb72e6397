# SPDX-License-Identifier: Apache-2.0
"""`CoverConfig`: heads by name, the labels of the default head, saving, loading, and what is refused."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError
from modeling_cover import CoverConfig
from transformers import AutoConfig, TimesformerConfig, ViTConfig


HEADS = {
    "ssv2": {"labels": ["push", "pull", "lift"]},
    "k400": {"labels": ["abseiling", "zumba"]},
    "imagenet": {"labels": ["tench", "goldfish", "hen", "ostrich"], "modality": "image"},
}
MULTI_LABEL = {"labels": ["sit"], "problem_type": "multi_label_classification"}


@pytest.fixture
def config() -> CoverConfig:
    return CoverConfig(heads=HEADS, default_head="ssv2")


@pytest.fixture
def folder(config, tmp_path):
    config.save_pretrained(tmp_path)
    return tmp_path


def assert_labels_are(config: CoverConfig, labels: list[str]) -> None:
    """The default head's labels are `labels`, and so is everything that is said of them in stock terms."""
    assert config.heads[config.default_head]["labels"] == labels
    assert config.id2label == dict(enumerate(labels))
    assert config.label2id == {label: index for index, label in enumerate(labels)}
    assert config.num_labels == len(labels)
    assert config.problem_type == config.heads[config.default_head]["problem_type"]


class TestHeads:
    def test_modality_and_problem_type_have_defaults(self, config):
        assert config.heads["k400"] == {
            "labels": ["abseiling", "zumba"],
            "modality": "video",
            "problem_type": "single_label_classification",
        }
        assert config.heads["imagenet"]["modality"] == "image"

    def test_names_are_sorted_whatever_order_they_are_given_in(self, config):
        assert config.head_names == ["imagenet", "k400", "ssv2"]
        backwards = CoverConfig(heads=dict(reversed(HEADS.items())), default_head="ssv2")
        assert backwards.head_names == config.head_names
        assert backwards.to_dict() == config.to_dict()

    def test_the_labels_are_those_of_the_default_head(self, config):
        assert_labels_are(config, ["push", "pull", "lift"])

    def test_the_only_head_is_the_default_head(self):
        config = CoverConfig(heads={"k400": HEADS["k400"]})
        assert config.default_head == "k400"
        assert_labels_are(config, ["abseiling", "zumba"])

    @pytest.mark.parametrize(
        ("options", "name", "labels"),
        [
            ({}, "default", ["LABEL_0", "LABEL_1"]),
            ({"num_labels": 3}, "default", ["LABEL_0", "LABEL_1", "LABEL_2"]),
            ({"id2label": {1: "zumba", 0: "abseiling"}}, "default", ["abseiling", "zumba"]),
            ({"id2label": {"0": "abseiling", "1": "zumba"}, "default_head": "k400"}, "k400", ["abseiling", "zumba"]),
        ],
    )
    def test_without_heads_there_is_one_with_the_labels_of_id2label(self, options, name, labels):
        config = CoverConfig(**options)
        assert config.head_names == [config.default_head] == [name]
        assert_labels_are(config, labels)

    def test_without_heads_the_one_there_is_has_the_problem_type_given(self):
        config = CoverConfig(num_labels=3, problem_type="multi_label_classification")
        assert config.heads["default"]["problem_type"] == "multi_label_classification"

    def test_a_multi_label_head_may_have_a_single_label(self):
        config = CoverConfig(heads={"sitting": MULTI_LABEL})
        assert config.problem_type == "multi_label_classification"
        assert_labels_are(config, ["sit"])

    def test_labels_that_agree_with_the_default_head_may_be_repeated(self):
        config = CoverConfig(heads=HEADS, default_head="k400", id2label={0: "abseiling", 1: "zumba"}, num_labels=2)
        assert_labels_are(config, ["abseiling", "zumba"])

    def test_updating_them_updates_the_labels(self, config):
        config.update_heads({**HEADS, "sitting": MULTI_LABEL}, "sitting")
        assert config.head_names == ["imagenet", "k400", "sitting", "ssv2"]
        assert_labels_are(config, ["sit"])
        config.update_heads({"k400": HEADS["k400"]})
        assert (config.head_names, config.default_head) == (["k400"], "k400")
        assert_labels_are(config, ["abseiling", "zumba"])

    def test_a_refused_update_changes_nothing(self, config):
        before = config.to_dict()
        for heads, default_head in (
            ({"k400": HEADS["k400"]}, "ssv2"),
            ({"k400": {"labels": []}}, "k400"),
            (HEADS, None),
        ):
            with pytest.raises(ValueError):
                config.update_heads(heads, default_head)
            assert config.to_dict() == before

    def test_what_was_given_is_neither_changed_nor_changes_it_later(self):
        heads = {"k400": {"labels": ["abseiling", "zumba"]}}
        config = CoverConfig(heads=heads)
        assert heads == {"k400": {"labels": ["abseiling", "zumba"]}}
        heads["k400"]["labels"].append("knitting")
        assert_labels_are(config, ["abseiling", "zumba"])

    def test_one_is_got_by_name(self, config):
        assert config.get_head("k400") == config.heads["k400"]
        with pytest.raises(ValueError, match=r"unknown head 'k600': expected one of \['imagenet', 'k400', 'ssv2'\]"):
            config.get_head("k600")


class TestBadHeads:
    @pytest.mark.parametrize("name", ["k.400", "", "-k400", "k 400", "k/400", "k400\n", "kinétics"])
    def test_a_name_that_cannot_be_part_of_a_parameters_name_is_refused(self, name):
        with pytest.raises(ValueError, match=r"head name .*expected letters, digits, '_' and '-'") as error:
            CoverConfig(heads={name: HEADS["k400"]})
        assert repr(name) in str(error.value)

    @pytest.mark.parametrize(
        ("head", "message"),
        [
            (["abseiling", "zumba"], "expected a dict with 'labels', got list"),
            ({}, "labels must be a non-empty list of strings, got None"),
            ({"labels": []}, r"labels must be a non-empty list of strings, got \[\]"),
            ({"labels": "abseiling"}, "labels must be a non-empty list of strings, got 'abseiling'"),
            ({"labels": {0: "abseiling", 1: "zumba"}}, "labels must be a non-empty list of strings, got {0: 'abs"),
            ({"labels": ["abseiling", 7]}, r"labels must be a non-empty list of strings, got \['abseiling', 7\]"),
            ({"labels": ["b", "a", "b", "a", "c"]}, r"labels \['a', 'b'\] are given more than once"),
            ({"labels": ["abseiling"]}, r"needs at least two labels, got \['abseiling'\]"),
            ({**MULTI_LABEL, "modality": "audio"}, r"modality must be one of \('video', 'image'\), got 'audio'"),
            ({**MULTI_LABEL, "problem_type": "ranking"}, "problem_type must be one of .*, got 'ranking'"),
            ({**MULTI_LABEL, "classes": 3}, r"unknown keys \['classes'\], expected labels, modality, problem_type"),
        ],
    )
    def test_one_that_is_malformed_is_named_with_what_was_expected(self, head, message):
        with pytest.raises(ValueError, match=f"head 'k400': .*{message}"):
            CoverConfig(heads={**HEADS, "k400": head}, default_head="ssv2")

    def test_there_is_at_least_one(self):
        with pytest.raises(ValueError, match="heads: expected at least one"):
            CoverConfig(heads={})

    def test_they_come_by_name(self):
        with pytest.raises(StrictDataclassError, match=r"'heads'.*expected a dict, got list"):
            CoverConfig(heads=[HEADS["k400"]])

    def test_of_several_one_has_to_be_the_default_head(self):
        with pytest.raises(
            ValueError, match=r"default_head: expected one of \['imagenet', 'k400', 'ssv2'\], got None"
        ):
            CoverConfig(heads=HEADS)

    def test_the_default_head_has_to_be_one_of_them(self):
        with pytest.raises(ValueError, match=r"'k600': expected one of \['imagenet', 'k400', 'ssv2'\]"):
            CoverConfig(heads=HEADS, default_head="k600")

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"num_labels": 5}, r"num_labels differs .* default head 'k400' \(2 labels\)"),
            ({"id2label": {0: "zumba", 1: "abseiling"}}, "id2label .*differs .* default head 'k400'"),
            ({"problem_type": "multi_label_classification"}, "'multi_label_classification' differs .* head 'k400'"),
        ],
    )
    def test_labels_that_contradict_the_default_head_are_refused(self, option, message):
        with pytest.raises(ValueError, match=message):
            CoverConfig(heads=HEADS, default_head="k400", **option)


class TestBadArchitecture:
    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"hidden_size": 100}, r"hidden_size \(100\) is not a multiple of num_attention_heads \(12\)"),
            ({"image_size": 30, "patch_size": 8}, r"image_size \(30\) is not a multiple of patch_size \(8\)"),
            ({"image_size": (32, 30), "patch_size": 8}, r"image_size \(\(32, 30\)\) is not a multiple"),
            ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
            ({"drop_path_rate": 1.0}, r"drop_path_rate must be in \[0, 1\), got 1.0"),
            ({"hidden_size": "64"}, "'hidden_size' expected int, got str"),
        ],
    )
    def test_a_value_that_does_not_fit_is_named(self, option, message):
        with pytest.raises(StrictDataclassError, match=message):
            CoverConfig(**option)

    def test_height_and_width_may_differ(self):
        config = CoverConfig(image_size=[32, 48], patch_size=[8, 16])
        assert (config.image_size, config.patch_size) == ([32, 48], [8, 16])

    @pytest.mark.parametrize("size", [[32], [32, 32, 32]])
    def test_a_size_is_one_number_or_two(self, size):
        with pytest.raises((StrictDataclassError, ValueError), match="image_size"):
            CoverConfig(image_size=size, patch_size=8)


class TestSaving:
    def test_everything_survives_a_round_trip(self, folder, config):
        loaded = CoverConfig.from_pretrained(folder)
        assert loaded.to_dict() == config.to_dict()
        assert loaded.heads == config.heads
        assert_labels_are(loaded, ["push", "pull", "lift"])

    def test_the_default_configuration_survives_too(self, tmp_path):
        config = CoverConfig()
        config.save_pretrained(tmp_path)
        assert CoverConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()

    def test_the_order_of_heads_in_the_file_carries_no_meaning(self, folder, config):
        stored = json.loads((folder / "config.json").read_text())
        stored["heads"] = dict(reversed(stored["heads"].items()))
        (folder / "config.json").write_text(json.dumps(stored))
        loaded = CoverConfig.from_pretrained(folder)
        assert loaded.to_dict() == config.to_dict()
        assert loaded.head_names == config.head_names

    def test_the_order_of_labels_is_kept(self, folder):
        assert CoverConfig.from_pretrained(folder).heads["imagenet"]["labels"] == HEADS["imagenet"]["labels"]

    def test_auto_config_knows_it(self, folder):
        assert type(AutoConfig.from_pretrained(folder)) is CoverConfig


class TestLoadingWithKeywords:
    def test_another_default_head_brings_its_labels(self, folder):
        config = CoverConfig.from_pretrained(folder, default_head="k400")
        assert config.head_names == ["imagenet", "k400", "ssv2"]
        assert_labels_are(config, ["abseiling", "zumba"])

    def test_an_unknown_default_head_is_refused(self, folder):
        with pytest.raises(ValueError, match=r"'k600': expected one of \['imagenet', 'k400', 'ssv2'\]"):
            CoverConfig.from_pretrained(folder, default_head="k600")

    def test_num_labels_replaces_the_labels_of_the_default_head(self, folder):
        config = CoverConfig.from_pretrained(folder, num_labels=2)
        assert_labels_are(config, ["LABEL_0", "LABEL_1"])
        assert config.heads["k400"]["labels"] == ["abseiling", "zumba"]

    def test_num_labels_that_is_right_keeps_the_labels(self, folder):
        assert_labels_are(CoverConfig.from_pretrained(folder, num_labels=3), ["push", "pull", "lift"])

    @pytest.mark.parametrize(
        "labels",
        [
            {"id2label": {1: "sit", 0: "eat"}, "label2id": {"sit": 1, "eat": 0}},
            {"id2label": {"0": "eat", "1": "sit"}},
            {"label2id": {"sit": 1, "eat": 0}},
        ],
    )
    def test_id2label_or_label2id_replace_the_labels_of_the_default_head(self, folder, labels):
        config = CoverConfig.from_pretrained(folder, **labels)
        assert_labels_are(config, ["eat", "sit"])
        assert config.heads["k400"]["labels"] == ["abseiling", "zumba"]

    def test_labels_go_to_the_default_head_that_is_given_with_them(self, folder):
        config = CoverConfig.from_pretrained(folder, default_head="k400", num_labels=4)
        assert_labels_are(config, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"])
        assert config.heads["ssv2"]["labels"] == ["push", "pull", "lift"]

    def test_a_number_of_labels_other_than_that_of_id2label_is_refused(self, folder):
        with pytest.raises(ValueError, match="num_labels"):
            CoverConfig.from_pretrained(folder, num_labels=5, id2label={0: "eat", 1: "sit"})

    def test_all_heads_can_be_replaced(self, folder):
        config = CoverConfig.from_pretrained(
            folder, heads={"hmdb51": {"labels": ["hug", "kiss"]}}, default_head="hmdb51"
        )
        assert config.head_names == ["hmdb51"]
        assert_labels_are(config, ["hug", "kiss"])

    def test_a_malformed_head_is_named(self, folder):
        with pytest.raises(ValueError, match="head 'hmdb51': expected a dict with 'labels', got list"):
            CoverConfig.from_pretrained(folder, heads={"hmdb51": ["hug"]}, default_head="hmdb51", num_labels=2)

    def test_other_fields_are_replaced_and_unknown_ones_handed_back(self, folder):
        config, unused = CoverConfig.from_pretrained(folder, num_frames=16, beam_width=3, return_unused_kwargs=True)
        assert config.num_frames == 16
        assert unused == {"beam_width": 3}


class TestOtherArchitectures:
    @pytest.mark.parametrize("other", [ViTConfig, TimesformerConfig])
    def test_their_checkpoints_are_refused_with_the_way_to_start_from_them(self, other, tmp_path):
        other(hidden_size=32).save_pretrained(tmp_path)
        message = f"expected .*'cover', got '{other.model_type}'.*from_image_checkpoint.*from_timesformer"
        with pytest.raises(ValueError, match=message):
            CoverConfig.from_pretrained(tmp_path)
