"""How Sphinx builds the documentation: `make docs`."""

from finx_streamer._version import __version__

project = "finx-streamer"
author = "FinX streamer contributors"
copyright = "2026 The finx-streamer authors"
release = version = __version__

extensions = ["myst_parser", "sphinx_copybutton", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}

html_theme = "furo"
html_extra_path = ["llms.txt"]
html_title = f"finx-streamer {release}"
