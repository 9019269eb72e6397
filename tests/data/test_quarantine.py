# SPDX-License-Identifier: Apache-2.0
"""The quarantine: a bad file is written down once, by whichever process finds it, and known to all."""

import json
import multiprocessing
import pickle

import pytest
from modeling_cover.data.quarantine import BadFile, Quarantine, TooManyBadFilesError, most_bad_files
from modeling_cover.recipe.recipe import BadFilesRecipe


BROKEN = BadFile("k400", "k400/train/broken.mp4", "it ends in the middle")


def bad(number: int, dataset: str = "k400", **fields) -> BadFile:
    return BadFile(dataset, f"{number}.mp4", "broken", **fields)


class TestTheFile:
    def test_it_has_a_line_of_json_for_each_bad_file(self, tmp_path):
        quarantine = Quarantine(tmp_path / "new" / "quarantine.jsonl")
        quarantine.add(BROKEN)
        quarantine.add(bad(1, "ssv2"))
        lines = quarantine.path.read_text().splitlines()
        rest = {"split": "train", "tried": 0}
        assert [json.loads(line) for line in lines] == [
            {"dataset": "k400", "path": "k400/train/broken.mp4", "reason": "it ends in the middle", **rest},
            {"dataset": "ssv2", "path": "1.mp4", "reason": "broken", **rest},
        ]

    def test_a_file_is_written_down_once_whoever_finds_it_again(self, tmp_path):
        first, second = (Quarantine(tmp_path / "quarantine.jsonl") for _ in range(2))
        first.add(BROKEN)
        second.add(BROKEN._replace(reason="another reason"))
        first.add(BROKEN)
        assert first.entries() == second.entries() == [BROKEN]
        assert len(first.path.read_text().splitlines()) == 1

    def test_the_same_path_in_two_datasets_is_two_entries(self, tmp_path):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        quarantine.add(bad(1, "k400"))
        quarantine.add(bad(1, "k600"))
        assert quarantine.counts() == {"k400": 1, "k600": 1}

    def test_each_sees_at_once_what_others_have_found(self, tmp_path):
        first, second = (Quarantine(tmp_path / "quarantine.jsonl") for _ in range(2))
        assert second.reason("k400", BROKEN.path) is None
        first.add(BROKEN)
        assert second.reason("k400", BROKEN.path) == "it ends in the middle"
        assert second.reason("ssv2", BROKEN.path) is None

    def test_many_processes_that_write_at_a_time_lose_nothing_and_repeat_nothing(self, tmp_path):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=_add_all, args=(quarantine, start)) for start in (0, 50, 100)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert sorted(quarantine.entries()) == sorted(bad(number) for number in range(200))
        assert len(quarantine.path.read_text().splitlines()) == 200

    def test_a_line_that_is_half_written_is_left_for_later(self, tmp_path):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        quarantine.add(BROKEN)
        line = json.dumps(bad(1)._asdict()).encode() + b"\n"
        with open(quarantine.path, "ab") as file:
            file.write(line[:10])
            file.flush()
            assert quarantine.entries() == [BROKEN]
            file.write(line[10:])
        assert quarantine.entries() == [BROKEN, bad(1)]

    def test_half_a_line_of_a_killed_process_takes_no_other_with_it(self, tmp_path):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        quarantine.add(BROKEN)
        with open(quarantine.path, "ab") as file:
            file.write(json.dumps(bad(1)._asdict()).encode()[:10])
        quarantine.add(bad(2))
        assert quarantine.entries() == Quarantine(quarantine.path).entries() == [BROKEN, bad(2)]

    def test_the_same_path_in_two_splits_is_two_entries(self, tmp_path):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        quarantine.add(bad(1, split="validation"))
        assert quarantine.reason("k400", "1.mp4", "validation") == "broken"
        assert quarantine.reason("k400", "1.mp4") is None
        assert quarantine.counts() == {}

    def test_a_name_that_is_no_text_is_kept_as_it_is(self, tmp_path):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        quarantine.add(BROKEN._replace(path="caf\udce9.mp4"))  # a Latin-1 file name, as Python spells it
        assert Quarantine(quarantine.path).reason("k400", "caf\udce9.mp4") == BROKEN.reason

    def test_what_is_cleared_is_forgotten_by_all(self, tmp_path):
        first, second = (Quarantine(tmp_path / "quarantine.jsonl") for _ in range(2))
        first.add(BROKEN)
        first.add(bad(1))
        assert len(second.entries()) == 2
        first.clear()
        assert first.entries() == []
        first.add(bad(2))
        assert second.entries() == [bad(2)]

    def test_those_of_a_split_are_forgotten_by_themselves(self, tmp_path):
        first, second = (Quarantine(tmp_path / "quarantine.jsonl") for _ in range(2))
        first.add(bad(1))
        first.add(bad(2, split="validation"))
        assert len(second.entries()) == 2
        first.clear("validation")
        assert first.entries() == second.entries() == [bad(1)]
        second.clear("train")
        assert first.entries() == second.entries() == []

    def test_it_goes_to_a_worker_as_its_path(self, tmp_path):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0.25)
        quarantine.add(BROKEN)
        copy = pickle.loads(pickle.dumps(quarantine))  # noqa: S301
        assert (copy.path, copy.max_share, copy.entries()) == (quarantine.path, 0.25, [BROKEN])


