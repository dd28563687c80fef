"""How Sphinx builds the documentation: `make docs`."""

import logging
import os
import sys
from pathlib import Path

from sphinx.application import Sphinx

from finx_streamer._version import __version__

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "finx-streamer"
author = "FinX streamer contributors"
copyright = "2026 The finx-streamer authors"
release = version = __version__

extensions = ["myst_nb", "sphinx_copybutton", "reference", "markdown_pages"]
exclude_patterns = ["_build"]
nitpicky = True

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3

# The notebooks are stored without output, and run in each build against a local server.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 60
nb_merge_streams = True
# The live view's page would load its widget from the network. Its HTML is a picture of its last state.
nb_mime_priority_overrides = [("html", "text/html", 0), ("html", "image/svg+xml", 1)]

# Prompts and output aren't copied, and blocks of output have no button.
copybutton_selector = "div:not(.highlight-text):not(.highlight-none):not(.output) > div.highlight > pre"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = f"finx-streamer {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
# Each page is there as Markdown, see _ext/markdown_pages.py.
html_copy_source = False
html_show_sourcelink = True
html_theme_options = {"top_of_page_buttons": ["view"]}


def setup(app: Sphinx) -> None:
    """Give the notebooks' kernels a profile of their own, whose log has errors only."""
    profile = Path(app.outdir).parent / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text(f"c.IPKernelApp.log_level = {logging.ERROR}\n", encoding="utf-8")
    os.environ["IPYTHONDIR"] = str(profile.parent)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    logging.getLogger("traitlets").setLevel(logging.WARNING)
