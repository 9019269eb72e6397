# SPDX-License-Identifier: Apache-2.0
"""The model: shapes, the single-frame path, mixed batches, heads, saving and loading."""

import pytest
import torch
from modeling_cover import CoverConfig, CoverForVideoClassification, CoverModel
from torch.nn import functional as F
from transformers import (
    AutoModel,
    AutoModelForVideoClassification,
    TimesformerConfig,
    TimesformerForVideoClassification,
)
from two_layers import HEADS, SIZES, clips, randomise


MULTI_LABEL = {"labels": ["sit", "eat", "read"], "problem_type": "multi_label_classification"}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class TestOutputs:
    def test_logits_are_the_default_heads_and_every_head_is_answered_from_one_pass(self, model):
        output = model(clips())
        assert output.logits.shape == (2, 2)
        assert {name: tuple(logits.shape) for name, logits in output.head_logits.items()} == {
            "k400": (2, 2),
            "ssv2": (2, 3),
            "imagenet": (2, 4),
        }
        assert torch.equal(output.logits, output.head_logits["k400"])
        assert output.pooler_output.shape == (2, 32)
        assert output.loss is None

    def test_a_head_is_chosen_by_name(self, model):
        pixel_values = clips()
        output = model(pixel_values, head="ssv2")
        assert torch.equal(output.logits, model(pixel_values).head_logits["ssv2"])

    @pytest.mark.parametrize(("num_frames", "height", "width"), [(1, 32, 32), (3, 32, 32), (7, 16, 48), (2, 8, 8)])
    def test_any_number_of_frames_and_any_size_in_whole_patches_is_taken(self, model, num_frames, height, width):
        output = model.cover(clips(2, num_frames, height, width))
        assert output.last_hidden_state.shape == (2, 1 + num_frames * (height // 8) * (width // 8), 32)
        assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])

    def test_clips_of_a_batch_do_not_see_each_other(self, model):
        pixel_values = clips(3)
        alone = torch.cat([model(clip[None]).logits for clip in pixel_values])
        torch.testing.assert_close(model(pixel_values).logits, alone, atol=1e-6, rtol=0)

    def test_a_long_clip_goes_through_the_mlps_in_parts_in_inference_with_the_same_result(self, model, monkeypatch):
        pixel_values = clips()
        expected = model(pixel_values).logits
        monkeypatch.setattr("modeling_cover.model.divided_attention_cover.INFERENCE_CHUNK", 20)  # of 65 tokens
        with torch.no_grad():
            torch.testing.assert_close(model(pixel_values).logits, expected, atol=1e-6, rtol=0)

    def test_frame_order_matters(self, model):
        pixel_values = clips()
        assert (model(pixel_values).logits - model(pixel_values.flip(1)).logits).abs().max() > 1e-3

    def test_a_tuple_comes_on_request(self, model):
        pixel_values = clips()
        logits, head_logits, pooled = model(pixel_values, return_dict=False)
        assert torch.equal(logits, model(pixel_values).logits)
        assert set(head_logits) == set(HEADS)
        assert pooled.shape == (2, 32)

    def test_running_twice_leaves_nothing_behind(self, model):
        pixel_values = clips()
        first = model(pixel_values, output_hidden_states=True).logits
        model(clips(1, 1))
        assert torch.equal(model(pixel_values).logits, first)


class TestSingleFrame:
    def test_the_single_frame_path_equals_general_attention_over_one_key(self):
        """Against transformers' TimeSformer of one frame, which computes that attention in full."""
        reference = TimesformerForVideoClassification(TimesformerConfig(**{**SIZES, "num_frames": 1}, num_labels=5))
        reference = randomise(reference).eval()
        layer, general = CoverModel(CoverConfig(**SIZES)).layers[0].temporal_attention, reference.timesformer
        fused = general.encoder.layer[0].temporal_attention
        for name, part in zip("qkv", fused.attention.qkv.weight.chunk(3), strict=True):
            getattr(layer, f"{name}_proj").weight.data.copy_(part)
        for name, part in zip("qkv", fused.attention.qkv.bias.chunk(3), strict=True):
            getattr(layer, f"{name}_proj").bias.data.copy_(part)
        layer.o_proj.load_state_dict(fused.output.dense.state_dict())
        hidden_states = torch.randn(6, 1, 32)
        torch.testing.assert_close(layer(hidden_states)[0], fused(hidden_states)[0], atol=1e-6, rtol=0)

    def test_every_parameter_gets_a_gradient_from_images_alone(self, model):
        model(clips(2, 1), labels=torch.tensor([0, 1])).loss.backward()
        without = [name for name, parameter in model.cover.named_parameters() if parameter.grad is None]
        assert without == []

    def test_queries_and_keys_over_one_frame_have_the_gradient_zero(self, model):
        model(clips(2, 1), labels=torch.tensor([0, 1])).loss.backward()
        attention = model.cover.layers[0].temporal_attention
        assert attention.q_proj.weight.grad.abs().max() == 0
        assert attention.k_proj.bias.grad.abs().max() == 0
        assert attention.v_proj.weight.grad.abs().max() > 0


