# SPDX-License-Identifier: Apache-2.0
"""What a check of datasets has found: as JSON lines for programs, as tables and sentences for people."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..files import to_json
from ..text import counted, printable, shortened, table


if TYPE_CHECKING:
    from .scanning import SplitScan

PROBLEMS = {
    "refused": "what training would refuse",
    "unreadable": "files that cannot be decoded",
    "truncated": "files that end before their header says",
    "damaged": "files with frames that cannot be decoded",
    "row_count": "streamed splits with another number of rows than was said",
    "empty_class": "classes without a row in the train split",
    "leak": "validation rows that are training rows as well",
    "label_mismatch": "files with more than one label",
    "duplicate": "files that a split has more than once",
}
NOTES = {
    "unvalidated_class": "classes without a row in the validation split",
    "shared": "datasets with files in common",
    "spelling": "classes that differ in their spelling alone",
    "left_out": "files that lie in no class's folder, or do not end as the dataset's do",
    "plain": "splits with rows too plain to be told apart by their pixels",
}

_EXAMPLES = 3
_LABEL_WIDTH = 20  # columns of a terminal


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong, or worth a note."""

    kind: str  # a key of `PROBLEMS` or `NOTES`
    dataset: str
    split: str | None  # None if it is about the dataset as a whole
    message: str  # a sentence for people
    details: Mapping[str, Any] = field(default_factory=dict)  # for programs, JSON-able

    @property
    def is_problem(self) -> bool:
        return self.kind in PROBLEMS

    def to_json(self) -> bytes:
        """One line."""
        head = {"kind": self.kind, "is_problem": self.is_problem, "dataset": self.dataset, "split": self.split}
        return to_json({**head, "message": self.message, **self.details}) + b"\n"


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that was found."""

    splits: Sequence["SplitScan"]
    findings: Sequence[Finding]

    @property
    def problems(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_problem]

    def summary(self) -> str:
        """Tables and sentences, with a few examples of each kind of finding."""
        notes = len(self.findings) - len(self.problems)
        parts = [table([_HEADER, *(self._row(split) for split in self.splits)]), *self._contaminations()]
        parts += [self._examples(kind, title) for kind, title in {**PROBLEMS, **NOTES}.items() if self._of(kind)]
        parts.append(f"{counted(len(self.problems), 'problem')}, {counted(notes, 'note')}")
        return "\n\n".join(parts)

    def _of(self, *kinds: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind in kinds]

    def _row(self, split: "SplitScan") -> list[str]:
        found = [
            finding for finding in self.findings if (finding.dataset, finding.split) == (split.dataset, split.split)
        ]
        bad = {finding.details["row"] for finding in found if finding.kind in ("unreadable", "truncated", "damaged")}
        leaks = sum(finding.kind == "leak" for finding in found)
        copies = sum(len(finding.details["names"]) - 1 for finding in found if finding.kind == "duplicate")
        counts = split.class_counts
        extremes = [
            f"{counts[index]} ({shortened(split.source.labels[index], _LABEL_WIDTH)})"
            for index in (counts.argmin(), counts.argmax())
        ]
        leaked = str(leaks) if split.split == "validation" else "-"
        numbers = [len(split), len(bad), leaked, copies, len(counts), int((counts == 0).sum())]
        return [split.dataset, split.split, *map(str, numbers), *extremes]

    def _contaminations(self) -> Iterator[str]:
        """Whose validation is spoilt by whose training rows."""
        rows = Counter((leak.dataset, name) for leak in self._of("leak") for name in leak.details["train_of"])
        sizes = {split.dataset: len(split) for split in self.splits if split.split == "validation"}
        for (dataset, other), count in rows.items():
            whose = "of its own" if other == dataset else f"of {other}"
            share = f"{count} of its {sizes[dataset]} rows ({count / sizes[dataset]:.1%})"
            yield f"THE VALIDATION OF {dataset} IS CONTAMINATED: {share} are training rows {whose}."

    def _examples(self, kind: str, title: str) -> str:
        found = self._of(kind)
        lines = [f"  {printable(finding.message)}" for finding in found[:_EXAMPLES]]
        if len(found) > _EXAMPLES:
            lines.append(f"  and {len(found) - _EXAMPLES} more")
        return "\n".join([f"{'Problem' if kind in PROBLEMS else 'Note'}: {title}: {len(found)}", *lines])


_HEADER = [
    "dataset",
    "split",
    "rows",
    "bad files",
    "leaked",
    "copies",
    "classes",
    "without rows",
    "smallest class",
    "largest class",
]
