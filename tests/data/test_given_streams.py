# SPDX-License-Identifier: Apache-2.0
"""Datasets that are given as streams: their rows, their sizes, and the places that they resume at."""

import datasets
import pytest
from datasets import (
    IterableDataset,
    concatenate_datasets,
    interleave_datasets,
)
from given_rows import LABELS, numbered
from modeling_cover.data.sources import StreamedSource, to_source


STREAMS = {
    "sharded": lambda: (numbered(12, 3), range(12)),
    "mapped": lambda: (numbered(12, 3).map(lambda row: {"label": 1}, features=numbered(1).features), range(12)),
    "mapped without features": lambda: (numbered(12, 3).map(lambda row: {"label": 1}), range(12)),
    "mapped in batches": lambda: (
        numbered(12, 2).map(lambda rows: {key: rows[key] * 2 for key in rows}, batched=True, batch_size=4),
        [row for row in range(12) for _ in range(2)],
    ),
    "filtered": lambda: (numbered(12, 3).filter(lambda row: int(row["image"]) % 2 == 0), range(0, 12, 2)),
    "concatenated": lambda: (concatenate_datasets([numbered(5, 2), numbered(4, 1, 5)]), range(9)),
    "interleaved": lambda: (interleave_datasets([numbered(4, 2), numbered(6, 2, 4)]), [0, 4, 1, 5, 2, 6, 3]),
    "interleaved until all are exhausted": lambda: (
        interleave_datasets([numbered(2), numbered(3, 1, 2)], stopping_strategy="all_exhausted_without_replacement"),
        range(5),
    ),
    "some are taken": lambda: (numbered(12, 3).skip(2).take(5), range(2, 7)),
    "repeated": lambda: (numbered(3).repeat(2), [0, 1, 2, 0, 1, 2]),
    "mapped with indices": lambda: (
        numbered(12, 3).filter(lambda row, index: index < 5, with_indices=True),
        range(5),
    ),
    "a column added": lambda: (numbered(12, 3).add_column("other", list(range(12))), range(12)),
    "the last batch dropped": lambda: (
        numbered(12, 3).map(lambda rows: rows, batched=True, batch_size=5, drop_last_batch=True),
        range(10),
    ),
    "torch's format": lambda: (numbered(12, 3).with_format("torch"), range(12)),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_has_the_rows_of_a_pass_and_resumes_at_any_of_them(kind):
    stream, expected = STREAMS[kind]()
    source = to_source("given", stream, labels=LABELS, size=len(list(expected)), shuffle_buffer=3)
    assert isinstance(source, StreamedSource)
    numbers = lambda opened, draws: [int(source.example(opened.row(draw)).media.content) for draw in draws]  # noqa: E731
    size = len(source)
    whole = numbers(source.open(seed=5), range(3 * size))
    for start in range(0, 3 * size, size):
        assert sorted(whole[start : start + size]) == sorted(expected)
    assert whole[:size] != whole[size : 2 * size]
    for draw in range(1, 2 * size, 2):
        before = source.open(seed=5)
        numbers(before, range(draw))
        after = to_source("given", STREAMS[kind]()[0], labels=LABELS, size=size, shuffle_buffer=3).open(seed=5)
        after.load_state_dict(before.state_dict(draw))
        assert numbers(after, range(draw, 3 * size)) == whole[draw:]


def test_what_a_stream_is_interleaved_of_is_not_read_piece_by_piece():
    """Each piece would end with the first of its parts that does."""
    stream = interleave_datasets([numbered(4, 2), numbered(6, 2, 4)])
    assert to_source("given", stream, size=7).stream.rows.num_shards == 1
    assert to_source("given", numbered(12, 3), size=12).stream.rows.num_shards == 3


def test_two_streams_of_one_do_not_disturb_one_another():
    """`datasets` has one place where their common part is read."""
    common = numbered(400).map(lambda row: row, features=numbered(1).features)
    opened = [
        to_source("given", stream, size=200, shuffle_buffer=10).open(seed=0)
        for stream in (common.take(200), common.skip(200))
    ]
    numbers = [[int(row["image"]) for row in (stream.row(draw).content for draw in range(200))] for stream in opened]
    assert sorted(numbers[0]) == list(range(200))
    again = [
        to_source("given", stream, size=200, shuffle_buffer=10).open(seed=0)
        for stream in (common.take(200), common.skip(200))
    ]
    for draw in range(150):
        for stream in again:
            stream.row(draw)
    for stream, expected in zip(again, numbers, strict=True):
        stream.sample_pool()
        resumed = to_source(
            "given", common.take(200) if stream is again[0] else common.skip(200), size=200, shuffle_buffer=10
        ).open(0)
        resumed.load_state_dict(stream.state_dict(150))
        assert [int(resumed.row(draw).content["image"]) for draw in range(150, 200)] == expected[150:]


def published(stream: IterableDataset, rows: int) -> IterableDataset:
    """As of the Hub, whose card says how many rows there are."""
    stream.info.splits = datasets.SplitDict({"train": datasets.SplitInfo("train", num_examples=rows)})
    stream._split = datasets.Split.TRAIN
    return stream


def test_the_size_of_a_stream_is_what_its_card_says_unless_rows_were_left_out():
    assert len(to_source("given", published(numbered(12, 3), 12))) == 12
    assert len(to_source("given", published(numbered(12, 3), 12).map(dict), labels=LABELS)) == 12
    filtered = published(numbered(12, 3), 12).filter(lambda row: True)
    with pytest.raises(ValueError, match=r"dataset 'given': nothing says how many rows .*sizes=\{\"given\": \.\.\.\}"):
        to_source("given", filtered)
    assert len(to_source("given", filtered, size=12)) == 12
    doubled = published(numbered(12, 3), 12).map(lambda rows: {key: rows[key] * 2 for key in rows}, batched=True)
    with pytest.raises(ValueError, match="nothing says how many rows"):
        to_source("given", doubled, labels=LABELS)