class TestMixedBatch:
    def test_it_equals_its_parts_run_apart(self, model):
        videos, images, wide = clips(2), clips(3, 1), clips(1, 2, 16, 48)
        mixed = model([videos, images, wide])
        for name in HEADS:
            apart = torch.cat([model(group).head_logits[name] for group in (videos, images, wide)])
            torch.testing.assert_close(mixed.head_logits[name], apart, atol=1e-5, rtol=0)

    def test_each_heads_loss_is_the_mean_cross_entropy_of_its_rows(self, model):
        groups, head_ids = [clips(2), clips(3, 1)], torch.tensor([1, 2, 0, 0, 2])  # names sorted: imagenet, k400, ssv2
        labels = torch.tensor([1, 2, 3, 0, 1])
        output = model(groups, head_ids=head_ids, labels=labels)
        for index, name in enumerate(["imagenet", "k400", "ssv2"]):
            rows = head_ids == index
            expected = F.cross_entropy(output.head_logits[name][rows], labels[rows])
            torch.testing.assert_close(output.head_losses[name], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(output.loss, sum(output.head_losses.values()))

    def test_a_head_without_rows_has_loss_zero_with_a_gradient(self, model):
        output = model([clips(2, 1)], head_ids=torch.tensor([0, 0]), labels=torch.tensor([3, 1]))
        assert output.head_losses["ssv2"] == 0
        output.loss.backward()
        assert model.classifiers["ssv2"].weight.grad.abs().max() == 0
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []

    def test_rows_of_multi_label_heads_come_in_a_dict(self, model):
        model.add_head("charades", **MULTI_LABEL)
        head_ids = torch.tensor([0, 1, 0])  # charades, imagenet, charades
        labels = {"charades": torch.tensor([[1.0, 0, 1], [0, 0, 1]]), "imagenet": torch.tensor([2])}
        output = model([clips(2), clips(1, 1)], head_ids=head_ids, labels=labels)
        logits = output.head_logits
        expected = F.binary_cross_entropy_with_logits(logits["charades"][[0, 2]], labels["charades"])
        torch.testing.assert_close(output.head_losses["charades"], expected)
        torch.testing.assert_close(
            output.head_losses["imagenet"], F.cross_entropy(logits["imagenet"][[1]], labels["imagenet"])
        )
        assert output.head_losses["k400"] == 0
        output.loss.backward()
        assert model.classifiers["k400"].weight.grad.abs().max() == 0

    def test_hidden_states_and_attention_of_several_groups_come_by_group(self, model):
        model.set_attn_implementation("eager")
        output = model([clips(2), clips(3, 1)], output_hidden_states=True, output_attentions=True)
        assert [states[0].shape[:2] for states in output.hidden_states] == [(2, 1 + 4 * 16), (3, 1 + 16)]
        assert [len(maps) for maps in output.attentions] == [2, 2]


class TestLoss:
    def test_of_one_head_is_the_mean_cross_entropy(self, model):
        labels = torch.tensor([2, 0])
        output = model(clips(), head="ssv2", labels=labels)
        torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, labels))
        assert {name for name, loss in output.head_losses.items() if loss} == {"ssv2"}

    def test_of_a_multi_label_head_is_binary_cross_entropy(self):
        model = CoverForVideoClassification(CoverConfig(**SIZES, heads={"charades": MULTI_LABEL})).eval()
        labels = torch.tensor([[1, 0, 1], [0, 0, 0]])
        output = model(clips(), labels=labels)
        torch.testing.assert_close(output.loss, F.binary_cross_entropy_with_logits(output.logits, labels.float()))


