# SPDX-License-Identifier: Apache-2.0
"""`CoverVideoClassificationPipeline` answers for every head what the model and the processor answer by themselves."""

import io
from pathlib import Path

import PIL.Image
import pytest
import torch
from clips import moving_frames, write_clip
from modeling_cover import (
    CoverConfig,
    CoverForVideoClassification,
    CoverVideoClassificationPipeline,
    VideoDecodingError,
    read_video,
)
from tiny import save_tiny
from transformers import pipeline


HEADS = {
    "motions": {"labels": ["left", "right", "up", "down"]},
    "objects": {"labels": ["ball", "box"], "modality": "image"},
    "tags": {"labels": ["fast", "red", "round"], "problem_type": "multi_label_classification"},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_tiny(folder, HEADS, std=0.3, num_hidden_layers=2)
    return folder


@pytest.fixture(scope="module")
def classify(checkpoint) -> CoverVideoClassificationPipeline:
    return pipeline("cover-video-classification", model=str(checkpoint), device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", moving_frames(100))


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("images") / "image.png"
    PIL.Image.fromarray(moving_frames(1)[0]).save(path)
    return str(path)


def logits_of(classify, video, **options) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return classify.model(**classify.video_processor(video, return_tensors="pt", **options)).head_logits


def scores_of(entries) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in entries}


def approximately(labels, scores: torch.Tensor):
    return pytest.approx(dict(zip(labels, scores.tolist(), strict=True)), abs=1e-6)


def test_the_task_is_known_without_consent_to_run_stored_code(classify):
    assert type(classify) is CoverVideoClassificationPipeline


class TestHeads:
    def test_the_default_head_answers_as_the_stock_pipeline_does(self, classify, checkpoint, clip):
        stock = pipeline("video-classification", model=str(checkpoint), device="cpu")
        assert classify(clip) == [
            {"label": entry["label"], "score": pytest.approx(entry["score"])} for entry in stock(clip, top_k=5)
        ]

    def test_a_head_is_asked_for_by_name(self, classify, clip):
        expected = logits_of(classify, clip)["objects"].softmax(dim=-1)[0]
        assert scores_of(classify(clip, head="objects")) == approximately(HEADS["objects"]["labels"], expected)

    def test_several_heads_and_all_of_them_answer_by_name(self, classify, clip):
        each = {name: classify(clip, head=name) for name in HEADS}
        assert classify(clip, head="all") == each
        assert classify(clip, head=["tags", "objects"]) == {name: each[name] for name in ("tags", "objects")}
        assert classify(clip, head=["tags"]) == {"tags": each["tags"]}

    def test_of_a_multi_label_head_each_label_has_a_probability_of_its_own(self, classify, clip):
        expected = logits_of(classify, clip)["tags"].sigmoid()[0]
        assert scores_of(classify(clip, head="tags")) == approximately(HEADS["tags"]["labels"], expected)

    def test_an_unknown_head_is_named_with_those_there_are(self, classify, clip):
        with pytest.raises(ValueError, match=r"unknown head 'k400': expected one of \['motions', 'objects', 'tags'\]"):
            classify(clip, head="k400")

    def test_no_head_at_all_is_an_error(self, classify, clip):
        with pytest.raises(ValueError, match="head: expected at least one of"):
            classify(clip, head=[])

    def test_a_head_that_is_called_all_can_be_asked_for(self, clip, classify):
        config = CoverConfig(**{**classify.model.config.to_dict(), "heads": {**HEADS, "all": HEADS["objects"]}})
        asked = CoverForVideoClassification(config).pipeline(classify.video_processor, device="cpu")
        assert {entry["label"] for entry in asked(clip, head="all")} == set(HEADS["objects"]["labels"])
        assert set(asked(clip, head=["all", "tags"])) == {"all", "tags"}


class TestChoosing:
    def test_labels_come_with_the_highest_score_first(self, classify, clip):
        scores = [entry["score"] for entry in classify(clip, top_k=None)]
        assert scores == sorted(scores, reverse=True) and len(scores) == 4
        assert [entry["score"] for entry in classify(clip, top_k=2)] == scores[:2]
        assert len(classify(clip, top_k=99)) == 4

    def test_a_threshold_leaves_out_what_is_less_likely(self, classify, clip):
        every = classify(clip, head="tags")
        threshold = every[1]["score"]
        assert classify(clip, head="tags", threshold=threshold) == every[:2]
        assert classify(clip, head="tags", threshold=1.0) == []
        assert classify(clip, head="tags", threshold=threshold, top_k=1) == every[:1]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"top_k": 0}, "top_k must be a positive number or None, got 0"),
            ({"threshold": 2}, "threshold must be from 0 to 1, got 2"),
            ({"stride": 1.0}, "stride is from one window to the next"),
            ({"window": 0}, "window must be a positive number of seconds, got 0"),
            ({"views": 2}, "num_spatial_crops must be 1 or 3, got 2"),
            ({"window": 1.0, "num_clips": 2}, "num_clips: a window is one clip"),
            ({"tok_k": 3}, r"unknown options \['tok_k'\]"),
        ],
    )
    def test_an_option_that_makes_no_sense_is_named(self, classify, clip, options, message):
        with pytest.raises(ValueError, match=message):
            classify(clip, **options)

    def test_options_given_at_first_hold_for_every_call(self, classify, checkpoint, clip):
        brief = pipeline("cover-video-classification", model=str(checkpoint), device="cpu", head="tags", top_k=1)
        assert brief(clip) == classify(clip, head="tags", top_k=1)


