# SPDX-License-Identifier: Apache-2.0
"""What the pages say in figures: each is one that a committed script has printed into a page."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]

# The page, what it says there, and the page and the line of it that a script has printed.
FIGURES = [
    ("README.md", "on a CPU 13% of the time of an", "benchmark.md", r"^CoVeR: an image takes 12\.7% of a clip's time"),
    ("README.md", "a forward pass takes 0.94", "benchmark.md", r"^\| CoVeR \| clips \| [\d.]+ \| 0\.94 \|"),
    ("README.md", "(in bf16 0.27)", "benchmark.md", r"^\| CoVeR, bf16 \| clips \| [\d.]+ \| 0\.27 \|"),
    ("README.md", "a training step 0.80", "benchmark.md", r"^\| CoVeR \| clips \| [\d.]+ \| 0\.80 \|"),
    ("README.md", "takes 0.47 of the memory", "benchmark.md", r"^\| CoVeR \| [\d.]+ \| 0\.47 \|"),
    ("README.md", "On an H200 it was 0.80", "benchmark.md", r"^ +CoVeR +[\d.]+ s +0\.80 x"),
    ("README.md", "(compiled 0.69)", "benchmark.md", r"^ +CoVeR, compiled +[\d.]+ s +0\.69 x"),
    ("README.md", "0.92 and 0.45 before that pass", "benchmark.md", r"^ +CoVeR +[\d.]+ s +0\.92 x"),
    ("README.md", "0.92 and 0.45 before that pass", "benchmark.md", r"^ +CoVeR +[\d.]+ MiB +0\.45 x"),
    (
        "README.md",
        "a small set gains 8 points",
        "paper_in_miniature.md",
        r"`moves`, .* as many steps: .*\+8\.2 ± .* all of the",
    ),
    (
        "README.md",
        "loses 2 where it shares half",
        "paper_in_miniature.md",
        r"`moves`, .* as many steps: .*-2\.0 ± .* half of the",
    ),
    (
        "README.md",
        "it loses 7 where all is shared",
        "paper_in_miniature.md",
        r"`moves`, .* a quarter .*; -7\.4 ± .* all of the",
    ),
    (
        "README.md",
        "loses 15 where it shares none",
        "paper_in_miniature.md",
        r"`moves`, .* as many steps: -15\.0 ± .* none of the",
    ),
    ("docs/demo.md", "[0.31 s after the click]", "measurements.md", r"^bars: .* then 0\.31 s \(median of 9\)"),
    ("docs/demo.md", "after 0.53 s (medians of 9)", "measurements.md", r"^with timeline and rollout: 0\.53 s"),
    (
        "docs/demo.md",
        "40 honest visitors were [answered correctly in 13 s]",
        "measurements.md",
        r"^40 honest .* in 13 s,",
    ),
    ("docs/demo.md", "took 761 MB at most, and had taken 678", "measurements.md", r"678 MB before, at most 761;"),
    ("docs/benchmark.md", "takes 0.29 of the time", "benchmark.md", r"^\| CoVeR \| clips \| 2898 \|"),
    ("docs/benchmark.md", "takes 0.29 of the time", "benchmark.md", r"^\| CoVeR, bf16 \| clips \| 830\.4 \|"),
    (
        "docs/diagnosing.md",
        "(cosines +0.48, +0.56, +0.62;",
        "paper_in_miniature.md",
        r"^\| videos_none \| moves \| \+0\.48 ",
    ),
    (
        "docs/diagnosing.md",
        "(cosines +0.48, +0.56, +0.62;",
        "paper_in_miniature.md",
        r"^\| videos_half \| moves \| \+0\.56 ",
    ),
    (
        "docs/diagnosing.md",
        "(cosines +0.48, +0.56, +0.62;",
        "paper_in_miniature.md",
        r"^\| videos_all \| moves \| \+0\.62 ",
    ),
    (
        "docs/diagnosing.md",
        "+0.07 (-0.70 to +0.65)",
        "paper_in_miniature.md",
        r"^- Cosine .*: \+0\.07 \(-0\.70 to \+0\.65\)",
    ),
    (
        "docs/diagnosing.md",
        "+0.12 (-0.61 to +0.78)",
        "paper_in_miniature.md",
        r"^- What .*: \+0\.12 \(-0\.61 to \+0\.78\)",
    ),
    (
        "docs/diagnosing.md",
        "(+10.4 points in place of +6.2)",
        "paper_in_miniature.md",
        r"^\| all .*moves \| \+6\.2 .*\+10\.4",
    ),
    (
        "docs/diagnosing.md",
        "(-28.0 in place of -17.6",
        "paper_in_miniature.md",
        r"^\| none .*moves \| -17\.6 .*-28\.0",
    ),
    (
        "docs/paper.md",
        "it loses 2.0 ± 5.1, with none 15.0 ± 9.4",
        "paper_in_miniature.md",
        r"^- `moves`, .* -15\.0 ± 9\.4 .* -2\.0 ± 5\.1",
    ),
    (
        "docs/paper.md",
        "`moves` gains 8.2 ± 4.2 points",
        "paper_in_miniature.md",
        r"^- `moves`, .* \+8\.2 ± 4\.2 with all",
    ),
    (
        "docs/paper.md",
        "`moves` loses 7.4 ± 5.2 even",
        "paper_in_miniature.md",
        r"^- `moves`, .*quarter.* -7\.4 ± 5\.2 with all",
    ),
    (
        "docs/paper.md",
        "it gains 14.6 ± 3.4 with all",
        "paper_in_miniature.md",
        r"^- `moves`, .*epochs: .* \+14\.6 ± 3\.4 with all",
    ),
    (
        "docs/paper.md",
        "6.4 of these come from more steps",
        "paper_in_miniature.md",
        r"^\| moves alone, .* \+6\.4 ± 2\.6 ",
    ),
    (
        "docs/paper.md",
        "13 of 15 signs were so in every seed",
        "paper_in_miniature.md",
        r"^Of 15 signs .*: 13 in every seed,",
    ),
    ("docs/paper.md", "hold 39 GB", "scaling.md", r"^\| 16 \| .* \| 38\.7 GB \|"),
    ("docs/paper.md", "(6% for the largest)", "scaling.md", r"^\| 8 \| 16 \| 128 \| .* \| 94% \|"),
    ("docs/published_datasets.md", "(234 ms a clip)", "scaling.md", r"^\| raw clip, one core \| 234 ms \|"),
    (
        "docs/published_datasets.md",
        "take 380 to 480 kB each",
        "compact_data.md",
        r"^\| 340 x 256 \| 660 kB \| 379 kB \|",
    ),
    (
        "docs/published_datasets.md",
        "take 380 to 480 kB each",
        "compact_data.md",
        r"^\| 640 x 360 \| 1283 kB \| 481 kB \|",
    ),
    ("docs/scaling.md", "Reducing 1.7 GB", "scaling.md", r"^\| DDP: gradients reduced .* 1\.73 GB \|"),
    ("docs/scaling.md", "39 GB hold 16 rows", "scaling.md", r"^\| 16 \| .* \| 38\.7 GB \|"),
    (
        "docs/scaling.md",
        "1.3 cores per GPU decode raw clips in time, and 0.4",
        "scaling.md",
        r"^\| 8 \| 16 .* 1\.3 / 0\.4 \|",
    ),
    ("docs/scaling.md", "about 0.25 s", "scaling.md", r"^\| 16 \| 258 ms \|"),
    ("docs/scaling.md", "**Checkpoints** (8 s", "scaling.md", r"^\| written and flushed \| 5\.2 s \|"),
    ("docs/training.md", "38.7 GB for 16 clips", "scaling.md", r"^\| 16 \| .* \| 38\.7 GB \|"),
    ("docs/training.md", "[20 of 20 runs of one process]", "measurements.md", r"^20 of 20 runs of 1 process"),
    ("docs/training.md", "and 20 of 20 of two, stopped 38 times", "measurements.md", r"^20 of 20 runs of 2 process"),
    ("docs/training.md", "stopped 35 times", "measurements.md", r"^stopped 35 times, 13 of them"),
    ("docs/training.md", "After 13 and 12 of these stops", "measurements.md", r"^stopped 38 times, 12 of them"),
    ("docs/training.md", "[1.4 s for 2 GB]", "measurements.md", r"^\| checking it .* \| 1\.4 \|"),
    ("docs/training.md", "(2.1 s of CPU time)", "measurements.md", r"^\| of it the time of a CPU core \| 2\.1 \|"),
    ("docs/training.md", "hashing took 26% of the 4.8 s", "measurements.md", r"^\| of it hashing \| 1\.3 \| 26% \|"),
    ("docs/training.md", "hashing took 26% of the 4.8 s", "measurements.md", r"^\| writing 2\.00 GB, .* \| 4\.8 \|"),
    (
        "docs/training.md",
        "A million files take 0.2 s",
        "measurements.md",
        r"^\| hashing 1,000,000 names of rows \| 0\.18 \|",
    ),
    ("docs/training.md", "takes [0.27%]", "measurements.md", r"^\| deciding before each step, .* \| 0\.27% \|"),
    ("docs/training.md", "with accuracies and logs 0.44%", "measurements.md", r"^\| all \| 0\.44% \|"),
    ("docs/training.md", "plans 34 kernels a layer", "measurements.md", r'"kernels": 34'),
    ("docs/training.md", "move 0.43 of the bytes", "measurements.md", r'"compiled / eager": 0\.43'),
]


@pytest.mark.parametrize(
    ("page", "said", "source", "measured"), FIGURES, ids=[f"{Path(page).stem}: {said}" for page, said, *_ in FIGURES]
)
def test_a_figure_is_one_that_a_script_has_printed_into_a_page(page, said, source, measured):
    assert said in " ".join((ROOT / page).read_text(encoding="utf-8").split())
    assert re.search(measured, (ROOT / "docs" / source).read_text(encoding="utf-8"), re.MULTILINE)
