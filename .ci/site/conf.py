"Sphinx for .ci/site.py, which writes what is read here"

from configparser import ConfigParser
from pathlib import Path

settings = ConfigParser(delimiters=["="])
settings.read(Path(__file__).parents[2] / "settings.ini", encoding="utf-8")
settings = settings["DEFAULT"]

project, author, copyright = settings["title"], settings["author"], settings["copyright"]
version = release = settings["version"]
extensions = ["myst_nb", "sphinx_copybutton"]
exclude_patterns = ["static"]

# the notebooks as they are: none is run
nb_execution_mode = "off"
nb_merge_streams = True
nb_render_markdown_format = "myst"
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence"]
myst_heading_anchors = 6

# long signatures have a line for each parameter
python_maximum_signature_line_length = 80
add_module_names = False
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# quotation marks stay as the notebooks have them: in the reference most are code
smartquotes = False

# nothing on a page comes from another host
mathjax_path = "mathjax/tex-chtml-full.js"

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["static", "../../_proc/source/static"]
html_css_files = ["style.css"]
html_favicon = "static/favicon.svg"
html_use_index = html_domain_indices = False  # the search finds every name
html_copy_source = False
html_show_sourcelink = False
html_theme_options = dict(
    home_page_in_toc=True,
    use_download_button=False,
    use_fullscreen_button=False,
    show_toc_level=2,
    navbar_persistent=[],
)
html_context = dict(default_mode="auto")
