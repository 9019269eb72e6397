# SPDX-License-Identifier: Apache-2.0
"""Calls that work with transformers' own classifiers, a ViT's and a V-JEPA 2's: they do the same here."""

import copy
from types import SimpleNamespace

import modeling_cover
import numpy as np
import pytest
import torch
from modeling_cover import CoverConfig, CoverForVideoClassification, CoverVideoProcessor
from tiny import tiny_config, tiny_processor
from transformers import ViTConfig, ViTForImageClassification, VJEPA2VideoProcessor, pipeline
from transformers.utils import logging
from transformers.video_utils import VideoMetadata


SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
HEADS = {
    "actions": {"labels": ["up", "down", "left"]},
    "objects": {"labels": ["cup", "box"], "modality": "image"},
}


def tiny(**options) -> CoverForVideoClassification:
    return CoverForVideoClassification(tiny_config(**options)).eval()


def clips(count: int = 2) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(count, 2, 3, 16, 16)


def vit(**options) -> ViTForImageClassification:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**sizes, image_size=16, patch_size=8, **options)).eval()


def vit_loss(logits: torch.Tensor, labels: torch.Tensor, **options) -> torch.Tensor:
    """What a ViT with this configuration makes of logits."""
    model = vit(**options)
    return model.loss_function(labels, logits, model.config)


class TestAssigning:
    @pytest.fixture
    def config(self) -> CoverConfig:
        return tiny_config(heads=copy.deepcopy(HEADS), default_head="actions")

    @pytest.mark.parametrize(
        ("name", "value", "labels"),
        [
            ("num_labels", 4, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]),
            ("id2label", {0: "in", 1: "out"}, ["in", "out"]),
            ("id2label", {"1": "out", "0": "in"}, ["in", "out"]),
            ("label2id", {"out": 1, "in": 0}, ["in", "out"]),
        ],
    )
    def test_labels_are_those_of_the_default_head_and_are_saved(self, config, tmp_path, name, value, labels):
        setattr(config, name, value)
        config.save_pretrained(tmp_path)
        for one in (config, CoverConfig.from_pretrained(tmp_path)):
            assert one.heads["actions"]["labels"] == labels
            assert one.id2label == dict(enumerate(labels))
            assert one.label2id == {label: index for index, label in enumerate(labels)}
            assert one.num_labels == len(labels)
            assert one.heads["objects"]["labels"] == ["cup", "box"]
        model = CoverForVideoClassification(config)
        assert model(clips()).logits.shape == (2, len(labels))

    def test_both_maps_may_be_assigned_in_either_order(self, config):
        id2label, label2id = {0: "in", 1: "out"}, {"in": 0, "out": 1}
        for names in (("id2label", "label2id"), ("label2id", "id2label")):
            other = copy.deepcopy(config)
            for name in names:
                setattr(other, name, {"id2label": id2label, "label2id": label2id}[name])
            assert (other.id2label, other.label2id) == (id2label, label2id)

    def test_the_problem_type_is_that_of_the_default_head_and_is_saved(self, config, tmp_path):
        model = CoverForVideoClassification(config).eval()
        model.config.problem_type = MULTI
        labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
        model.save_pretrained(tmp_path)
        for one in (model, CoverForVideoClassification.from_pretrained(tmp_path).eval()):
            assert one.config.heads["actions"]["problem_type"] == one.config.problem_type == MULTI
            outputs = one(clips(), labels=labels)
            expected = vit_loss(outputs.logits, labels, num_labels=3, problem_type=MULTI)
            torch.testing.assert_close(outputs.loss, expected)
        with pytest.raises(ValueError, match="problem_type must be one of"):
            model.config.problem_type = "ranking"
        assert model.config.problem_type == MULTI


