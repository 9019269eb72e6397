# SPDX-License-Identifier: Apache-2.0
"""Pictures of one answer and of all answers: what is drawn, and what the scripts write and say."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import save_quickstart
from clips import write_clip
from encoders import model_of
from modeling_cover import CoverVideoProcessor
from modeling_cover.commands import explain
from modeling_cover.evaluation.heat_maps import overlay, shown_frames
from modeling_cover.evaluation.metrics import confusion_matrix
from modeling_cover.evaluation.plots import draw_confusion_matrix, draw_scores_of_classes
from PIL import Image
from tiny import tiny_processor


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint, a clip, an image, and a file that is neither."""
    folder = tmp_path_factory.mktemp("pictures")
    torch.manual_seed(0)
    save_quickstart(folder / "model")
    rng = np.random.default_rng(0)
    write_clip(folder / "clip.mp4", rng.integers(0, 256, (10, 48, 64, 3), dtype=np.uint8))
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save(folder / "image.png")
    (folder / "text.mp4").write_text("no video")
    return folder


class TestOverlay:
    def test_it_is_hottest_at_the_patch_of_greatest_relevance_and_leaves_the_rest(self):
        frames = np.full((2, 32, 48, 3), 100, dtype=np.uint8)
        relevance = torch.zeros(2, 4, 6)
        relevance[1, 3, 0] = 0.7
        heated = overlay(frames, relevance)
        assert heated.shape == (2, 224, 336, 3)
        assert (heated[0] == 100).all()
        change = np.abs(heated[1].astype(int) - 100).sum(axis=-1)
        assert change[-28:, :28].min() > 100
        assert (change[:140] == 0).all()
        assert (change[:, 112:] == 0).all()

    def test_without_any_relevance_the_frames_stay(self):
        frames = np.random.default_rng(0).integers(0, 256, (1, 240, 240, 3), dtype=np.uint8)
        assert (overlay(frames, torch.zeros(1, 2, 2)) == frames).all()

    def test_what_is_shown_is_what_the_processor_cropped(self, folder):
        processor = CoverVideoProcessor.from_pretrained(folder / "model")
        clip = processor(str(folder / "clip.mp4"), return_tensors="pt")["pixel_values"][0]
        plain = processor(str(folder / "clip.mp4"), do_rescale=False, do_normalize=False, return_tensors="pt")
        expected = plain["pixel_values"][0].permute(0, 2, 3, 1).numpy()
        assert (shown_frames(processor, clip) == expected.round()).all()


class TestExplain:
    def run(self, monkeypatch, capsys, folder, *arguments) -> tuple[int, str, str]:
        command = ["explain.py", *map(str, arguments), "--model", folder / "model", "--output", folder / "explained"]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        code = explain.main()
        return code, *capsys.readouterr()

    @pytest.mark.parametrize("options", [(), ("--head", "shapes", "--label", "ring"), ("--plain",)])
    def test_a_video_becomes_a_sheet_and_a_picture_that_moves(self, folder, monkeypatch, capsys, options):
        code, out, _ = self.run(monkeypatch, capsys, folder, folder / "clip.mp4", *options)
        assert code == 0
        assert out.split() == [str(folder / "explained" / name) for name in ("clip.png", "clip.gif")]
        with Image.open(folder / "explained" / "clip.gif") as moving:
            assert (moving.n_frames, moving.size) == (8, (224, 224))
        with Image.open(folder / "explained" / "clip.png") as sheet:
            assert sheet.width > 8 * 224
            assert sheet.height > 2 * 224

    @pytest.mark.parametrize(
        ("options", "note"),
        [
            ((), "Attention rollout, weighted with the gradient of “pull”."),
            (("--method", "gradient"), "Gradient times input, of the logit of “pull”."),
            (("--plain",), "Attention rollout."),
        ],
    )
    def test_another_encoder_and_the_note_that_says_which_method_it_is(
        self, folder, tmp_path, monkeypatch, capsys, options, note
    ):
        model_of("videomae").save_pretrained(tmp_path / "model")
        tiny_processor().save_pretrained(tmp_path / "model")
        notes = []
        monkeypatch.setattr(explain, "draw_explanation", lambda *arguments: notes.append(arguments[3]))
        code, _, _ = self.run(monkeypatch, capsys, tmp_path, folder / "clip.mp4", "--label", "pull", *options)
        assert (code, notes) == (0, [f"{note} Upper row: what the model saw."])

    def test_an_image_becomes_a_sheet(self, folder, monkeypatch, capsys):
        code, out, _ = self.run(monkeypatch, capsys, folder, folder / "image.png", "--head", "textures")
        assert code == 0
        assert out.split() == [str(folder / "explained" / "image.png")]

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["text.mp4"], "text.mp4"),
            (["missing.mp4"], "missing.mp4"),
            (["clip.mp4", "--head", "ssv2"], "ssv2"),
            (["clip.mp4", "--label", "jumping"], "jumping"),
            (["clip.mp4", "--plain", "--label", "jumping"], "jumping"),
            (["clip.mp4", "--plain", "--method", "gradient"], "--plain"),
        ],
    )
    def test_what_is_wrong_is_named(self, folder, monkeypatch, capsys, arguments, named):
        code, out, err = self.run(monkeypatch, capsys, folder, folder / arguments[0], *arguments[1:])
        assert (code, out) == (2, "")
        assert named in err.splitlines()[-1]


class TestPicturesOfAnEvaluation:
    def test_a_confusion_matrix_counts_rows_by_true_and_predicted_class(self):
        counts = confusion_matrix(np.array([0, 0, 2, 2, 2]), np.array([0, 1, 2, 2, 0]), 3)
        assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]

    @pytest.mark.parametrize("num_classes", [2, 40, 400])
    def test_pictures_of_few_and_of_many_classes_stay_of_a_size_to_look_at(self, tmp_path, num_classes):
        rng = np.random.default_rng(0)
        labels = [f"a class with quite a long name, number {index}" for index in range(num_classes)]
        counts = rng.integers(0, 9, (num_classes, num_classes))
        draw_confusion_matrix(counts, labels, "title", tmp_path / "confusion.png")
        rows = counts.sum(axis=1)
        draw_scores_of_classes(counts.diagonal() / rows, rows, labels, "title", "accuracy", tmp_path / "classes.png")
        for name in ("confusion.png", "classes.png"):
            with Image.open(tmp_path / name) as picture:
                assert 200 < picture.height < 7000
                assert 400 < picture.width < 3000
