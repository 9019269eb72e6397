# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the datasets of a mixture, found before it costs a training run.

Every row is read once, see [`~modeling_cover.dataset_tools.scanning`]. What is found is a list of [`Finding`]s, each a
problem or a mere note.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations

import numpy as np

from ..data.sources import StreamedSource
from ..data.sources.spelling import plain_spelling
from ..model.video_processing_cover import CoverVideoProcessor
from ..text import counted
from .check_report import Finding, Report
from .copies import copy_findings
from .scanning import Scan, Sources, SplitScan, scan_rows


def check_datasets(
    sources: Sources,
    processor: CoverVideoProcessor,
    num_workers: int = 1,
    full: bool = False,
    near_duplicates: bool = False,
    refusals: Iterable[tuple[str, str]] = (),
) -> Report:
    """Read every row of every split, and look for what is wrong.

    Args:
        sources: by dataset and split, see [`~modeling_cover.data.sources.read_sources`].
        processor: says which frames of a video are decoded, and at which size.
        full: decode every frame of a video, not just those that training would.
        near_duplicates: also look for copies that were encoded again or scaled, see
            [`~modeling_cover.dataset_tools.duplicates`].
        refusals: why training would not begin, each with the dataset that it is about.

    Raises:
        FileNotFoundError: if a dataset vanishes meanwhile.
    """
    scan = Scan(sources, processor, full, near_duplicates)
    splits = [
        SplitScan(dataset, split, source) for dataset, found in sources.items() for split, source in found.items()
    ]
    findings = [
        *(Finding(kind="refused", dataset=name, split=None, message=reason) for name, reason in refusals),
        *scan_rows(scan, splits, num_workers),
        *_class_findings(splits),
        *_source_findings(sources),
        *_spelling_findings(sources),
        *copy_findings(splits, near_duplicates),
        *(_plain_findings(splits) if near_duplicates else ()),
    ]
    return Report(splits=splits, findings=findings)


def _class_findings(splits: Sequence[SplitScan]) -> Iterator[Finding]:
    for split in splits:
        kind = "empty_class" if split.split == "train" else "unvalidated_class"
        for index in np.flatnonzero(split.class_counts == 0):
            label = split.source.labels[index]
            yield split.finding(kind, f"{split.dataset}: '{label}' has no row in {split.split}", label=label)


def _plain_findings(splits: Sequence[SplitScan]) -> Iterator[Finding]:
    for split in splits:
        if count := int(split.rows["is_plain"].sum()):
            yield split.finding("plain", f"{split.dataset}, {split.split}: {count} of {len(split)} rows", rows=count)


def _source_findings(sources: Sources) -> Iterator[Finding]:
    """What the sources themselves have noticed."""
    for name, splits in sources.items():
        for split, source in splits.items():
            if isinstance(source, StreamedSource):
                continue
            for label, forms in source.spellings.items():
                message = f"{name}, {split}: {', '.join(map(ascii, forms))} are taken for one class"
                yield Finding(
                    kind="spelling", dataset=name, split=split, message=message, details={"labels": [label, *forms]}
                )
            if source.left_out:
                files = [os.path.join(source.roots[0], file) for file in source.left_out]
                message = f"{name}, {split}: {counted(len(files), 'file')}, the first is {files[0]}"
                yield Finding(kind="left_out", dataset=name, split=split, message=message, details={"files": files})


def _spelling_findings(sources: Sources) -> Iterator[Finding]:
    """Classes of one dataset, or of two, that are the same but for case, spaces and underscores."""
    labels = {name: splits["train"].labels for name, splits in sources.items()}
    for first, second in [*((name, name) for name in labels), *combinations(labels, 2)]:
        spelt = defaultdict(set)
        for label in labels[second]:
            spelt[plain_spelling(label)].add(label)
        pairs = {
            tuple(sorted((label, other))) if first == second else (label, other)
            for label in labels[first]
            for other in spelt[plain_spelling(label)] - {label}
        }
        # A dataset that spells one class as another does has nothing to be told.
        pairs = sorted(pair for pair in pairs if first == second or pair[0] not in labels[second])
        if pairs:
            whose = f"within {first}" if first == second else f"in {first} and {second}"
            examples = ", ".join(f"'{one}' and '{other}'" for one, other in pairs[:3])
            message = f"{len(pairs)} {whose}, such as {examples}"
            details = {"datasets": sorted({first, second}), "labels": pairs}
            yield Finding(kind="spelling", dataset=first, split=None, message=message, details=details)