def _add_all(quarantine: Quarantine, start: int) -> None:
    for number in range(start, start + 100):
        quarantine.add(bad(number))


class TestTheLimit:
    @pytest.mark.parametrize(
        ("size", "draws", "allowed"),
        [
            (5, 1, 2),  # of a small dataset as many as of 200 rows, yet no more than half of all it has
            (15, 4000, 7),
            (40, 1, 10),
            (200, 1, 10),  # of all rows of one that is larger
            (300, 4000, 15),
            (5000, 1, 50),
            (5000, 90_000, 250),
            (1000, 1, 50),
            (100_000, 1, 50),  # of the first thousand of a large one
            (100_000, 20_000, 1000),  # of those tried since
            (100_000, 900_000, 5000),  # of which there are never more than it has
        ],
    )
    def test_it_is_a_share_of_the_rows_that_were_tried(self, tmp_path, size, draws, allowed):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0.05)
        for number in range(allowed):
            quarantine.add(bad(number, tried=draws))
        quarantine.check(bad(allowed - 1, tried=draws), size)
        quarantine.add(bad(-1, tried=draws))
        with pytest.raises(TooManyBadFilesError, match=rf"'k400', train split: {allowed + 1} of the \d+ rows tried"):
            quarantine.check(bad(-1, tried=draws), size)

    @pytest.mark.parametrize(("size", "found"), [(1, 1), (2, 2), (5, 3), (15, 8), (200, 11), (5000, 51)])
    def test_where_every_file_is_bad_it_is_reached_and_the_error_says_how_to_go_on(self, tmp_path, size, found):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl")
        with pytest.raises(TooManyBadFilesError, match=r"more than the \d+ that `bad_files: \{max_share: 0\.05\}`"):
            for number in range(size):
                quarantine.add(bad(number, tried=number + 1))
                quarantine.check(bad(number, tried=number + 1), size)
        assert len(quarantine.entries()) == found

    @pytest.mark.parametrize(
        ("max_share", "rows", "most"), [(0, 5, 0), (0.001, 100, 0.2), (0.005, 5, 1), (0.9, 10, 9), (1, 1, 1)]
    )
    def test_a_share_that_is_given_holds_for_small_datasets_too(self, max_share, rows, most):
        assert most_bad_files(max_share, rows) == pytest.approx(most)

    def test_the_worker_that_is_furthest_tells_how_many_were_tried(self, tmp_path):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0.05)
        for number in range(51):
            quarantine.add(bad(number, tried=2000 if number == 0 else 500))
        quarantine.check(bad(50, tried=500), 100_000)

    def test_the_error_lists_examples_and_where_all_of_them_are(self, tmp_path):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0)
        quarantine.add(BROKEN)
        with pytest.raises(TooManyBadFilesError, match=r"k400/train/broken\.mp4: it ends in the middle") as error:
            quarantine.check(BROKEN, 1000)
        assert str(quarantine.path) in str(error.value) and "max_share" in str(error.value)

    def test_each_split_of_each_dataset_is_counted_by_itself(self, tmp_path):
        quarantine = Quarantine(tmp_path / "quarantine.jsonl", max_share=0.5)
        for number in range(6):
            quarantine.add(bad(number, "k600"))
            quarantine.add(bad(number, split="validation"))
        quarantine.check(bad(0), 10)
        with pytest.raises(TooManyBadFilesError, match="dataset 'k600', train split: 6 of the 10 rows"):
            quarantine.check(bad(5, "k600"), 10)
        with pytest.raises(TooManyBadFilesError, match="dataset 'k400', validation split: 6 of the 11 rows"):
            quarantine.check(bad(5, split="validation"), 11)

    @pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "5%", True, None])
    def test_a_share_is_between_0_and_1(self, value):
        with pytest.raises(ValueError, match="bad_files: max_share must be a finite number, from 0 to 1, got"):
            BadFilesRecipe(max_share=value)
