# SPDX-License-Identifier: Apache-2.0
"""Headers of H.264 streams, changed as x264 would not write them."""

import re


# A sequence parameter set of profile "High", behind a start code or in an MP4 file's configuration record.
_PARAMETERS = re.compile(b"(?:\0\0\1|\xe1\0.)\x67(?=\x64)", re.DOTALL)


def without_usability(content: bytes) -> bytes:
    """The file with no word on how far its frames are out of order: that is in the part on usability (ISO 14496-10,
    annex E) of a parameter set, of which a bit says whether it is there."""
    changed = bytearray(content)
    for found in _PARAMETERS.finditer(content):
        bit = 8 * found.end() + _place_of_flag(content[found.end() : found.end() + 64])
        changed[bit // 8] &= ~(0x80 >> bit % 8)
    return bytes(changed)


def _place_of_flag(parameters: bytes) -> int:
    """The bit of a parameter set of progressive frames that says whether it has a part on usability."""
    bits, place = "".join(f"{byte:08b}" for byte in parameters), 24  # profile and level

    def number() -> int:
        nonlocal place
        zeros = bits.index("1", place) - place
        place += 2 * zeros + 1
        return int(bits[place - zeros - 1 : place], 2) - 1

    for _ in range(4):
        number()  # its own, colours, bits of brightness and of colour
    place += 2  # lossless, scaling matrix
    number()
    if number() == 0:  # how the order of frames is told
        number()
    number()  # references
    place += 1
    number()  # width
    number()  # height
    place += 2  # frames, not fields
    is_cropped = bits[place] == "1"
    place += 1
    for _ in range(4 if is_cropped else 0):
        number()
    return place