class TestBadInput:
    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            (
                (2, 3, 32, 32),
                r"expected shape \(batch_size, num_frames, num_channels, height, width\).*\(2, 3, 32, 32\)",
            ),
            ((2, 0, 3, 32, 32), "clip without frames"),
            ((2, 4, 1, 32, 32), "expected 3 channels, got 1"),
            ((2, 4, 3, 30, 32), "30x32 are not whole patches of 8x8"),
            ((2, 4, 3, 32, 36), "32x36 are not whole patches of 8x8"),
        ],
    )
    def test_a_wrong_shape_is_named(self, model, shape, message):
        with pytest.raises(ValueError, match=message):
            model(torch.zeros(shape))

    def test_bytes_are_not_taken_for_normalised_pixels(self, model):
        with pytest.raises(
            ValueError, match=r"expected normalised floats, as of CoverVideoProcessor, got torch\.uint8"
        ):
            model(torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8))

    def test_an_unknown_head_is_named_with_those_there_are(self, model):
        with pytest.raises(ValueError, match=r"unknown head 'k600': expected one of \['imagenet', 'k400', 'ssv2'\]"):
            model(clips(), head="k600")

    @pytest.mark.parametrize("label", [-1, 3])
    def test_a_label_outside_the_heads_range_is_named(self, model, label):
        with pytest.raises(ValueError, match=rf"labels of head 'ssv2': \[{label}\] are not in the range 0 to 2"):
            model(clips(), head="ssv2", labels=torch.tensor([0, label]))
        with pytest.raises(ValueError, match=rf"labels of head 'ssv2': \[{label}\] are not in the range 0 to 2"):
            model([clips()], head_ids=torch.tensor([0, 2]), labels=torch.tensor([3, label]))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"head_ids": torch.tensor([0, 3])}, r"head_ids: \[3\] are not in the range 0 to 2"),
            ({"head_ids": torch.tensor([0])}, r"head_ids: expected shape \(2,\)"),
            ({"head_ids": torch.tensor([0, 0]), "head": "k400"}, "not both"),
            ({"labels": torch.tensor([0, 1]).int()}, "labels of head 'k400': expected int64, got torch.int32"),
            ({"head_ids": torch.tensor([0.0, 0])}, "head_ids: expected int64, got torch.float32"),
            ({"labels": torch.tensor([0])}, r"labels of head 'k400': expected shape \(2,\), got \(1,\)"),
            ({"labels": {"k400": torch.tensor([0, 1])}}, "needs head_ids"),
            ({"labels": {"k4": torch.tensor([0, 1])}, "head_ids": torch.tensor([1, 1])}, "unknown head 'k4'"),
            ({"labels": {"k400": torch.tensor([0])}, "head_ids": torch.tensor([1, 1])}, "1 given for its 2 rows"),
            ({"labels": {}, "head_ids": torch.tensor([1, 1])}, "0 given for its 2 rows"),
        ],
    )
    def test_head_ids_and_labels_that_do_not_fit_are_named(self, model, arguments, message):
        arguments = {"labels": torch.tensor([0, 1]), **arguments}
        with pytest.raises(ValueError, match=message):
            model(clips(), **arguments)

    def test_multi_label_rows_without_a_dict_are_refused(self, model):
        model.add_head("charades", **MULTI_LABEL)
        with pytest.raises(ValueError, match="head 'charades' is of multi_label"):
            model([clips()], head_ids=torch.tensor([0, 1]), labels=torch.tensor([0, 1]))

    def test_what_is_no_clip_of_a_group_is_named(self, model):
        with pytest.raises(ValueError, match="expected one tensor of clips, got list"):
            model.cover([[clips()]])
        with pytest.raises(ValueError, match="expected shape"):
            model.cover([clips(), clips()[0]])

    def test_an_empty_list_of_groups_is_refused(self, model):
        for forward in (model, model.cover):
            with pytest.raises(ValueError, match="empty list"):
                forward([])


class TestHeads:
    def test_a_head_can_be_added(self, model):
        pixel_values = clips()
        before = model(pixel_values).head_logits
        model.add_head("hmdb51", labels=["wave", "run"])
        after = model(pixel_values).head_logits
        assert after["hmdb51"].shape == (2, 2)
        assert all(torch.equal(after[name], before[name]) for name in before)
        assert model.config.head_names == ["hmdb51", "imagenet", "k400", "ssv2"]
        assert model.config.default_head == "k400"

    def test_a_head_can_be_removed(self, model):
        model.remove_head("imagenet")
        assert set(model(clips()).head_logits) == {"k400", "ssv2"}
        assert not any("imagenet" in name for name in model.state_dict())

    def test_the_default_head_cannot_be_removed_before_another_is_named(self, model):
        with pytest.raises(ValueError, match="'k400' is the default head"):
            model.remove_head("k400")
        model.config.update_heads(model.config.heads, "ssv2")
        model.remove_head("k400")
        assert model(clips()).logits.shape == (2, 3)

    @pytest.mark.parametrize(
        ("name", "message"),
        [("k400", "there is a head 'k400' already"), ("train", "'train' is taken by torch.nn.Module")],
    )
    def test_a_name_that_is_taken_is_refused_and_nothing_changes(self, model, name, message):
        with pytest.raises(ValueError, match=message):
            model.add_head(name, labels=["a", "b"])
        assert model.config.head_names == ["imagenet", "k400", "ssv2"]

    def test_labels_are_a_list(self, model):
        with pytest.raises(ValueError, match="head 'hmdb51': labels must be a non-empty list of strings, got 'wave'"):
            model.add_head("hmdb51", labels="wave")

    def test_removing_an_unknown_head_is_refused(self, model):
        with pytest.raises(ValueError, match="unknown head 'k600'"):
            model.remove_head("k600")


