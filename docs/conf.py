"""
Sphinx: the pages of this directory as HTML, and their examples run.

``make docs`` builds with warnings as errors.  The examples (``>>>``) run against the example project, whose settings
need no database until somebody asks it something; nothing here needs the network.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from posixpath import dirname, join, normpath

import django
from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example.settings")
django.setup()

from pgnotify_gql.version import __version__  # noqa: E402  (needs the path)

project = "pgnotify_gql"
project_copyright = "the authors of pgnotify_gql"
version = release = __version__
language = "en"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.doctest"]
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"pgnotify_gql {release}"
html_copy_source = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_display_short_literal_types = True

# What signatures name of other projects. Their own documentation is elsewhere, and builds need no network.
nitpick_ignore_regex = [
    (r"py:.*", r"(collections|datetime|enum|functools|typing|contextlib|concurrent|asyncio|threading)\..*"),
    (r"py:.*", r"(django|channels|graphene|graphql|asgiref|pytest|psycopg)\..*"),
    (r"py:.*", r"(Json|pgnotify_gql\.capture\.registry\.M)"),
    (
        r"py:.*",
        r"(Any|Model|Q|QuerySet|Callable|Awaitable|Iterable|Iterator|Mapping|Sequence|GraphQLResolveInfo|M|Self)",
    ),
    (r"py:.*", r"(datetime|HttpRequest|HttpResponse|int|str|bool|float|type|dict|list|tuple|None|object|Exception)"),
]


PAGE = re.compile(r"(?P<page>[A-Za-z./-]+)\.rst(?:#(?P<section>[a-z0-9-]+))?")
"""A plain link to another page, which leads there also where a file is read without Sphinx."""

AT_THE_TOP = {"README": "index", "CHANGELOG": "changelog", "CONTRIBUTING": "contributing", "SECURITY": "security"}
"""Pages that are files at the top of the repository, by the names of these."""


def resolve_plain_links(app: Sphinx, doctree: nodes.document) -> None:
    """
    Lead plain links (``delivery.rst#resuming``) to the pages that are built.

    One with a section needs the label that its section has: ``delivery-resuming``.
    """
    here = app.env.docname
    for link in list(doctree.findall(nodes.reference)):
        found = PAGE.fullmatch(link.get("refuri", ""))
        if found is None:
            continue
        name, section = found["page"], found["section"]
        inside = here not in AT_THE_TOP.values() or here == "index"
        page = normpath(join(dirname(here), name)) if inside else name.removeprefix("docs/")
        page = AT_THE_TOP.get(page.removeprefix("../"), page)
        role = {"refdomain": "std", "reftype": "doc", "reftarget": f"/{page}"}
        if section is not None:
            role = {"refdomain": "std", "reftype": "ref", "reftarget": f"{page}-{section}"}
        text = nodes.inline("", link.astext(), classes=["doc"])
        link.replace_self(
            addnodes.pending_xref(link.rawsource, text, refexplicit=True, refwarn=True, refdoc=here, **role)
        )


def remove_contents(app: Sphinx, doctree: nodes.document) -> None:
    """Remove tables of contents: the theme has its own beside each page, and says so in place of another."""
    for topic in list(doctree.findall(nodes.topic)):
        if "contents" in topic["classes"]:
            topic.parent.remove(topic)


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("doctree-read", remove_contents)
    app.connect("doctree-read", resolve_plain_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
