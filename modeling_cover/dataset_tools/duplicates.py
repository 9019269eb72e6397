# SPDX-License-Identifier: Apache-2.0
"""Which files are the same, by their bytes or by what they show.

A fingerprint is 256 signs of a clip's lowest spatial frequencies: 64 of each of 4 frames spread over it, or 128 of an
image, twice. Encoding again, scaling and a change of brightness or contrast leave nearly all of them as they are,
while those of different pictures agree by chance, in half of them. A mirrored, cropped or trimmed copy is another
picture.
"""

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


def near_groups(fingerprints: np.ndarray) -> np.ndarray:
    """The group (N,) of each of the fingerprints (N, 4), by its first: one differs from another by `TOLERANCE` bits or
    fewer.

    Two that differ in 15 bits are equal in one of 16 parts of 16 bits (Norouzi et al. 2012, Fast Search in Hamming
    Space with Multi-Index Hashing): so each part is sorted, and only those equal in it are compared. Time goes with
    the square of the number that share a part, memory with the number of all. Of equal ones, which share them all, the
    first stands for the others.
    """
    distinct, firsts, distinct_of = np.unique(fingerprints, axis=0, return_index=True, return_inverse=True)
    # In their order, not in that of their bits: so the first of a group is the first of all its fingerprints.
    order = np.argsort(firsts)
    groups = firsts[order][_near_groups_of_distinct(distinct[order])]
    return groups[np.argsort(order)[distinct_of.reshape(-1)]]


def _near_groups_of_distinct(fingerprints: np.ndarray) -> np.ndarray:
    """The index (N,) of the first of each one's group."""
    first_of = np.arange(len(fingerprints))

    def root(index: int) -> int:
        while (parent := first_of[index]) != index:
            first_of[index] = index = first_of[parent]
        return index

    for part in np.ascontiguousarray(fingerprints).view(np.uint16).T:
        order = np.argsort(part, kind="stable")
        ends = np.searchsorted(part[order], part[order], side="right")
        places, apart = np.arange(len(part)), 1
        while len(places := places[places + apart < ends[places]]):
            first, second = order[places], order[places + apart]
            differing = np.bitwise_count(fingerprints[first] ^ fingerprints[second]).sum(axis=1, dtype=np.int64)
            for pair in zip(first[differing <= TOLERANCE], second[differing <= TOLERANCE], strict=True):
                one, other = sorted(map(root, pair))
                first_of[other] = one
            apart += 1
    return np.array([root(index) for index in range(len(first_of))], dtype=np.int64)