class TestFromPretrained:
    def test_another_problem_and_number_of_labels(self, tmp_path):
        tiny(heads=HEADS, default_head="actions").save_pretrained(tmp_path / "cover")
        vit(num_labels=3).save_pretrained(tmp_path / "vit")
        options = {"problem_type": MULTI, "num_labels": 4, "ignore_mismatched_sizes": True}
        model = CoverForVideoClassification.from_pretrained(tmp_path / "cover", **options)
        theirs = ViTForImageClassification.from_pretrained(tmp_path / "vit", **options)
        for name in ("problem_type", "num_labels", "id2label", "label2id"):
            assert getattr(model.config, name) == getattr(theirs.config, name)
        labels = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
        outputs = model(clips(1), labels=labels)
        torch.testing.assert_close(outputs.loss, theirs.loss_function(labels, outputs.logits, theirs.config))
        assert model.config.heads["objects"]["problem_type"] == SINGLE


class TestLosses:
    @pytest.mark.parametrize(
        ("options", "labels"),
        [
            ({"num_labels": 1}, torch.tensor([0.5, -2.0])),
            ({"num_labels": 1, "problem_type": REGRESSION}, torch.tensor([[0.5], [-2.0]])),
            ({"num_labels": 3, "problem_type": REGRESSION}, torch.tensor([[0.5, 1.0, 2.0], [-2.0, 0.0, 3.0]])),
            ({"num_labels": 3, "problem_type": SINGLE}, torch.tensor([2, -100])),
            ({"num_labels": 3, "problem_type": SINGLE}, torch.tensor([2, 0])),
            ({"num_labels": 3, "problem_type": MULTI}, torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])),
        ],
    )
    def test_they_are_a_vits(self, options, labels):
        outputs = tiny(**options)(clips(), labels=labels)
        torch.testing.assert_close(outputs.loss, vit_loss(outputs.logits, labels, **options))

    def test_one_label_is_a_regression_as_it_is_for_a_vit(self, tmp_path):
        theirs = vit(num_labels=1)
        theirs(torch.randn(2, 3, 16, 16), labels=torch.rand(2))
        model = tiny(num_labels=1)
        assert model.config.problem_type == theirs.config.problem_type == REGRESSION
        model.save_pretrained(tmp_path)
        assert CoverConfig.from_pretrained(tmp_path).problem_type == REGRESSION
        for config_class in (CoverConfig, ViTConfig):
            with pytest.raises(ValueError, match="label"):
                config_class(num_labels=1, problem_type=SINGLE)

    def test_labels_of_minus_100_are_ignored_among_several_heads(self):
        model = tiny(heads=HEADS, default_head="actions")
        labels, head_ids = torch.tensor([2, -100, 1, -100]), torch.tensor([0, 0, 1, 1])
        losses = model(clips(4), labels=labels, head_ids=head_ids).head_losses
        alone = model(clips(4)[[0, 2]], labels=labels[[0, 2]], head_ids=head_ids[[0, 2]]).head_losses
        for name in HEADS:
            torch.testing.assert_close(losses[name], alone[name])

    def test_a_regression_trains_beside_other_heads(self):
        model = tiny(heads={**HEADS, "age": {"labels": ["years"], "problem_type": REGRESSION}}, default_head="actions")
        ids = model.config.head_names
        head_ids = torch.tensor([ids.index("actions"), ids.index("age")])
        labels = {"actions": torch.tensor([1]), "age": torch.tensor([2.5])}
        outputs = model(clips(), labels=labels, head_ids=head_ids)
        expected = vit_loss(outputs.head_logits["age"][1:], labels["age"][:, None], num_labels=1)
        torch.testing.assert_close(outputs.head_losses["age"], expected)
        with pytest.raises(ValueError, match="head 'age' is of regression: with head_ids, give labels as a dict"):
            model(clips(), labels=torch.tensor([1, 2]), head_ids=head_ids)

    def test_floats_that_are_no_probabilities_are_refused(self):
        for labels in (torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[1.5, -0.5, 0.0]]), torch.tensor([[0.0] * 3])):
            with pytest.raises(ValueError, match="labels of head 'default': expected integers, or probabilities"):
                tiny(num_labels=3)(clips(1), labels=labels)
        soft = torch.tensor([[0.2, 0.5, 0.3]])
        outputs = tiny(num_labels=3)(clips(1), labels=soft)
        torch.testing.assert_close(outputs.loss, torch.nn.functional.cross_entropy(outputs.logits, soft))