class TestViews:
    def test_scores_are_averaged_over_crops_and_clips(self, classify, clip):
        logits = logits_of(classify, clip, num_spatial_crops=3, num_clips=2)["motions"]
        assert logits.shape == (6, 4)
        answer = scores_of(classify(clip, views=3, num_clips=2))
        assert answer == approximately(HEADS["motions"]["labels"], logits.softmax(dim=-1).mean(dim=0))

    def test_the_number_of_frames_is_a_matter_of_the_call(self, classify, clip):
        expected = logits_of(classify, clip, num_frames=7)["motions"].softmax(dim=-1)[0]
        assert scores_of(classify(clip, num_frames=7)) == approximately(HEADS["motions"]["labels"], expected)

    def test_the_embedding_is_what_the_heads_classify(self, classify, clip):
        answer = classify(clip, views=3, return_embedding=True)
        with torch.no_grad():
            clips = classify.video_processor(clip, num_spatial_crops=3, return_tensors="pt")
            features = classify.model(**clips).pooler_output
        torch.testing.assert_close(answer["embedding"], features.mean(dim=0))
        assert answer["predictions"] == classify(clip, views=3)


class TestInputs:
    def test_a_file_its_bytes_and_a_file_object_have_one_answer(self, classify, clip):
        content = Path(clip).read_bytes()
        expected = classify(clip)
        assert classify(content) == classify(io.BytesIO(content)) == classify(Path(clip)) == expected

    def test_an_array_of_frames_is_a_video(self, classify, clip):
        frames, _ = read_video(clip, lambda metadata: range(metadata.total_num_frames))
        expected = logits_of(classify, frames)["motions"].softmax(dim=-1)[0]
        assert scores_of(classify(frames)) == approximately(HEADS["motions"]["labels"], expected)

    def test_an_image_is_a_clip_of_one_frame(self, classify, image):
        answer = classify(image, head="objects")
        assert answer == classify(PIL.Image.open(image), head="objects")
        expected = logits_of(classify, image)["objects"].softmax(dim=-1)[0]
        assert scores_of(answer) == approximately(HEADS["objects"]["labels"], expected)

    @pytest.mark.parametrize("batch_size", [1, 2, 8])
    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_a_batch_of_videos_and_images_has_the_answers_of_each(
        self, classify, clip, image, batch_size, num_workers
    ):
        inputs = [clip, image, clip, image, clip]
        answers = classify(inputs, batch_size=batch_size, num_workers=num_workers, views=3, top_k=None)
        for answer, item in zip(answers, inputs, strict=True):
            assert scores_of(answer) == pytest.approx(scores_of(classify(item, views=3, top_k=None)), abs=1e-6)

    def test_no_seed_is_drawn_from_the_generator_that_training_goes_by(self, classify, clip):
        drawn = torch.get_rng_state()
        classify([clip])
        assert torch.equal(torch.get_rng_state(), drawn)

    def test_a_generator_is_answered_as_it_goes(self, classify, clip):
        asked = []

        def videos():
            for number in range(3):
                asked.append(number)
                yield clip

        answers = classify(videos())
        assert next(answers) == classify(clip) and asked == [0]
        assert len(list(answers)) == 2

    def test_of_nothing_there_is_no_answer(self, classify):
        assert classify([]) == []

    def test_a_file_that_cannot_be_read_is_named(self, classify, tmp_path):
        path = tmp_path / "broken.mp4"
        path.write_bytes(b"no video")
        for options in ({}, {"window": 1.0}):
            with pytest.raises(VideoDecodingError, match=r"broken\.mp4"):
                classify(str(path), **options)


