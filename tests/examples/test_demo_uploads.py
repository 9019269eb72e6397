# SPDX-License-Identifier: Apache-2.0
"""How much the demo keeps of what its visitors send, and whose goes first."""

import io
import time

import pytest
from modeling_cover.commands.demo_uploads import GoneError, Room, TooMuchError, Uploads


ROOM = {"file_bytes": 100_000, "visitor_bytes": 250_000, "all_bytes": 400_000, "visitor_files": 4, "all_files": 6}


class TestRoom:
    def keep(self, uploads: Uploads, visitor: str, size: int) -> str:
        with uploads.arriving(visitor, "") as arriving:
            arriving.grow(size)
            return arriving.keep(io.BytesIO(bytes(size)), "a.mp4")

    def uploads(self, **room: float) -> Uploads:
        return Uploads(Room(**{**ROOM, **room}))

    def is_there(self, uploads: Uploads, path: str) -> bool:
        return uploads.size(path) is not None

    def test_a_visitors_oldest_goes_first_in_bytes_and_in_files(self):
        for size, number in ((90_000, 2), (10, 4)):
            uploads = self.uploads()
            other = self.keep(uploads, "b", 10)
            paths = [self.keep(uploads, "a", size) for _ in range(number + 1)]
            assert [self.is_there(uploads, path) for path in (other, *paths)] == [True, False] + [True] * number

    def test_of_all_the_one_with_most_gives_way(self):
        uploads = self.uploads()
        small = self.keep(uploads, "small", 1000)
        greedy = [self.keep(uploads, visitor, 90_000) for visitor in "aabb"]
        newest = self.keep(uploads, "new", 80_000)
        assert self.is_there(uploads, small) and self.is_there(uploads, newest)
        assert sum(self.is_there(uploads, path) for path in greedy) == 3
        assert uploads.num_bytes <= ROOM["all_bytes"]

    def test_what_is_looked_at_stays_and_nothing_more_is_taken(self):
        uploads = self.uploads(visitor_files=1)
        path = self.keep(uploads, "a", 10)
        with uploads.held(path) as file:
            with pytest.raises(TooMuchError, match="You have sent more than there is room for"):
                self.keep(uploads, "a", 10)
            assert file.read() == bytes(10)
        assert len(uploads) == 1
        self.keep(uploads, "a", 20)
        assert not self.is_there(uploads, path)

    def test_what_nobody_has_used_for_long_goes(self):
        uploads = self.uploads(kept_seconds=0)
        path = self.keep(uploads, "a", 10)
        with uploads.held(path):
            uploads.drop_old()
            assert len(uploads) == 1
        time.sleep(0.01)
        uploads.drop_old()
        assert len(uploads) == 0
        with pytest.raises(GoneError), uploads.held(path):
            pass

    def test_two_readers_have_two_positions(self):
        uploads = self.uploads()
        with uploads.arriving("a", "") as arriving:
            path = arriving.keep(io.BytesIO(bytes(range(200)) * 400), "a.mp4")
        with uploads.held(path) as first, uploads.held(path) as second:
            assert first.read(3) + second.read(4) + first.read(2) == bytes([0, 1, 2, 0, 1, 2, 3, 3, 4])
            assert second.seek(-1, io.SEEK_END) == 79_999
            assert (second.read(), second.read(), first.tell()) == (bytes([199]), b"", 5)
