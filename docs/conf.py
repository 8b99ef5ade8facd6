"""Sphinx configuration: sphinx-build -W --keep-going docs build/docs."""

import os
import sys
import tempfile
from pathlib import Path

# Importing Airflow writes a configuration file; it must not be the reader's.
_airflow_home = tempfile.TemporaryDirectory(prefix="kie-docs-")
os.environ["AIRFLOW_HOME"] = _airflow_home.name
sys.path.insert(0, str(Path(__file__).parent))

from kie_provider import __version__  # noqa: E402

project = "airflow-provider-kie"
author = "The airflow-provider-kie authors"
copyright = "The airflow-provider-kie authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "error_reference", "scenario_table"]
exclude_patterns = ["benchmarks/*"]  # parts of benchmarks.md
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"airflow-provider-kie {release}"
html_static_path = ["_static"]
html_css_files = ["messages.css"]  # error messages are long
html_show_copyright = False
html_show_sphinx = False

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
