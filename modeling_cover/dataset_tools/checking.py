# SPDX-License-Identifier: Apache-2.0
"""What is wrong with the datasets of a mixture, found before it costs a training run.

Every row is read once, see [`~modeling_cover.dataset_tools.scanning`]. What is found is a list of [`Finding`]s, each a
problem or a mere note.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..model.video_processing_cover import CoverVideoProcessor
from .check_report import Finding, Report
from .copies import copy_findings
from .scanning import Scan, SplitScan, scan_rows
from .spelling_findings import Sources, source_findings, spelling_findings


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
        num_workers: processes that decode.
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
        *source_findings(sources),
        *spelling_findings(sources),
        *copy_findings(splits, near_duplicates),
        *(_plain_findings(splits) if near_duplicates else ()),
    ]
    return Report(splits=[split.summary() for split in splits], findings=findings)


def _class_findings(splits: Sequence[SplitScan]) -> Iterator[Finding]:
    for split in splits:
        kind = "empty_class" if split.split == "train" else "unvalidated_class"
        for index in np.flatnonzero(split.class_counts() == 0):
            label = split.source.labels[index]
            yield split.finding(kind, f"{split.dataset}: '{label}' has no row in {split.split}", label=label)


def _plain_findings(splits: Sequence[SplitScan]) -> Iterator[Finding]:
    for split in splits:
        if count := int(split.rows["is_plain"].sum()):
            yield split.finding("plain", f"{split.dataset}, {split.split}: {count} of {len(split)} rows", rows=count)
