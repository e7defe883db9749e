"""How Sphinx makes a site of the documents: ``make site``.

The source directory is the checkout, so that the README is the first page and links between the documents lead where
they lead in the checkout.
"""

from typing import Final

from pygments.lexers.special import TextLexer
from sphinx.application import Sphinx

project = "zonefs_emu"
copyright = "The zonefs_emu developers"  # noqa: A001 - Sphinx' name for it
extensions = ["myst_parser"]
myst_heading_anchors = 3  # links to headings are checked, too
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "bench/*.md"]
exclude_patterns = [".*", "build"]
html_theme = "alabaster"
html_theme_options = {"description": "Zoned storage without the hardware", "page_width": "1100px"}
html_show_sourcelink = False
suppress_warnings = ["misc.highlighting_failure"]  # a command of several lines in a session

# Not in the README: a toctree is a directive of Sphinx, and readers of the file would see it.
_SECTIONS: Final = {
    "Tasks": ("vm", "without-root", "ci", "break"),
    "Use": (
        *("cli", "commands", "fuse", "vhost-user", "nvme", "attach", "scsi"),
        *("faults", "timing", "testing", "glossary"),
    ),
    "Inside": (
        *(
            "architecture",
            "state-machine",
            "image-format",
            "concurrency",
            "errors",
            "test-guest",
            "conformance",
            "mutants",
        ),
        *("/CONTRIBUTING", "/SECURITY", "/CHANGELOG", "/bench/results"),
    ),
}


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    # Shown as text: drawing these diagrams needs a script from the network.
    app.add_lexer("mermaid", TextLexer)
    app.connect("source-read", _add_contents)


def _add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the list of all pages to the first one."""
    if docname != app.config.root_doc:
        return
    for caption, names in _SECTIONS.items():
        pages = "\n".join(name if name.startswith("/") else f"/docs/{name}" for name in names)
        source[0] += f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"
