# SPDX-License-Identifier: Apache-2.0
"""The folder of a Hugging Face Space that shows a model with the page of `cover demo`.

It has a copy of the package, so that the Space runs the code that it was made with. `hf upload org/name-demo FOLDER
--repo-type space` makes a Space of it.
"""

import re
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import modeling_cover
import yaml
from huggingface_hub.utils import validate_repo_id


# A Space's visitors come through proxies of private addresses, which tell the visitors' own.
_APP = '''"""The page of this Space; `modeling_cover.commands.demo` is what it does."""

import os

from modeling_cover.commands.demo import main


os.environ.setdefault("FORWARDED_ALLOW_IPS", "127.0.0.1,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16")
main({arguments!r})
'''


def check_space(folder: Path) -> None:
    """Raise what [`write_space`] would for a folder, before anything is published."""
    try:
        version("gradio")
    except PackageNotFoundError:
        raise ImportError(
            "gradio is not installed, which a Space runs with: it comes with `pip install modeling-cover[demo]`"
        ) from None
    app = folder / "app.py"
    is_space = app.is_file() and app.read_text(encoding="utf-8").startswith(_APP.splitlines()[0])
    if folder.exists() and not is_space and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: expected a new or an empty folder for the Space")


def write_space(folder: Path, model_id: str, revision: str | None = None, title: str | None = None) -> None:
    """Write the folder of a Space that shows a model of the Hub.

    Args:
        folder: which is made; if it is there, it must be empty or an earlier Space of this function, which is
            replaced.
        model_id: `org/name`; of a private model, the Space needs a secret HF_TOKEN.
        revision: a branch, a tag or a commit; by default the main branch.
        title: of the page.

    Raises:
        ImportError: if gradio is not installed.
        ValueError: if there can be no such model, or the folder has something in it.
    """
    check_space(folder)
    validate_repo_id(model_id)
    if "/" not in model_id:
        raise ValueError(f"{model_id}: expected org/name, as a Space is anybody's who looks at it")
    package = Path(modeling_cover.__file__).parent
    shutil.rmtree(folder / package.name, ignore_errors=True)
    shutil.copytree(package, folder / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    arguments = ["--model", model_id, *(["--revision", revision] if revision else []), "--host", "0.0.0.0"]
    (folder / "app.py").write_text(_APP.format(arguments=arguments), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(_requirements()) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(_card(model_id, title), encoding="utf-8")


def _requirements() -> list[str]:
    """What the package needs, and what its page needs but for gradio, which the Space's own settings name."""
    return sorted(requirement for requirement in requires("modeling-cover") if "extra ==" not in requirement)


def _card(model_id: str, title: str | None) -> str:
    name = model_id.rpartition("/")[2]
    settings = {
        "title": title or f"{name} demo",
        "emoji": "🎬",
        "colorFrom": "blue",
        "colorTo": "indigo",
        "sdk": "gradio",
        "sdk_version": re.match(r"[\d.]+", version("gradio"))[0],
        "python_version": "3.11",
        "app_file": "app.py",
        "models": [model_id],
        "license": "apache-2.0",
        "short_description": "Videos and pictures, with every head of a model",
    }
    front_matter = yaml.safe_dump(settings, allow_unicode=True, sort_keys=False)
    return (
        f"---\n{front_matter}---\n\nA page to try [{model_id}](https://huggingface.co/{model_id}) on: drop a video, and see "
        "what each head makes of it, over time, and where the model looked.\n"
    )
