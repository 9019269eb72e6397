# SPDX-License-Identifier: Apache-2.0
"""Publish a checkpoint on the Hugging Face Hub, so that anybody can load it with `from_pretrained("org/name")`.

    cover publish outputs/mine org/name [--dry_run] [--private] [--revision BRANCH] [--tag v1.0]

Uploads the weights (safetensors), configurations, the model's code, the model card and the training curves in one
commit. The model card is written if there is none. `--dry_run` lists these files, and what stays here, and uploads
nothing. If the network fails, the upload is tried again for some minutes. Log in first, with `hf auth login`.

`--space FOLDER` also writes a Space for the model, a page to try it on (`cover demo`), ready to be uploaded:

    cover publish outputs/mine org/name --space outputs/space
    hf upload org/name-demo outputs/space --repo-type space
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from ..hub.publishing import (
    LAST_CHECKPOINT,
    HubRepository,
    files_to_publish,
    publish,
    with_patience,
)
from ..text import byte_size, make_printable
from .failing import command_parser, told
from .space import check_space, write_space


def parse_arguments() -> argparse.Namespace:
    parser = command_parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="the folder of a checkpoint")
    parser.add_argument("repo_id", metavar="ORG/NAME", help="the repository on the Hub, created if need be")
    parser.add_argument("--private", action="store_true", default=None, help="only for you and your organisation")
    parser.add_argument(
        "--revision", metavar="BRANCH", help="the branch to upload to, created if need be; default: main"
    )
    parser.add_argument("--tag", help="a name for what is uploaded, which later uploads do not change")
    parser.add_argument("--message", default="Upload of a CoVeR checkpoint", help="the commit message")
    parser.add_argument(
        "--training_state",
        action="store_true",
        help=f"also upload what a run needs to resume, such as the optimizer's state, as {LAST_CHECKPOINT}",
    )
    parser.add_argument("--dry_run", action="store_true", help="list what would be uploaded, and upload nothing")
    parser.add_argument(
        "--space", type=Path, metavar="FOLDER", help="also write a Space for the model into this folder"
    )
    parser.add_argument("--patience", type=float, default=300, help="seconds to keep trying if the network fails")
    return parser.parse_args()


def print_plan(folder: Path, files: dict[str, Path | bytes], repository: HubRepository) -> None:
    visibility = ", private" if repository.private else ""
    print(f"To {repository.repo_id}, branch {repository.revision or 'main'}{visibility}:")
    for name, file in files.items():
        size = len(file) if isinstance(file, bytes) else file.stat().st_size
        written = "  (written for the upload)" if isinstance(file, bytes) else ""
        print(f"  {byte_size(size):>8}  {name}{written}")
    print(f"Not uploaded: {', '.join(left_here(folder, files)) or 'nothing'}")


def left_here(folder: Path, files: Iterable[str]) -> list[str]:
    """What of a folder is not among the files to upload; a folder of which nothing is, as one."""
    sent = {name.removeprefix(f"{LAST_CHECKPOINT}/") for name in files}
    partly = {folder / name.partition("/")[0] for name in sent if "/" in name}
    paths = [inner for path in folder.iterdir() for inner in (path.iterdir() if path in partly else [path])]
    names = {path.relative_to(folder).as_posix(): "/" * path.is_dir() for path in paths}
    return sorted(name + slash for name, slash in names.items() if name not in sent)


@told
def main() -> int:
    make_printable()
    arguments = parse_arguments()
    training_state = LAST_CHECKPOINT if arguments.training_state else None
    repository = HubRepository(arguments.repo_id, arguments.revision, arguments.private)
    if arguments.space is not None:  # before anything is published
        check_space(arguments.space)
    files = files_to_publish(arguments.folder, arguments.repo_id, training_state)
    repo_id = arguments.repo_id
    if arguments.dry_run:
        print_plan(arguments.folder, files, repository)
    else:
        commit = publish(arguments.folder, repository, arguments.message, training_state, arguments.patience)
        if arguments.tag is not None:
            with_patience(lambda: repository.tag(commit, arguments.tag), arguments.repo_id, arguments.patience)
        print(f"Published: {commit.commit_url}")
        repo_id = commit.repo_url.repo_id
    if arguments.space is not None:
        write_space(arguments.space, repo_id, arguments.revision)
        print(f"A Space for it is in {arguments.space}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
