# SPDX-License-Identifier: Apache-2.0
"""What a check finds in names alone: classes that are spelt in several ways, and files that no row is made of."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations

from ..data.sources import Source, StreamedSource
from ..data.sources.spelling import plain_spelling
from ..text import counted
from .check_report import Finding


Sources = Mapping[str, Mapping[str, Source | StreamedSource]]


def source_findings(sources: Sources) -> Iterator[Finding]:
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


def spelling_findings(sources: Sources) -> Iterator[Finding]:
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
