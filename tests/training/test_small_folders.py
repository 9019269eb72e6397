# SPDX-License-Identifier: Apache-2.0
"""Three classes of five clips each, without a validation split: they train, are evaluated, resume and are recorded."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
from clips import indexed_frames, write_clip
from modeling_cover.data.quarantine import TooManyBadFilesError
from modeling_cover.data.sources import read_sources
from modeling_cover.dataset_tools.preparation import prepare_dataset
from modeling_cover.dataset_tools.prepared_rows import PreparationSettings
from modeling_cover.evaluation.checkpoint_scores import chosen_datasets, source_of_head
from modeling_cover.hub.model_card import build_model_card
from modeling_cover.recipe.dataset_recipe import DatasetRecipe
from modeling_cover.recipe.recipe import ClipRecipe, Recipe
from modeling_cover.training.checkpoints import CheckpointError
from modeling_cover.training.run_facts import dataset_origin
from short_runs import make_trainer
from tiny import ENCODER


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "clips"
    rng = np.random.default_rng(0)
    for label in ("jump", "run", "walk"):
        for number in range(5):
            path = folder / label / f"{number}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(path, indexed_frames(4) + rng.integers(0, 64, 3, dtype=np.uint8))
    return folder


def recipe_of(folder: Path, validation: float | None = 0.2) -> Recipe:
    dataset = DatasetRecipe(
        name="clips",
        format="class_folders",
        modality="video",
        splits={"train": str(folder)},
        validation=validation,
    )
    return Recipe(datasets=(dataset,), clips=ClipRecipe(num_frames=2, image_size=16, short_side=20), model=ENCODER)


class TestHeldOutRows:
    @pytest.fixture(scope="class")
    @staticmethod
    def run(clips, tmp_path_factory):
        trainer = make_trainer(clips, tmp_path_factory.mktemp("run"), recipe_of(clips), max_steps=4, save_steps=2)
        trainer.train()
        trainer.evaluate()
        trainer.save_model()
        return trainer

    def test_a_run_trains_on_the_others_and_is_evaluated_on_them(self, run):
        assert (len(run.train_dataset.sources["clips"]), len(run.eval_dataset["clips"])) == (12, 3)
        assert any("eval_clips_top1" in entry for entry in run.state.log_history)

    def test_its_record_and_its_card_tell_of_them(self, run):
        card = str(build_model_card(run.args.output_dir))
        assert "validation: 0.2" in card
        assert "`clips` is no published one: 20.0% of the files of each class of its train split, held out" in card

    def test_it_resumes_with_the_same_rows_held_out_alone(self, run, clips, tmp_path):
        checkpoint = Path(run.args.output_dir) / "checkpoint-2"
        same = make_trainer(clips, tmp_path, recipe_of(clips), max_steps=4, save_steps=2)
        same.train(resume_from_checkpoint=str(checkpoint))
        for share in (0.4, None):
            other = make_trainer(clips, tmp_path, recipe_of(clips, share), max_steps=4, save_steps=2)
            with pytest.raises(CheckpointError, match=r"dataset 'clips': 12 rows in the checkpoint, (9|15) now"):
                other.train(resume_from_checkpoint=str(checkpoint))

    def test_a_checkpoint_is_evaluated_on_the_split_by_its_name(self, run, clips):
        (dataset,) = chosen_datasets(recipe_of(clips), None, "validation")
        source = source_of_head(run.model, dataset, "clips", "validation")
        expected = run.eval_dataset["clips"].source
        assert [media.name for media in source.media] == [media.name for media in expected.media]
        with pytest.raises(ValueError, match="no dataset of the recipe has a split 'validation'"):
            chosen_datasets(recipe_of(clips, None), None, "validation")


def test_a_compact_dataset_has_both_splits(clips, tmp_path):
    (dataset,) = recipe_of(clips).datasets
    settings = PreparationSettings(modality="video", num_frames=2, short_side=20)
    summaries = prepare_dataset(dataset, tmp_path, settings, num_workers=1)
    assert {split: summary["rows"] for split, summary in summaries.items()} == {"train": 12, "validation": 3}
    places = {split: str(tmp_path / split) for split in summaries}
    prepared = DatasetRecipe(name="clips", format="webdataset", modality="video", splits=places)
    assert [len(source) for source in read_sources(prepared).values()] == [12, 3]
    with pytest.raises(ValueError, match=r"was written with .*validation 0\.2, not 0\.4"):
        prepare_dataset(dataclasses.replace(dataset, validation=0.4), tmp_path, settings, num_workers=1)


def test_a_card_does_not_take_it_for_the_published_validation_split():
    dataset = DatasetRecipe(
        name="own", format="dataset", modality="video", path="org/own", splits={"train": "train"}, validation=0.2
    )
    assert dataset_origin(dataset)["validation_split"] == "0.2 of train"
    assert dataset_origin(dataclasses.replace(dataset, validation=None))["validation_split"] is None


class TestBadFiles:
    @pytest.fixture
    def copied(self, clips, tmp_path) -> Path:
        return Path(shutil.copytree(clips, tmp_path / "clips"))

    def test_one_of_five_is_set_aside_and_training_goes_on(self, copied, tmp_path):
        for label in ("jump", "run", "walk"):
            (copied / label / "2.mp4").write_bytes(b"no video")
        trainer = make_trainer(copied, tmp_path / "run", recipe_of(copied, None), max_steps=12, save_steps=12)
        trainer.train()
        assert trainer.state.global_step == 12 and trainer.train_dataset.bad_files == {"clips": 3}

    def test_a_folder_of_nothing_else_stops_it(self, copied, tmp_path):
        for path in copied.glob("*/*.mp4"):
            path.write_bytes(b"no video")
        trainer = make_trainer(copied, tmp_path / "run", recipe_of(copied, None))
        with pytest.raises(
            TooManyBadFilesError, match=r"8 of the 15 rows tried cannot be decoded, more than the 7 that"
        ):
            trainer.train()
        assert trainer.state.global_step == 0
