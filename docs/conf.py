# SPDX-License-Identifier: Apache-2.0
"""How Sphinx makes a site of these pages and of the README: `make site`.

The pages are written for GitHub, and the docstrings for transformers' tools. Here their links and their marks become
those of Sphinx; nothing is written twice.
"""

import configparser
import dataclasses
import re
from collections import defaultdict
from pathlib import Path

import modeling_cover
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.util.inspect import signature as signature_of
from sphinx.util.inspect import stringify_signature


ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
METADATA = configparser.ConfigParser()
METADATA.read(ROOT / "setup.cfg")
# The pages that are not in this folder, and those that include them.
INCLUDED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}

project = "CoVeR for Transformers"
version = release = METADATA["metadata"]["version"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
smartquotes_action = "D"  # the dashes that napoleon writes; quotation marks stay as they are
nitpicky = True
# Classes of other libraries, and those of ours that are not public, are named but are not on the site.
nitpick_ignore_regex = [("py:(class|exc)", r"[\w.]+")]

html_theme = "furo"
html_title = project
html_static_path = html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
html_use_index = False
html_domain_indices = False

myst_heading_anchors = 4
add_module_names = False
autodoc_member_order = "bysource"
autodoc_default_options = {"exclude-members": "config_class, valid_kwargs, validate"}  # for transformers itself
autodoc_typehints_format = "short"
maximum_signature_line_length = 90
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = napoleon_numpy_docstring = False  # `docstring` below has it read them
napoleon_use_param = napoleon_use_rtype = False

FENCE = re.compile(r"^( *```.*?^ *```)$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])+)\]\(([^()\s#]+)(#[^()\s]*)?\)")
MARK = re.compile(
    r"``.+?``"
    r"|\[`~?(?P<name>[\w.]+)`\](?!\()"
    r"|\[(?P<label>[^\[\]]+)\]\((?P<url>https?://[^()\s]+)\)"
    r"|`(?P<code>[^`]+)`",
    re.DOTALL,
)


def links_of_the_site(text: str, folder: Path) -> str:
    """The text of a page in `folder` with the links that it has on the site.

    Pages lead to pages. Other files of the repository are not on the site: their paths stand in place of the links.
    """

    def link(match: re.Match) -> str:
        image, label, path, anchor = match[1], match[2], match[3], match[4] or ""
        target = folder / path
        if "://" in path or not target.exists():
            return match[0]  # if it is a file, Sphinx says that it is missing
        name = target.resolve().relative_to(ROOT).as_posix()
        if name in INCLUDED:
            return f"[{label}]({INCLUDED[name]}{anchor})"
        if name.startswith("docs/"):
            return f"{image}[{label}]({name.removeprefix('docs/')}{anchor})"
        return f"`{name}`" if name.endswith(label) else f"{label} (`{name}`)"

    return "".join(part if part.lstrip().startswith("```") else LINK.sub(link, part) for part in FENCE.split(text))


def read_page(app: Sphinx, docname: str, content: list[str]) -> None:
    content[0] = links_of_the_site(content[0], DOCS)
    if docname == "api":
        content[0] += reference()


def read_included(app: Sphinx, path: Path, docname: str, content: list[str]) -> None:
    content[0] = links_of_the_site(content[0], (DOCS / path).resolve().parent)


def reference() -> str:
    """The public names of the package under the folders of it that they are in, the model's first."""
    folders = defaultdict(list)
    for name in modeling_cover.__all__:
        folders[getattr(modeling_cover, name).__module__.split(".")[1]].append(name)
    text = ""
    for folder in sorted(folders, key=lambda folder: (folder != "model", folder)):
        text += f"\n## {folder.capitalize()}\n"
        for name in folders[folder]:
            directive = "autofunction" if not isinstance(getattr(modeling_cover, name), type) else "autoclass"
            options = "   :members:\n" if directive == "autoclass" else ""
            text += f"\n```{{eval-rst}}\n.. {directive}:: modeling_cover.{name}\n{options}```\n"
    return text


def signature(
    app: Sphinx, what: str, name: str, obj: object, options: object, arguments: str | None, result: str | None
) -> tuple[str | None, str | None]:
    """Of a class of fields, such as a configuration, its own fields: those of transformers' base class are many."""
    if what != "class" or not dataclasses.is_dataclass(obj):
        return arguments, result
    whole = signature_of(obj)
    own = [parameter for key, parameter in whole.parameters.items() if key in obj.__annotations__]
    whole = whole.replace(parameters=own)
    return stringify_signature(whole, show_return_annotation=False, unqualified_typehints=True), None


def docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings have the marks of markdown, as those of transformers do; autodoc reads reStructuredText."""
    if what == "class" and dataclasses.is_dataclass(obj):
        lines += help_of_fields(obj)
    parts = FENCE.split("\n".join(lines))
    text = "".join(code_block(part) if part.lstrip().startswith("```") else marks(part) for part in parts)
    # As an "object", since of an attribute it would take what is before the first colon for a type.
    lines[:] = GoogleDocstring(text, app.config, app, "object", name, obj, options).lines()


def help_of_fields(obj: type) -> list[str]:
    helped = [
        field for field in dataclasses.fields(obj) if field.name in obj.__annotations__ and "help" in field.metadata
    ]
    return ["", "Args:", *(f"    {field.name}: {field.metadata['help']}" for field in helped)] if helped else []


def code_block(fence: str) -> str:
    indent = " " * (len(fence) - len(fence.lstrip()))
    first, *code, _ = fence.splitlines()
    language = first.strip().removeprefix("```") or "text"
    return "\n".join([f"{indent}.. code-block:: {language}", "", *(f"    {line}" for line in code), ""])


def marks(text: str) -> str:
    def mark(match: re.Match) -> str:
        if match["url"]:
            rst = f"`{match['label']} <{match['url']}>`__"
        elif match["name"] in modeling_cover.__all__:
            rst = f":py:obj:`~modeling_cover.{match['name']}`"
        elif match["name"] or match["code"]:
            rst = f"``{match['name'] or match['code']}``"
        else:
            return match[0]
        return rst + "\\ " * text[match.end() : match.end() + 1].isalnum()

    return MARK.sub(mark, re.sub(r"^ *</?Tip.*>$", "", text, flags=re.MULTILINE))


def show_pictures(app: Sphinx, page: str, template: str, context: dict, doctree: object) -> None:
    """A link to a picture shows it; Sphinx would have the browser save it."""
    if "body" in context:
        context["body"] = context["body"].replace(' download=""', "")


def setup(app: Sphinx) -> None:
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("autodoc-process-signature", signature)
    app.connect("autodoc-process-docstring", docstring)
    app.connect("html-page-context", show_pictures)
