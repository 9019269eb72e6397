# SPDX-License-Identifier: Apache-2.0
"""What bars are in a terminal, and in a file."""

import io
import sys

import pytest
from modeling_cover import bars


class Screen(io.StringIO):
    def __init__(self, is_terminal: bool):
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.fixture
def drawn(monkeypatch):
    """What a bar over some rows writes, if a row takes as long as is said by the clock of tqdm."""

    def draw(is_terminal: bool, seconds: float, rows: int = 1000, **options) -> list[str]:
        screen, now = Screen(is_terminal), [0.0]
        monkeypatch.setattr(sys, "stderr", screen)
        with bars.bar(total=rows, desc="rows", **options) as progress:
            progress._time = lambda: now[0]
            progress.start_t = progress.last_print_t = 0.0
            for _ in range(rows):
                now[0] += seconds
                progress.update()
        return [line for line in screen.getvalue().split("\r") if line.strip()]

    return draw


def test_a_terminal_sees_it_move(drawn):
    assert len(drawn(True, seconds=0.01)) > 50


def test_a_file_has_a_state_every_half_minute_and_the_last(drawn):
    lines = drawn(False, seconds=0.3)
    assert 5 <= len(lines) <= 300 / bars.SECONDS_IN_A_FILE + 2
    assert "100%" in lines[-1]


def test_no_thread_says_a_state_again_in_between(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Screen(is_terminal=False))
    with bars.bar(total=100) as progress:
        progress.update(50)
        assert progress.miniters <= 1  # above it, tqdm's monitor would


def test_a_file_has_nothing_of_what_is_over_sooner(drawn):
    assert drawn(False, seconds=0.01) == []
