# SPDX-License-Identifier: Apache-2.0
"""WebDataset shards: tar files whose members belong together where their names are the same up to the first dot.

    shard-000.tar       a.mp4  a.cls  b.mp4  b.cls       two samples, a and b
    shard-001.tar       c.mp4  c.json                    one

A tar file is read by index: its headers say where each member lies, and a sample is then one read at an offset.
Nothing is extracted and nothing is written. A remote one is read in the same way, part by part.
"""

import errno
import glob
import json
import math
import os
import re
import resource
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
from transformers.utils import logging

from ...model.file_access_cover import base_name, is_address, public_name
from ...model.video_decoding_cover import VideoDecodingError
from ...recipe.dataset_recipe import DatasetRecipe
from .label_lists import LabelColumnBuilder, listed_names, split_labels
from .manifests import SplitRows
from .media import SUFFIXES, Media, Segments, check_content_size, parse_segment
from .remote import RemoteFile, find_remote, open_for_parts, size_of
from .streams import RowStream
from .tar_members import BrokenMemberError, Member, members_of, text_of


logger = logging.get_logger(__name__)

_COMPRESSED_SUFFIXES = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_LABEL_EXTENSIONS = ("cls", "json", "txt")
_MAX_OPEN_FILES = 200
_SHARE_OF_FILES = 8  # of the files that a process may have open, at most one in so many is a shard of one split
_HEADER_THREADS = 8  # on a network drive the headers wait for one another


class TarSample(NamedTuple):
    """One sample of a shard: where its file lies, its label as it is written there, and why that cannot be read."""

    shard: str
    member: str
    offset: int
    size: int
    label: Any
    start: float
    end: float
    problem: str | None = None


def find_shards(place: str) -> list[str]:
    """The .tar files of a folder, or all of a pattern ("train-{000..099}.tar", "train-*.tar"), here or elsewhere."""
    if is_address(place):
        return _find_remote_shards(place)
    if os.path.isdir(place):
        names = sorted(os.listdir(place))
        if compressed := [name for name in names if name.endswith(_COMPRESSED_SUFFIXES)]:
            raise ValueError(
                f"{os.path.join(place, compressed[0])} is compressed: decompress it, videos and images are"
            )
        paths = [os.path.join(place, name) for name in names if name.endswith(".tar")]
        shards = [path for path in paths if os.path.isfile(path)]
        if not shards:
            raise ValueError(f"no .tar files in {place}")
        return shards
    shards = []
    for pattern in expand_braces(place):
        is_name = os.path.isfile(pattern) or not glob.has_magic(pattern)
        found = [pattern] if is_name else sorted(glob.glob(pattern))
        if not found:
            raise ValueError(f"no files match {pattern}")
        shards += found
    if missing := [shard for shard in shards if not os.path.isfile(shard)]:
        raise ValueError(f"{missing[0]} is not a file, nor a folder of .tar files")
    return shards


def _find_remote_shards(place: str) -> list[str]:
    shards = []
    for pattern in expand_braces(place):
        found = find_remote(pattern, (".tar", *_COMPRESSED_SUFFIXES))
        if not found:
            raise ValueError(f"no .tar files in {public_name(pattern)}")
        shards += found
    if compressed := [shard for shard in shards if not base_name(shard).endswith(".tar")]:
        raise ValueError(f"{public_name(compressed[0])} is compressed: decompress it, videos and images are")
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        list(pool.map(size_of, shards))  # of a range every shard must be there, also where it is streamed
    return shards


def expand_braces(pattern: str) -> list[str]:
    """As a shell does: "a{00..02}" is a00, a01, a02, and "{a,b}c" is ac, bc."""
    braces = re.search(r"\{([^{}]*)\}", pattern)
    if braces is None:
        return [pattern]
    span = re.fullmatch(r"(\d+)\.\.(\d+)", braces[1])
    if span is not None:
        width = len(span[1]) if span[1].startswith("0") else 0
        parts = [f"{number:0{width}d}" for number in range(int(span[1]), int(span[2]) + 1)]
    elif "," in braces[1]:
        parts = braces[1].split(",")
    else:
        parts = []
    if not parts:
        raise ValueError(f"{pattern}: expected {{first..last}} or {{one,other}}, got {braces[0]}")
    before, after = pattern[: braces.start()], pattern[braces.end() :]
    return [name for part in parts for name in expand_braces(before + part + after)]