class TestForward:
    def test_maps_of_attention_need_eager_attention_which_a_warning_says(self, caplog):
        theirs = vit()
        images, model = torch.randn(2, 3, 16, 16), tiny()
        assert model.config._attn_implementation == theirs.config._attn_implementation == "sdpa"
        logging.get_logger("transformers").addHandler(caplog.handler)
        try:
            found = (
                theirs(images, output_attentions=True).attentions,
                model(clips(), output_attentions=True).attentions,
            )
        finally:
            logging.get_logger("transformers").removeHandler(caplog.handler)
        assert found[0] == found[1]
        assert not found[1]
        model.set_attn_implementation("eager")
        assert len(model(clips(), output_attentions=True).attentions) == model.config.num_hidden_layers

    def test_an_attention_mask_is_ignored_with_a_warning(self, caplog):
        model = tiny()
        masked = model(clips(), attention_mask=torch.zeros(2, 9)).logits
        torch.testing.assert_close(masked, model(clips()).logits, rtol=0, atol=0)
        assert "attention_mask is ignored" in caplog.text


class TestFps:
    @pytest.fixture
    def processor(self) -> CoverVideoProcessor:
        return CoverVideoProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})

    @pytest.mark.parametrize(
        ("frames", "rate", "fps"), [(30, 10.0, 2), (31, 29.97, 4), (3, 30.0, 1), (250, 25.0, 0.5)]
    )
    def test_frames_are_those_of_transformers_processors(self, processor, frames, rate, fps):
        metadata = VideoMetadata(frames, fps=rate)
        expected = VJEPA2VideoProcessor(num_frames=None).sample_frames(metadata, fps=fps)
        assert processor.sample_frames(metadata, fps=fps) == expected.tolist()

    def test_a_call_with_fps_takes_them_instead_of_the_processors_number(self, processor):
        video, metadata = np.zeros((30, 20, 20, 3), np.uint8), [{"total_num_frames": 30, "fps": 10}]
        prepared = processor(video, fps=2, video_metadata=metadata, return_tensors="pt")
        assert prepared["pixel_values"].shape == (1, 6, 3, 16, 16)
        assert tiny()(prepared["pixel_values"]).logits.shape == (1, 2)
        with pytest.raises(ValueError, match="no original FPS"):
            processor(video, fps=2)
        for options in ({"num_frames": 4}, {"num_clips": 2}):
            with pytest.raises(ValueError, match="fps: num_frames and num_clips say"):
                processor(video, fps=2, video_metadata=metadata, **options)
        with pytest.raises(ValueError, match="fps: each window has num_frames frames"):
            next(processor.windows("clip.mp4", 2.0, fps=2))


def test_a_regression_in_the_pipeline_gives_its_numbers(tmp_path):
    heads = {"age": {"labels": ["years", "months"], "problem_type": REGRESSION}}
    model = tiny(heads=heads)
    torch.nn.init.zeros_(model.classifiers["age"].weight)
    model.classifiers["age"].bias.data = torch.tensor([-3.0, 40.0])
    model.save_pretrained(tmp_path)
    CoverVideoProcessor(
        num_frames=2, size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    ).save_pretrained(tmp_path)
    answer = pipeline("cover-video-classification", str(tmp_path))([np.zeros((8, 16, 16, 3), np.uint8)])
    assert answer == [[{"label": "months", "score": 40.0}, {"label": "years", "score": -3.0}]]


def test_docstrings_name_the_model():
    public = SimpleNamespace(**{name: getattr(modeling_cover, name) for name in modeling_cover.__all__})
    for name, member in vars(public).items():
        assert "a None" not in (member.__doc__ or ""), name
    assert "[`CoverForVideoClassification`]" in CoverConfig.__doc__


def test_windows_of_frames_in_bf16_are_those_of_the_same_numbers():
    processor = tiny_processor(16)
    frames = torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    found, expected = (
        [inputs["pixel_values"] for inputs in processor.windows(clip, 1.0, fps=2, do_rescale=False)]
        for clip in (frames, frames.float())
    )
    assert len(found) >= 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