class TestSavingAndLoading:
    def test_a_checkpoint_gives_the_same_logits_and_is_safetensors_only(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        assert [file.name for file in tmp_path.iterdir() if file.suffix in (".bin", ".pt", ".safetensors")] == [
            "model.safetensors"
        ]
        pixel_values = clips()
        expected = model(pixel_values).head_logits
        for auto_class in (CoverForVideoClassification, AutoModelForVideoClassification):
            loaded = auto_class.from_pretrained(tmp_path)
            assert type(loaded) is CoverForVideoClassification
            assert all(torch.equal(loaded(pixel_values).head_logits[name], expected[name]) for name in HEADS)

    def test_auto_model_gives_the_encoder(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        encoder, pixel_values = AutoModel.from_pretrained(tmp_path), clips()
        assert type(encoder) is CoverModel
        assert torch.equal(encoder(pixel_values).pooler_output, model(pixel_values).pooler_output)

    def test_another_default_head_can_be_chosen_on_loading(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = CoverForVideoClassification.from_pretrained(tmp_path, default_head="ssv2")
        assert loaded.config.id2label == {0: "push", 1: "pull", 2: "lift"}
        pixel_values = clips()
        assert torch.equal(loaded(pixel_values).logits, model(pixel_values, head="ssv2").logits)

    def test_another_label_space_for_the_default_head_is_given_as_to_any_model(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        loaded = CoverForVideoClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
        assert loaded(clips()).logits.shape == (2, 7)

    def test_a_checkpoint_of_another_architecture_is_refused(self, tmp_path):
        TimesformerForVideoClassification(TimesformerConfig(**SIZES)).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="expected a checkpoint of model type 'cover', got 'timesformer'"):
            CoverForVideoClassification.from_pretrained(tmp_path)

    def test_loading_reports_new_and_unused_weights_and_leaves_no_memory_uninitialised(self, model, tmp_path):
        model.save_pretrained(tmp_path)
        heads = {"k400": HEADS["k400"], "ucf101": {"labels": ["archery", "bowling"]}}
        loaded, report = CoverForVideoClassification.from_pretrained(
            tmp_path, heads=heads, default_head="ucf101", output_loading_info=True
        )
        assert sorted(report["missing_keys"]) == ["classifiers.ucf101.bias", "classifiers.ucf101.weight"]
        assert sorted(name for name in report["unexpected_keys"] if name.endswith("weight")) == [
            "classifiers.imagenet.weight",
            "classifiers.ssv2.weight",
        ]
        weight = loaded.classifiers["ucf101"].weight
        assert 0.005 < weight.std() < 0.04
        assert loaded.classifiers["ucf101"].bias.abs().max() == 0

    def test_every_parameter_that_a_checkpoint_lacks_is_initialised(self, config, tmp_path):
        """Nothing but the patch projection is stored: all the rest must come from `_init_weights`."""
        model = CoverForVideoClassification(config)
        kept = {name: tensor for name, tensor in model.state_dict().items() if "projection" in name}
        model.save_pretrained(tmp_path, state_dict=kept)
        loaded = CoverForVideoClassification.from_pretrained(tmp_path)
        for name, parameter in loaded.named_parameters():
            if name.endswith("bias"):
                assert parameter.abs().max() == 0 or "projection" in name, name
            elif "layernorm" in name:
                assert torch.equal(parameter, torch.ones_like(parameter)), name
            else:
                assert 0.01 < parameter.std() < 0.04, name

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_weights_take_fp32_pixels(self, model, tmp_path, dtype):
        model.save_pretrained(tmp_path)
        loaded = CoverForVideoClassification.from_pretrained(tmp_path, dtype=dtype)
        pixel_values = clips(2, 3, 16, 16)  # other frames and size than stored: embeddings are resized
        output = loaded(pixel_values, labels=torch.tensor([0, 1]))
        assert output.logits.dtype == dtype
        torch.testing.assert_close(output.logits.float(), model(pixel_values).logits, atol=0.1, rtol=0.1)
