# SPDX-License-Identifier: Apache-2.0
"""What is said of a dataset that was prepared, as text and as a plot."""

import numpy as np
import pytest
from modeling_cover.dataset_tools.preparation_report import draw_class_histogram, report_text
from PIL import Image


class TestReport:
    COUNTS = {"wave": 100, "point": 50, "nod": 0}
    SUMMARY = {
        "rows": 150,
        "shards": 1,
        "seconds": 5400.0,
        "bytes_before": 2_000_000,
        "bytes_after": 500_000,
        "class_counts": COUNTS,
        "failures": [{"path": f"{n}.mp4", "reason": f"{n}.mp4 cannot be read: cut off"} for n in range(3)],
    }

    def test_the_text_says_all_that_matters(self):
        assert report_text("acts, train", self.SUMMARY).splitlines() == [
            "acts, train: 150 rows in 1 shard, 3 left out",
            "  3 x a file cannot be read: cut off",
            "  2 MB of files became 500 kB (0.25 x)",
            "  they last 1:30:00",
            "  3 classes of 0 to 100 rows, 1 without any",
            "    wave       100 " + "#" * 40,
            "    point       50 " + "#" * 20,
            "    nod          0",
        ]

    def test_of_many_classes_the_text_shows_the_ends(self):
        summary = {**self.SUMMARY, "class_counts": {f"class {n}": n for n in range(400)}}
        lines = report_text("acts", summary).splitlines()[5:]
        assert len(lines) == 41 and lines[20] == "    ..."
        assert lines[0].split()[:3] == ["class", "399", "399"] and lines[-1].split() == ["class", "0", "0"]

    def test_the_plot_has_bars_as_long_as_classes_are_large(self, tmp_path):
        draw_class_histogram("acts", self.COUNTS, tmp_path / "acts.png")
        plot = np.asarray(Image.open(tmp_path / "acts.png").convert("RGB")).astype(int)
        blue, red = (
            (np.abs(plot - colour).max(axis=2) < 8).sum(axis=1) for colour in ([169, 205, 234], [243, 179, 171])
        )
        lengths = sorted(blue[blue > 0])  # of rows of pixels, fewer where a name is
        assert lengths[-1] == pytest.approx(plot.shape[1], rel=0.05)
        assert blue[: blue.argmax() + 1].max() == pytest.approx(2 * lengths[len(lengths) // 4], rel=0.2)
        assert red.max() == lengths[-1] and np.flatnonzero(red)[0] > np.flatnonzero(blue)[-1]

    @pytest.mark.slow  # as matplotlib takes its time for 400 names
    def test_the_plot_of_400_classes_fits_a_screen(self, tmp_path):
        counts = {f"a class with a rather long name {n}": n for n in range(400)}
        draw_class_histogram("acts", counts, tmp_path / "acts.png")
        with Image.open(tmp_path / "acts.png") as plot:
            assert plot.width < 2000 and plot.height < 1000
