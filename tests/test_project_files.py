# SPDX-License-Identifier: Apache-2.0
"""The files at the top that people and machines read: they say what is so."""

import configparser
import re
from pathlib import Path

import pytest
import yaml
from test_importing import ROOMS


ROOT = Path(__file__).parents[1]


@pytest.fixture
def metadata():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config["metadata"]


def test_the_citation_is_the_papers_and_of_this_version(metadata):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == metadata["version"]
    assert citation["license"] == metadata["license"]
    paper, bibtex = citation["preferred-citation"], (ROOT / "README.md").read_text()
    authors = [f"{author['given-names']} {author['family-names']}" for author in paper["authors"]]
    assert f"author  = {{{' and '.join(authors)}}}" in bibtex
    for key in ("title", "journal", "year"):
        assert re.search(rf"{key} += " + re.escape(f"{{{paper[key]}}}"), bibtex), key


def test_the_newest_changes_are_those_of_this_version(metadata):
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert newest == metadata["version"].removesuffix(".dev0")


class TestContributing:
    TEXT = (ROOT / "CONTRIBUTING.md").read_text()

    def test_has_the_rooms_in_their_order(self):
        rooms = re.findall(r"^\| `(\w+)/` \|", self.TEXT, re.MULTILINE)
        assert tuple(rooms) == ROOMS

    def test_names_commands_and_files_that_there_are(self):
        makefile = (ROOT / "Makefile").read_text()
        for target in re.findall(r"^make (\S+)", self.TEXT, re.MULTILINE):
            assert f"\n{target}:" in makefile, target
        files = re.findall(r"(?:tests|docs|examples)/[\w/.]*|\.ci/run|setup\.cfg|constraints\.txt", self.TEXT)
        assert len(files) > 5
        for file in files:
            assert (ROOT / file.rstrip(".")).exists(), file
