# SPDX-License-Identifier: Apache-2.0
"""Checkpoints on their datasets: views, orders of frames, processes, and what examples/evaluate_checkpoint.py says and
writes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import QUICKSTART_LABELS, save_quickstart, save_timesformer
from clips import write_clip
from forked_runs import call, start_processes
from modeling_cover import (
    CoverConfig,
    CoverForVideoClassification,
    CoverTrainer,
    CoverTrainingArguments,
    CoverVideoProcessor,
    EvaluationDataset,
    load_recipe,
)
from modeling_cover.commands import evaluate as evaluate_checkpoint
from modeling_cover.data.sources import Source, read_sources
from modeling_cover.evaluation.running import score_rows
from modeling_cover.evaluation.views import Views, ViewsDataset, resized_processor
from PIL import Image
from transformers import pipeline


ROOT = Path(__file__).parents[2]


RECIPE = """
data_root: {folder}
bad_files: {{max_share: 0.5}}
datasets:
  - {{name: shapes, format: class_folders, modality: video, splits: {{train: nowhere, validation: shapes}}}}
  - {{name: textures, format: class_folders, modality: image, splits: {{train: nowhere, validation: textures}}}}
  - {{name: motions, format: class_folders, modality: video, splits: {{train: nowhere}}}}
  - {{name: others, format: class_folders, modality: video, splits: {{train: nowhere, validation: shapes}}}}
  - name: tags
    format: class_folders
    modality: video
    splits: {{train: nowhere, validation: shapes}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint and a recipe, whose train splits are not there; 7 videos, one of them broken, and 5 images."""
    folder = tmp_path_factory.mktemp("evaluated")
    torch.manual_seed(0)
    save_quickstart(folder / "model")
    rng = np.random.default_rng(0)
    for index in range(6):
        path = folder / "shapes" / QUICKSTART_LABELS["shapes"][index % 3] / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, rng.integers(0, 256, (18 + index, 48, 64 + 16 * (index % 2), 3), dtype=np.uint8))
    (folder / "shapes" / "ring" / "broken.mp4").write_text("no video")
    for index in range(5):
        path = folder / "textures" / QUICKSTART_LABELS["textures"][index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (64, 48, 3), dtype=np.uint8)).save(path)
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


@pytest.fixture(scope="module")
def model(folder) -> CoverForVideoClassification:
    return CoverForVideoClassification.from_pretrained(folder / "model").eval()


@pytest.fixture(scope="module")
def processor(folder) -> CoverVideoProcessor:
    return CoverVideoProcessor.from_pretrained(folder / "model")


@pytest.fixture(scope="module")
def source(folder, tmp_path_factory) -> Source:
    """The videos that can be read."""
    copy = tmp_path_factory.mktemp("readable") / "shapes"
    shutil.copytree(folder / "shapes", copy, ignore=shutil.ignore_patterns("broken.mp4"))
    (dataset,) = [entry for entry in load_recipe(folder / "recipe.yaml").datasets if entry.name == "shapes"]
    dataset = type(dataset)(**{**vars(dataset), "splits": {"train": "nowhere", "validation": str(copy)}})
    return read_sources(dataset, head_labels=QUICKSTART_LABELS["shapes"], splits=["validation"])["validation"]


@pytest.fixture(scope="module")
def images(folder) -> Source:
    dataset = next(entry for entry in load_recipe(folder / "recipe.yaml").datasets if entry.name == "textures")
    return read_sources(dataset, head_labels=QUICKSTART_LABELS["textures"], splits=["validation"])["validation"]


class OneView(ViewsDataset):
    """A run of its own for one of the views."""

    number = 0

    def __getitem__(self, row):
        sample = super().__getitem__(row)
        return {**sample, "pixel_values": sample["pixel_values"][self.number : self.number + 1]}


class TestViews:
    def test_the_three_crops_of_the_paper_are_the_mean_of_three_runs(self, model, processor, source):
        together = score_rows(model, ViewsDataset(source, processor, views=Views(1, 3)))
        apart = []
        for number in range(3):
            dataset = OneView(source, processor, views=Views(1, 3))
            dataset.number = number
            apart.append(score_rows(model, dataset).outputs)
        assert np.abs(together.outputs - np.mean(apart, axis=0)).max() < 1e-6
        assert np.abs(apart[0] - apart[2]).max() > 1e-4

    @pytest.mark.parametrize(("views", "sampling"), [("1x3", "uniform"), ("2x3", "uniform"), ("3x1", "dense")])
    def test_scores_are_those_of_the_pipeline(self, folder, model, source, views, sampling):
        processor = CoverVideoProcessor.from_pretrained(folder / "model", frame_sampling=sampling)
        views = Views.parse(views)
        scored = score_rows(model, ViewsDataset(source, processor, views=views), batch_size=4)
        classify = pipeline("cover-video-classification", model=model, video_processor=processor)
        options = {"views": views.spatial, "num_clips": views.temporal, "top_k": None, "head": "shapes"}
        for row, scores in enumerate(scored.outputs):
            answer = {entry["label"]: entry["score"] for entry in classify(source.media[row].content, **options)}
            assert scores == pytest.approx([answer[label] for label in source.labels], abs=1e-6)
        assert scored.targets.tolist() == source.classes.tolist()

    def test_one_view_is_what_a_trainer_evaluates(self, processor, source, images):
        for split in (source, images):
            ours, trainers = ViewsDataset(split, processor), EvaluationDataset(split, processor)
            assert all(torch.equal(ours[row]["pixel_values"][0], trainers[row]["pixel_values"]) for row in range(5))

    def test_an_image_has_spatial_views_alone(self, processor, images):
        dataset = ViewsDataset(images, processor, views=Views(4, 3), frame_order="shuffled")
        views = dataset[0]["pixel_values"]
        assert views.shape == (3, 1, 3, 32, 32)
        assert str(dataset.views) == "1x3"
        with Image.open(images.media[0].content) as image:
            inputs = processor(image, num_spatial_crops=3, return_tensors="pt")
        assert torch.equal(processor.normalize_pixels(views), inputs["pixel_values"])

    def test_frames_are_reversed_within_each_clip_and_shuffled_by_seed_and_row(self, processor, source):
        def views_of(order: str, seed: int = 0, row: int = 1) -> torch.Tensor:
            dataset = ViewsDataset(source, processor, views=Views(2, 1), frame_order=order, seed=seed)
            return dataset[row]["pixel_values"]

        forward = views_of("forward")
        assert torch.equal(views_of("reversed"), forward.flip(1))
        shuffled = views_of("shuffled")
        assert not torch.equal(shuffled, forward)
        assert torch.equal(shuffled.sort(dim=1).values, forward.sort(dim=1).values)
        assert torch.equal(shuffled, views_of("shuffled"))
        orders = [views_of("shuffled", seed) for seed in range(4)]
        assert any(not torch.equal(orders[0], other) for other in orders[1:])

    @pytest.mark.parametrize("sampling", ["uniform", "dense"])
    def test_a_clip_too_short_for_views_that_differ_is_named(self, folder, source, sampling):
        stride = 3 if sampling == "dense" else 1
        options = {"frame_sampling": sampling, "frame_stride": stride}
        processor = CoverVideoProcessor.from_pretrained(folder / "model", **options)
        with pytest.raises(
            ValueError, match=r"dataset 'shapes': .*\.mp4 has 18 frames, too few for 20 temporal views"
        ):
            ViewsDataset(source, processor, views=Views(20, 1))[0]

    @pytest.mark.parametrize("text", ["3", "0x3", "1x2", "ax3", "1x3x1", ""])
    def test_views_that_make_no_sense_are_refused(self, text):
        with pytest.raises(ValueError, match="views: expected"):
            Views.parse(text)

    def test_a_larger_crop_has_a_larger_short_side(self, processor):
        resized = resized_processor(processor, num_frames=16, image_size=64)
        assert (resized.num_frames, resized.crop_size["height"], resized.size["shortest_edge"]) == (16, 64, 80)
        assert resized.image_mean == processor.image_mean
        assert processor.num_frames == 8
        with pytest.raises(ValueError, match="image_size must be positive"):
            resized_processor(processor, image_size=0)


class TestTheCommand:
    def run(self, folder: Path, output: Path, capsys, *arguments: str) -> tuple[int, str, str]:
        given = ["--model", folder / "model", "--recipe", folder / "recipe.yaml", "--output", output, *arguments]
        code = evaluate_checkpoint.main(list(map(str, [*given, "--num_resamples", 20])))
        return code, *capsys.readouterr()

    def test_the_datasets_that_have_the_split_are_evaluated_in_one_run(self, folder, tmp_path, capsys):
        names = ("--dataset", "shapes", "--dataset", "textures")
        code, out, _ = self.run(folder, tmp_path, capsys, *names)
        assert code == 0
        written = json.loads((tmp_path / "evaluation.json").read_text())
        shapes, textures = written["datasets"]["shapes"], written["datasets"]["textures"]
        assert (shapes["rows"], shapes["unreadable"], textures["rows"]) == (7, 1, 5)
        assert (written["num_frames"], written["image_size"], shapes["views"]) == (8, 32, "1x3")
        lines = {line.split()[0]: line for line in out.splitlines()}
        assert f"{shapes['top1']:.1%} [" in lines["shapes"]
        assert " - " in lines["textures"]  # all of them could be read
        pictures = {
            f"{kind}_{name}.png" for kind in ("confusion", "per_class_accuracy") for name in ("shapes", "textures")
        }
        assert pictures <= {path.name for path in tmp_path.iterdir()}
        (bad,) = (json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines())
        assert "broken.mp4" in bad["path"]

    def test_a_bad_file_is_of_the_split_that_is_evaluated(self, folder, tmp_path, capsys):
        recipe = (tmp_path / "recipe.yaml").resolve()
        entry = "{name: shapes, format: class_folders, modality: video, splits: {train: shapes}}"
        recipe.write_text(f"data_root: {folder}\nbad_files: {{max_share: 0.5}}\ndatasets:\n  - {entry}\n")
        code, _, err = self.run(folder, tmp_path, capsys, "--recipe", recipe, "--split", "train")
        assert code == 0, err
        (bad,) = (json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines())
        assert bad["split"] == "train"

    def test_it_says_what_the_trainer_says(self, folder, model, processor, source, tmp_path, capsys):
        args = CoverTrainingArguments(str(tmp_path / "trainer"), use_cpu=True, report_to="none")
        evaluated = {"shapes": EvaluationDataset(source, processor)}
        metrics = CoverTrainer(model, args, eval_dataset=evaluated).evaluate()
        self.run(folder, tmp_path, capsys, "--dataset", "shapes", "--views", "1x1")
        figures = json.loads((tmp_path / "evaluation.json").read_text())["datasets"]["shapes"]
        assert figures["top1"] == pytest.approx(metrics["eval_shapes_top1"])
        assert figures["top5"] == pytest.approx(metrics["eval_shapes_top5"])

    def test_any_number_of_processes_says_the_same_and_counts_each_row_once(self, folder, tmp_path):
        written = []
        for processes in (1, 3):
            output = tmp_path / str(processes)
            given = ["--model", folder / "model", "--recipe", folder / "recipe.yaml", "--output", output]
            given += ["--dataset", "shapes", "--dataset", "textures", "--batch_size", 2, "--num_workers", 0]
            log, on_cpu = tmp_path / f"{processes}.log", {"ACCELERATE_USE_CPU": "true"}
            run = start_processes(call, processes, log, on_cpu, evaluate_checkpoint.main, list(map(str, given)))
            assert run.wait(600) == 0, log.read_text()[-3000:]
            written.append(json.loads((output / "evaluation.json").read_text()))
            assert written[-1].pop("processes") == processes
            assert log.read_text().count("top-1") == 1
            for figures in written[-1]["datasets"].values():
                assert figures.pop("rows_per_second") > 0
        assert written[0] == written[1]
        assert written[0]["datasets"]["shapes"]["rows"] == 7

    def test_a_head_of_another_name_may_be_chosen(self, folder, tmp_path, capsys):
        for arguments in (["--dataset", "shapes"], ["--dataset", "others", "--head", "shapes"]):
            assert self.run(folder, tmp_path / arguments[1], capsys, *arguments)[0] == 0
        ours, same = (
            json.loads((tmp_path / name / "evaluation.json").read_text())["datasets"][name]
            for name in ("shapes", "others")
        )
        assert same["confusion"] == ours["confusion"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--dataset", "kinetics"], "the recipe has no dataset 'kinetics'"),
            (
                ["--dataset", "others"],
                "dataset 'others': the model has no head 'others', but motions, shapes, textures",
            ),
            (["--dataset", "shapes", "--head", "ssv2"], "the model has no head 'ssv2'"),
            (["--head", "shapes"], "--head is of one --dataset"),
            (["--dataset", "motions"], "dataset 'motions': there is no split 'validation', but train"),
            (
                ["--dataset", "shapes", "--head", "motions"],
                "classes 'circle', 'ring', 'star' are not among the labels",
            ),
            (["--dataset", "shapes", "--split", "test"], "there is no split 'test'"),
            (["--split", "test"], "no dataset of the recipe has a split 'test'"),
            (["--dataset", "shapes", "--batch_size", "0"], "batch_size must be a positive whole number, got 0"),
            (["--dataset", "shapes", "--views", "1x5"], "views: expected 1 or 3 spatial crops, got 5"),
            (["--dataset", "shapes", "--views", "20x1"], "has 18 frames, too few for 20 temporal views that differ"),
            (["--model", "nowhere/there"], "nowhere/there cannot be loaded"),
        ],
    )
    def test_what_is_wrong_is_said_on_a_line(self, folder, tmp_path, capsys, monkeypatch, arguments, message):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        code, out, err = self.run(folder, tmp_path, capsys, *arguments)
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert message in err

    def test_a_model_of_another_architecture_is_named(self, folder, tmp_path, capsys):
        save_timesformer(tmp_path / "timesformer", num_frames=8)
        arguments = ("--dataset", "shapes", "--model", tmp_path / "timesformer")
        code, _, err = self.run(folder, tmp_path, capsys, *arguments)
        assert code == 2
        assert "timesformer" in err
        assert "Traceback" not in err

    def test_more_bad_files_than_the_recipe_allows_end_it(self, folder, tmp_path, capsys):
        strict = (folder / "recipe.yaml").read_text().replace("max_share: 0.5", "max_share: 0")
        (tmp_path / "strict.yaml").write_text(strict)
        arguments = ("--dataset", "shapes", "--recipe", tmp_path / "strict.yaml")
        code, _, err = self.run(folder, tmp_path, capsys, *arguments)
        assert code == 1
        assert "1 of the 7 rows tried cannot be decoded, more than the 0 that" in err
        assert "Traceback" not in err

    def test_a_head_for_several_labels_a_row_is_not_for_a_dataset_of_one(self, folder, tmp_path, capsys):
        config = CoverConfig.from_pretrained(folder / "model")
        tags = {"labels": QUICKSTART_LABELS["shapes"], "problem_type": "multi_label_classification"}
        config.update_heads({**config.heads, "tags": tags}, "motions")
        shutil.copytree(folder / "model", tmp_path / "model")
        CoverForVideoClassification(config).save_pretrained(tmp_path / "model")
        arguments = ("--dataset", "tags", "--model", tmp_path / "model")
        code, _, err = self.run(folder, tmp_path, capsys, *arguments)
        assert code == 2
        assert "dataset 'tags' is of single_label_classification, and the head 'tags' of multi_label" in err
