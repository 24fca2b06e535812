"""Settings of Sphinx for the documentation site: ``nox -s docs`` builds it."""

import sys
from pathlib import Path

import anomnorm_core

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "anomnorm"
author = "The anomnorm developers"
version = release = anomnorm_core.__version__
html_title = f"anomnorm {version}"

extensions = [
    "myst_parser",  # pages are Markdown, which reads well in the repository too
    "sphinx.ext.autodoc",  # the API reference comes from the docstrings
    "sphinx.ext.napoleon",  # which are in Google's style
    "docstrings",  # and say `type: meaning` nowhere
    "sphinx_copybutton",  # a button at code blocks that copies them without prompts
    "references",  # what is in single backticks in docstrings: links, checked
    "command_help",  # the options of the command line, from its own help
]
# Links between pages with their anchors, `page.md#heading`, are checked: a wrong one is a warning.
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", ".*"),  # the types in signatures, most of which are other libraries'
    ("py:exc", r"(?!anomnorm|\w*Error$|\w*Warning$).*"),
]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
autodoc_mock_imports = ["anomalib"]  # it asks for other versions of what the development environment has
napoleon_use_param = False  # several arguments may share one line of a docstring
napoleon_use_ivar = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

copybutton_prompt_text = "$ "
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