class ShardReader:
    """Reads the headers of shards, and of each sample all but its video or image.

    Args:
        dataset: which members are media, and under which keys of a .json member label and segment are.
        is_listed: whether there is a list of the classes, which says if a number is a class's name or its index.

    Raises:
        ValueError: from `samples`, if the shard is truncated, compressed or no tar file, or if one of its samples has
            no label, or more than one video or image. The message names the shard and the sample. A sample whose text
            cannot be read, such as broken JSON, is none of these: it has a `problem`, as one whose video is broken.
    """

    def __init__(self, dataset: DatasetRecipe, is_listed: bool):
        self._is_listed = is_listed
        self._suffixes = SUFFIXES[dataset.modality]
        self._modality = dataset.modality
        self._columns = {key: dataset.column(key) for key in ("label", "start", "end")}
        self._separator = dataset.label_separator if dataset.is_multi_label else None
        self._skips = dataset.missing_files == "skip"

    def samples(self, shard: str) -> tuple[list[TarSample], int]:
        """In the order of their first members; and how many were left out for want of a file, as the recipe says."""
        members: dict[str, dict[str, Member]] = {}
        name = public_name(shard)
        with open_for_parts(shard) as file:
            for member in members_of(name, file):
                key, extension = _key_and_extension(member.name)
                if key is None:
                    continue
                if extension in members.setdefault(key, {}):
                    raise ValueError(f"{name}/{member.name}: there is more than one member of that name")
                members[key][extension] = member
            found = [self._sample(shard, file, key, parts) for key, parts in members.items()]
        samples = [sample for sample in found if sample is not None]
        return samples, len(found) - len(samples)

    def _sample(self, shard: str, file: BinaryIO, key: str, parts: dict[str, Member]) -> TarSample | None:
        where = f"{public_name(shard)}/{key}"
        media = [extension for extension in parts if f".{extension.rpartition('.')[2]}" in self._suffixes]
        if not media and self._skips:
            return None
        if len(media) != 1:
            found = ", ".join(sorted(parts))
            message = f"{where}: expected one {self._modality} file, found the extensions {found}"
            raise ValueError(message + _hint_of_dots(parts))
        try:
            texts = {
                extension: text_of(file, extension, parts[extension])
                for extension in _LABEL_EXTENSIONS
                if extension in parts
            }
            label, start, end = self._annotation(texts)
            problem = None
        except ValueError as error:
            problem = f"{where}: {error}{_hint_of_dots(parts)}"
            if not isinstance(error, BrokenMemberError):
                raise ValueError(problem) from error
            label, start, end = None, math.nan, math.nan
        member = parts[media[0]]
        return TarSample(shard, member.name, member.offset, member.size, label, start, end, problem)

    def _annotation(self, texts: dict[str, str]) -> tuple[Any, float, float]:
        fields = _json_in(texts["json"]) if "json" in texts else {}
        if not isinstance(fields, dict):
            raise ValueError(f"expected an object in the .json member, got {fields!r}")
        given = [column for key, column in self._columns.items() if column is not None and key != "label"]
        if missing := [column for column in given if column not in fields]:
            raise ValueError(f"no {missing} in the .json member, found {list(fields)}")
        start, end = parse_segment(fields.get(self._columns["start"]), fields.get(self._columns["end"]))
        if "cls" in texts:
            label = self._label_of_text(texts["cls"])
        elif "json" in texts:
            if self._columns["label"] not in fields:
                raise ValueError(f"no '{self._columns['label']}' in the .json member, found {list(fields)}")
            label = fields[self._columns["label"]]
        elif "txt" in texts:
            label = self._label_of_text(texts["txt"])
        else:
            raise ValueError("no label: expected a .cls, .json or .txt member")
        return label, start, end

    def _label_of_text(self, text: str) -> Any:
        if self._separator is not None:
            return [self._name_or_index(label) for label in split_labels(text, self._separator)]
        return self._name_or_index(text.strip())

    def _name_or_index(self, text: str) -> str | int:
        return int(text) if text.isdecimal() and not self._is_listed else text


