# SPDX-License-Identifier: Apache-2.0
"""What is said of a dataset that was prepared, as text and as a picture."""

import numpy as np
from modeling_cover.dataset_tools.preparation_report import draw_class_histogram, report_text


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
            "  2.0 MB of files became 500.0 kB (0.25 x)",
            "  they last 1.5 hours",
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

    def test_the_picture_has_bars_as_long_as_classes_are_large(self):
        picture = np.asarray(draw_class_histogram("acts", self.COUNTS).convert("RGB")).astype(int)
        blue = (np.abs(picture - [169, 205, 234]).max(axis=2) < 8).sum(axis=1)
        red = (np.abs(picture - [243, 179, 171]).max(axis=2) < 8).sum(axis=1)
        tops = [30, 47, 64]  # the first pixel row of each bar, where no text is
        assert [blue[top] for top in tops] == [231, 116, 0]
        assert [red[top] for top in tops] == [0, 0, 231]

    def test_the_picture_of_400_classes_fits_a_screen(self):
        picture = draw_class_histogram("acts", {f"a class with a rather long name {n}": n for n in range(400)})
        assert picture.width < 2000 and picture.height < 1000
