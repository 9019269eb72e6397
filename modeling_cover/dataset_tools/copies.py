# SPDX-License-Identifier: Apache-2.0
"""What a check finds in rows that are the same: leaks, duplicates, rows with two labels, and files in common."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .check_report import Finding
from .duplicates import near_groups
from .scanning import SplitScan


_MOST_COPIES = 5  # that a leak lists: some datasets have one "image not available" thousands of times

_GROUP = ["match", "group"]  # rows that are the same, by their bytes or by their pixels
_SEGMENT = ["start", "end"]  # of a file, in seconds
_HOW = {"bytes": "", "pixels": " (by its pixels)"}


def copy_findings(splits: Sequence[SplitScan], near_duplicates: bool) -> Iterator[Finding]:
    """What is wrong, or worth a note, with rows that are the same. With `near_duplicates` it is also told of rows that
    look the same; they need fingerprints."""
    rows = _read_rows(splits)
    copies = _equal_rows(rows)
    if near_duplicates:
        copies = pd.concat([copies, _near_rows(rows, splits)])
    copies = _described(copies, splits)
    yield from _duplicates(copies)
    yield from _label_mismatches(copies)
    yield from _leaks(copies)
    yield from _shared_files(copies)


def _read_rows(splits: Sequence[SplitScan]) -> pd.DataFrame:
    """The rows that could be read: their split's number, their own, their segment, and equal numbers of equal
    files."""
    read = [np.flatnonzero(split.rows["is_read"]) for split in splits]
    facts = np.concatenate([split.rows[rows] for split, rows in zip(splits, read, strict=True)])
    digests = pd.DataFrame(facts["digest"])
    return pd.DataFrame(
        {
            "scan": np.repeat(np.arange(len(splits)), [len(rows) for rows in read]),
            "row": np.concatenate(read),
            "file": digests.groupby(list(digests)).ngroup(),
            **{name: facts[name] for name in (*_SEGMENT, "is_plain")},
        }
    )


def _equal_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of files with the same bytes."""
    return rows[rows.duplicated("file", keep=False)].assign(match="bytes", group=lambda equal: equal["file"])


def _near_rows(rows: pd.DataFrame, splits: Sequence[SplitScan]) -> pd.DataFrame:
    """Rows that look the same."""
    fingerprints = np.concatenate([split.rows["fingerprint"][split.rows["is_read"]] for split in splits])
    is_video = np.array([split.source.modality == "video" for split in splits])[rows["scan"]]
    found = []
    for of_modality in (is_video, ~is_video):
        candidates = rows[of_modality & ~rows["is_plain"]]
        groups = candidates.index[near_groups(fingerprints[candidates.index])]
        found.append(candidates.assign(match="pixels", group=groups, start=0.0, end=np.inf))
    near = pd.concat(found)
    # Those of one file have been dealt with; other segments of it are no copies.
    return near[near.groupby("group")["file"].transform("nunique") > 1]


def _described(copies: pd.DataFrame, splits: Sequence[SplitScan]) -> pd.DataFrame:
    """With what to call each row."""
    places = [(splits[scan], row) for scan, row in zip(copies["scan"], copies["row"], strict=True)]
    return copies.assign(
        dataset=[split.dataset for split, _ in places],
        split=[split.split for split, _ in places],
        name=[split.name(row) for split, row in places],
        labels=[split.labels(row) for split, row in places],
    )


def _text(copy: Any) -> str:
    segment = "" if (copy.start, copy.end) == (0.0, np.inf) else f" from {copy.start:g} to {copy.end:g} s"
    return f"{copy.name}{segment} ({', '.join(copy.labels) or 'no label'})"


def _several(copies: pd.DataFrame, by: list[str]) -> Iterator[pd.DataFrame]:
    """The rows that agree in `by` with another."""
    for _, found in copies[copies.duplicated(by, keep=False)].groupby(by, sort=False):
        yield found


def _duplicates(copies: pd.DataFrame) -> Iterator[Finding]:
    one = [*_GROUP, "dataset", "split", *_SEGMENT]
    # Of rows that look the same, those with the same bytes have been found by them.
    is_again = (copies["match"] == "pixels") & copies.duplicated([*one, "file"])
    for found in _several(copies[~is_again], one):
        first, second, *_ = found.itertuples()
        yield Finding(
            kind="duplicate",
            dataset=first.dataset,
            split=first.split,
            message=f"{first.dataset}, {first.split}: {_text(first)} is also {second.name}{_HOW[first.match]}",
            details={"match": first.match, "names": found["name"].tolist(), "rows": found["row"].tolist()},
        )


def _label_mismatches(copies: pd.DataFrame) -> Iterator[Finding]:
    one = [*_GROUP, "dataset", *_SEGMENT]
    distinct = copies.assign(label_set=[tuple(sorted(labels)) for labels in copies["labels"]])
    for found in _several(distinct.drop_duplicates([*one, "label_set"]), one):
        first, second, *_ = found.itertuples()
        yield Finding(
            kind="label_mismatch",
            dataset=first.dataset,
            split=None,
            message=f"{first.dataset}: {_text(first)} is also {_text(second)}{_HOW[first.match]}",
            details={"match": first.match, "rows": found[["split", "name", "labels"]].to_dict("records")},
        )


def _leaks(copies: pd.DataFrame) -> Iterator[Finding]:
    """Validation rows that are training rows as well, each once."""
    leaked = set()
    for found in _several(copies, _GROUP):
        train = found[found["split"] == "train"]
        for row in found[found["split"] == "validation"].itertuples():
            overlapping = train[(train["start"] < row.end) & (row.start < train["end"])]
            if overlapping.empty or (row.scan, row.row) in leaked:
                continue
            leaked.add((row.scan, row.row))
            first = next(overlapping.itertuples())
            whose = "of its own" if first.dataset == row.dataset else f"of {first.dataset}"
            yield Finding(
                kind="leak",
                dataset=row.dataset,
                split=row.split,
                message=f"{row.dataset}: {_text(row)} is a training row {whose}: {_text(first)}{_HOW[row.match]}",
                details={
                    "row": row.row,
                    "name": row.name,
                    "labels": row.labels,
                    "match": row.match,
                    "train_of": sorted(set(overlapping["dataset"])),
                    "num_copies": len(overlapping),
                    "copies": overlapping[["dataset", "name", "labels"]].head(_MOST_COPIES).to_dict("records"),
                },
            )


def _shared_files(copies: pd.DataFrame) -> Iterator[Finding]:
    """What datasets have in common beside leaks: no fault of either, but good to know."""
    firsts = copies.drop_duplicates([*_GROUP, "dataset", "split"])
    pairs = firsts.merge(firsts, on=[*_GROUP, "split"], suffixes=("", "_other"))
    pairs = pairs[pairs["scan"] < pairs["scan_other"]]
    for (first, second, split, match), found in pairs.groupby(
        ["dataset", "dataset_other", "split", "match"], sort=False
    ):
        names = f"such as {found['name'].iloc[0]} and {found['name_other'].iloc[0]}"
        message = f"{first} and {second}, {split}: {len(found)}, {names}{_HOW[match]}"
        details = {"datasets": [first, second], "match": match, "num_files": len(found)}
        yield Finding(kind="shared", dataset=first, split=split, message=message, details=details)
