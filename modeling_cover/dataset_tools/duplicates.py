# SPDX-License-Identifier: Apache-2.0
"""Which files are the same, by their bytes or by what they show.

A fingerprint is 256 signs of a clip's lowest spatial frequencies: 64 of each of 4 frames spread over it, or 128 of an
image, twice. Encoding anew, scaling and a change of brightness or contrast leave nearly all of them as they are, while
those of different pictures agree by chance, in half of them. A mirrored, cropped or trimmed copy is another picture.
"""

from collections.abc import Iterator

import numpy as np
import torch

from ..model.frame_sampling_cover import uniform_frame_indices


FINGERPRINT_WORDS = 4  # of 64 bits
TOLERANCE = 12  # bits in which fingerprints of copies may differ; the search below would find all of up to 15

_FRAMES = 4  # of a video
_SIDE = 32  # of the pictures that fingerprints are made of, in pixels
_LEAST_CONTRAST = 4.0  # standard deviation of their grey levels, of 0 to 255: in plainer ones the signs are noise


def fingerprint(frames: torch.Tensor, is_video: bool) -> np.ndarray | None:
    """The fingerprint (4,) uint64 of frames (T, 3, H, W), uint8; None if they are too plain to have one."""
    # Of an image no more than 128: higher frequencies are what a strong compression drops.
    frames = frames[uniform_frame_indices(len(frames), _FRAMES if is_video else 2)]
    grey = frames.float().mean(dim=1, keepdim=True)
    grey = torch.nn.functional.interpolate(grey, size=(_SIDE, _SIDE), mode="area")[:, 0]
    if grey.std(dim=(1, 2), correction=0).mean() < _LEAST_CONTRAST:
        return None
    waves = _cosines(_SIDE)
    spectrum = (waves @ grey.double() @ waves.T).flatten(start_dim=1).numpy()
    bits = spectrum[:, _lowest_frequencies(64 * FINGERPRINT_WORDS // len(frames))] > 0
    return np.packbits(bits).view(np.uint64)


def _cosines(side: int) -> torch.Tensor:
    """The discrete cosine transform (side, side), a wave a row, but for their norms."""
    places = torch.arange(side, dtype=torch.float64)
    return torch.cos(torch.pi / side * torch.outer(places, places + 0.5))


def _lowest_frequencies(count: int) -> np.ndarray:
    """Of a flattened spectrum, the waves of the lowest frequencies; not the first, which is the brightness."""
    vertical, horizontal = np.divmod(np.arange(_SIDE**2), _SIDE)
    return np.argsort(vertical**2 + horizontal**2, kind="stable")[1 : count + 1]


def equal_groups(keys: np.ndarray) -> Iterator[np.ndarray]:
    """The indices of each two or more rows of `keys` (N, K) that are equal."""
    if not len(keys):
        return
    order = np.lexsort(keys.T[::-1])
    starts = _starts(keys[order])
    ends = np.append(starts[1:], len(keys))
    for start, end in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
        yield np.sort(order[start:end])


def near_groups(fingerprints: np.ndarray) -> list[np.ndarray]:
    """The indices of fingerprints (N, 4) that belong together: each differs from another by `TOLERANCE` bits or fewer.

    Two that differ in 15 bits are equal in one of 16 parts of 16 bits (Norouzi et al. 2012, Fast Search in Hamming
    Space with Multi-Index Hashing): so each part is sorted, and only those equal in it are compared. Time goes with the
    square of the number that share a part, memory with the number of all. Of equal ones, which share them all, one stands
    for the others.
    """
    if not len(fingerprints):
        return []
    distinct, distinct_of = np.unique(fingerprints, axis=0, return_inverse=True)
    labels = np.arange(len(distinct))
    for group in _near_groups_of_distinct(distinct):
        labels[group] = group[0]
    return list(equal_groups(labels[distinct_of.reshape(-1), None]))


def _near_groups_of_distinct(fingerprints: np.ndarray) -> list[np.ndarray]:
    group_of = _Groups(len(fingerprints))
    for part in np.ascontiguousarray(fingerprints).view(np.uint16).T:
        order = np.argsort(part, kind="stable")
        starts = _starts(part[order, None])
        ends = np.repeat(np.append(starts[1:], len(part)), np.diff(np.append(starts, len(part))))
        places, apart = np.arange(len(part)), 1
        while len(places := places[places + apart < ends[places]]):
            first, second = order[places], order[places + apart]
            differing = np.bitwise_count(fingerprints[first] ^ fingerprints[second]).sum(axis=1, dtype=np.int64)
            for pair in zip(first[differing <= TOLERANCE], second[differing <= TOLERANCE], strict=True):
                group_of.join(*pair)
            apart += 1
    return group_of.of_several()


def _starts(ordered: np.ndarray) -> np.ndarray:
    """Where runs of equal rows start in `ordered` (N, K)."""
    is_new = np.ones(len(ordered), dtype=bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.flatnonzero(is_new)


class _Groups:
    """Indices that are joined pair by pair: each knows another of its group, and in the end the first."""

    def __init__(self, count: int):
        self._parents = np.arange(count)

    def join(self, first: int, second: int) -> None:
        first, second = sorted((self._root(first), self._root(second)))
        self._parents[second] = first

    def _root(self, index: int) -> int:
        while (parent := self._parents[index]) != index:
            self._parents[index] = index = self._parents[parent]
        return index

    def of_several(self) -> list[np.ndarray]:
        roots = np.array([self._root(index) for index in range(len(self._parents))], dtype=np.int64)
        return list(equal_groups(roots[:, None]))
