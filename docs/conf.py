"""How Sphinx builds the documentation: `make docs`."""

import inspect
from typing import Any

from finx_streamer import StreamListener
from finx_streamer._version import __version__

project = "finx-streamer"
author = "FinX streamer contributors"
copyright = "2026 The finx-streamer authors"
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}

# `**not_yet` only takes what is refused by name.
constructor: Any = StreamListener.__init__
signature = inspect.signature(constructor)
constructor.__signature__ = signature.replace(
    parameters=[known for known in signature.parameters.values() if known.kind is not known.VAR_KEYWORD]
)

html_theme = "furo"
html_title = f"finx-streamer {release}"
