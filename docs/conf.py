"""How Sphinx builds the site; `make docs` runs it, with warnings as errors."""

import os
import sys
from pathlib import Path

import crashsim

# What pages run is this installation, in a terminal of 88 columns.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ.update(COLUMNS="88", OMP_NUM_THREADS="1")
sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "crashsim"
author = "The crashsim developers"
project_copyright = author
version = release = crashsim.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    # in docs/extensions
    "mathml",
    "terminal",
    "docstrings",
    "command_line",
    "reference",
    "gallery",
]
exclude_patterns = ["_build", "extensions", "**/README.md"]
suppress_warnings = [
    "mystnb.unknown_mime_type",  # progress bars of notebooks
    "ref.python",  # one word, such as mean, is an attribute of several classes
]

# Pages
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "amsmath"]
myst_heading_anchors = 4
highlight_language = "text"
default_role = "code"
smartquotes = False  # --option is no dash

# What pages run: once, until their text changes.
nb_execution_mode = "cache"
nb_execution_raise_on_error = True
nb_execution_timeout = 240
nb_execution_in_temp = True
nb_merge_streams = True

# Reference
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_use_rtype = False
python_maximum_signature_line_length = 84
python_use_unqualified_type_names = True
add_module_names = False

# Look
html_theme = "furo"
html_title = "crashsim"
html_static_path = ["static"]
html_css_files = ["crashsim.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#7fb2ee", "color-brand-content": "#7fb2ee"},
}
copybutton_prompt_text = "$ "
copybutton_line_continuation_character = "\\"