class TestTimeline:
    def test_each_window_is_answered_as_the_clip_between_its_ends(self, classify, clip):
        timeline = classify(clip, window=1.0, stride=0.5, top_k=None)
        starts = sorted({entry["start"] for entry in timeline})
        assert starts == [0.5 * number for number in range(8)]
        for start in starts:
            entries = [entry for entry in timeline if entry["start"] == start]
            end = entries[0]["end"]
            assert end == pytest.approx(min(start + 1, 100 / 24))
            frames, _ = read_video(
                clip,
                lambda metadata: classify.video_processor.sample_frames(metadata),
                short_side=40,
                start=start,
                end=end,
            )
            expected = classify(frames, top_k=None)
            assert scores_of(entries) == pytest.approx(scores_of(expected), abs=1e-6)

    def test_by_default_a_window_has_its_best_label_and_the_next_begins_at_its_end(self, classify, clip):
        timeline = classify(clip, window=2)
        assert [(entry["start"], entry["end"]) for entry in timeline] == [(0, 2), (2, 4), (4, pytest.approx(100 / 24))]

    def test_views_are_averaged_within_a_window(self, classify, clip):
        whole = classify(clip, window=60, views=3, top_k=None)
        assert scores_of(whole) == pytest.approx(scores_of(classify(clip, views=3, top_k=None)), abs=1e-6)

    def test_the_size_of_a_batch_changes_nothing(self, classify, clip):
        one = classify(clip, window=0.5, head="all", views=3, return_embedding=True)
        many = classify([clip], window=0.5, head="all", views=3, return_embedding=True, batch_size=4)[0]
        torch.testing.assert_close(many["embedding"], one["embedding"], atol=1e-6, rtol=0)
        assert one["embedding"].shape == (9, 16)
        for name in HEADS:
            for entry, expected in zip(many["predictions"][name], one["predictions"][name], strict=True):
                assert entry == {**expected, "score": pytest.approx(expected["score"], abs=1e-6)}


def test_a_model_of_another_kind_is_refused(classify, checkpoint):
    from transformers import TimesformerConfig, TimesformerForVideoClassification

    other = TimesformerForVideoClassification(
        TimesformerConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    with pytest.raises(ValueError, match="expected a CoVeR model, got TimesformerForVideoClassification"):
        CoverVideoClassificationPipeline(other, video_processor=classify.video_processor)
    with pytest.raises(ValueError, match="video_processor: expected the checkpoint's CoverVideoProcessor, got None"):
        CoverVideoClassificationPipeline(classify.model)