def _json_in(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError as error:
        raise BrokenMemberError("its .json member is too deeply nested") from error
    except ValueError as error:  # beside what is no JSON, numbers of thousands of digits
        raise BrokenMemberError(f"its .json member cannot be read: {error}") from error


def _hint_of_dots(extensions: Iterable[str]) -> str:
    """For a message about a sample some of whose members have a dot in what its author took for their name."""
    dotted = next((extension for extension in sorted(extensions) if "." in extension), None)
    if dotted is None:
        return ""
    return f" (the name of a sample ends at its first dot, behind which here is '{dotted}': rename its files)"


def _key_and_extension(name: str) -> tuple[str, str] | tuple[None, None]:
    """The name up to the first dot of its last part, and what follows the dot; neither of a hidden file."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and extension else (None, None)


class _OpenFile:
    """A file that is closed when nobody refers to it any more."""

    def __init__(self, path: str):
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if "descriptor" in self.__dict__:
            os.close(self.descriptor)

    def read_at(self, offset: int, size: int) -> bytes:
        return os.pread(self.descriptor, size, offset)


class _OpenFiles:
    """The files read last, kept open. Reading at an offset moves nothing that processes share: a fork may use them."""

    def __init__(self):
        self._files: OrderedDict[str, _OpenFile | RemoteFile] = OrderedDict()

    def __getstate__(self) -> dict:
        return {"_files": OrderedDict()}

    def read(self, path: str, offset: int, size: int) -> bytes:
        """Raises a `VideoDecodingError` if the file ends before that, or is remote and cannot be fetched."""
        file = self._files.pop(path, None) or self._opened(path)
        self._files[path] = file
        while len(self._files) > min(_MAX_OPEN_FILES, _allowed_files() // _SHARE_OF_FILES):
            self._files.popitem(last=False)
        parts = []
        while size > 0 and (part := file.read_at(offset, size)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        if size > 0:
            raise VideoDecodingError(
                f"{public_name(path)} ends {size} bytes early: it has changed since it was opened"
            )
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _opened(self, path: str) -> "_OpenFile | RemoteFile":
        if is_address(path):
            return RemoteFile(path)
        try:
            return _OpenFile(path)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            self._files.clear()  # its own are not what it fails for
            return _OpenFile(path)


def _allowed_files() -> int:
    """How many files this process may have open: 1024 as a rule, less on a shared machine."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


class TarMedia(Sequence):
    """The videos or images of all shards, each read at its offset.

    Each row has the index of its shard, the place of its file in it, in bytes, and its name there. `problems` says why
    a row cannot be read.
    """

    def __init__(
        self,
        shards: Sequence[str],
        shard_of: np.ndarray,
        offsets: np.ndarray,
        sizes: np.ndarray,
        members: pa.ChunkedArray,
        segments: Segments | None = None,
        problems: Mapping[int, str] | None = None,
    ):
        self._problems = problems or {}
        self._shards = list(shards)
        self._shard_of, self._offsets, self._sizes = shard_of, offsets, sizes
        self._members = members
        self._segments = segments or Segments()
        self._files = _OpenFiles()

    def __len__(self) -> int:
        return len(self._offsets)

    def identity(self) -> list[bytes]:
        """Bytes that change with any member's name, place or segment."""
        names = "\0".join(self._members.to_pylist()).encode(errors="surrogateescape")
        return [names, self._offsets.tobytes(), self._sizes.tobytes(), *self._segments.identity()]

    def file_keys(self) -> list[str]:
        """What tells the file of each row from others, wherever the shards lie: a sample's is its own."""
        names = [base_name(shard) for shard in self._shards]
        members = zip(self._shard_of.tolist(), self._members.to_pylist(), strict=True)
        return [f"{names[shard]}/{member}" for shard, member in members]

    def __getitem__(self, row: int) -> Media:
        if row in self._problems:
            raise VideoDecodingError(self._problems[row])
        shard = self._shards[self._shard_of[row]]
        name = f"{public_name(shard)}/{self._members[row].as_py()}"
        check_content_size(int(self._sizes[row]), name)
        content = self._files.read(shard, int(self._offsets[row]), int(self._sizes[row]))
        return Media(content, name, *self._segments[row])


class TarRowReader:
    """Reads the file of a streamed row, a `TarSample` as a dictionary, in whichever process it is wanted."""

    def __init__(self):
        self._files = _OpenFiles()

    def __call__(self, row: Mapping[str, Any], place: str) -> tuple[Media, Any]:
        """The file of a row and its label; a tar file's row knows its own place."""
        sample = TarSample(**row)
        if sample.problem is not None:
            raise VideoDecodingError(sample.problem)
        name = f"{public_name(sample.shard)}/{sample.member}"
        check_content_size(sample.size, name)
        content = self._files.read(sample.shard, sample.offset, sample.size)
        start, end = Segments([sample.start], [sample.end])[0]
        return Media(content, name, start, end), sample.label


def read_shards(dataset: DatasetRecipe, split: str, place: str) -> SplitRows:
    """All samples of the shards, by index."""
    shards = find_shards(place)
    names = listed_names(shards)
    reader = ShardReader(dataset, is_listed=dataset.labels is not None or names is not None)
    labels = LabelColumnBuilder(dataset.is_multi_label)
    counts, members, skipped, problems = array("q"), [], 0, {}
    offsets, sizes, starts, ends = array("q"), array("q"), array("d"), array("d")
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        for samples, without_file in pool.map(reader.samples, shards):
            skipped += without_file
            counts.append(len(samples))
            members.append(pa.array([sample.member for sample in samples], type=pa.large_string()))
            for sample in samples:
                try:
                    if sample.problem is None:
                        labels.append(sample.label)
                    else:
                        problems[len(offsets)] = sample.problem
                        labels.append_none()
                except ValueError as error:
                    raise ValueError(f"{public_name(sample.shard)}/{sample.member}: {error}") from error
                offsets.append(sample.offset)
                sizes.append(sample.size)
                starts.append(sample.start)
                ends.append(sample.end)
    if not offsets:
        raise ValueError(f"no {dataset.modality} files in the {len(shards)} shards of {public_name(place)}")
    if skipped:
        logger.warning(f"dataset '{dataset.name}', {split} split: {skipped} samples without a file are left out")
    media = TarMedia(
        shards,
        np.repeat(np.arange(len(shards), dtype=np.int32), counts),
        np.array(offsets, dtype=np.int64),
        np.array(sizes, dtype=np.int64),
        pa.chunked_array(members).combine_chunks(),
        None if dataset.column("start") is None and dataset.column("end") is None else Segments(starts, ends),
        problems,
    )
    return SplitRows(media=media, labels=labels.build(), names=names, roots=tuple(map(public_name, shards)))


def _stream_samples(shards: list[str], reader: ShardReader) -> Iterator[dict[str, Any]]:
    """The samples of one shard after another, as dictionaries. Their files are not read."""
    for shard in shards:
        for sample in reader.samples(shard)[0]:
            yield sample._asdict()


def stream_shards(dataset: DatasetRecipe, place: str) -> RowStream:
    """The train split, shard by shard; the headers of a shard are read when its turn comes."""
    shards = find_shards(place)
    names = listed_names(shards)
    reader = ShardReader(dataset, is_listed=dataset.labels is not None or names is not None)
    rows = datasets.IterableDataset.from_generator(_stream_samples, gen_kwargs={"shards": shards, "reader": reader})
    roots, place = tuple(map(public_name, shards)), public_name(place)
    return RowStream(rows=rows, read=TarRowReader(), place=place, names=names, size=None, roots=roots)
