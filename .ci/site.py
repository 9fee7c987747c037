"""Build the documentation site into _docs/ from the notebooks as they are committed.

No notebook is run and nothing of the library is imported. A bridge writes the notebooks for MyST-NB
(directives, links, alternative text) and the API reference from the exported modules; Sphinx makes
pages of both, with warnings as errors; then every internal link of every page is followed. The
parts of the sidebar are those of the map in nbs/index.ipynb. Nothing is done if _docs/ was made of
what is there now.

`nbdev_docs` would want Quarto, run every import and hide the exported code, which this book is
about."""

import argparse
import ast
import hashlib
import html.parser
import importlib.util
import io
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
from myst_parser.slugs import github_slugify

root = Path(__file__).resolve().parents[1]
nbs, site, work = root / "nbs", root / "_docs", root / "_proc"
source = work / "source"


# what there is


def notebooks(folder="."):
    "Notebooks of one folder in nbs/, in the order of the numbers in their names"

    def order(path):
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.stem)]

    found = [path for path in (nbs / folder).glob("*.ipynb")]
    return sorted(found, key=lambda path: (not path.stem.startswith("quickstart"), order(path)))


def parts():
    "The parts of the map that nbs/index.ipynb shows: chapters and tutorials by heading, in order"
    index = nbformat.read(nbs / "index.ipynb", 4)
    outputs = [output for cell in index.cells for output in cell.get("outputs", ())]
    shown = "\n".join(
        o.data["text/markdown"] for o in outputs if "text/markdown" in o.get("data", ())
    )
    found = {}
    for heading, text in re.findall(r"^\*\*(.+?)\.?\*\*(.*?)(?=^\*\*|\Z)", shown, re.M | re.S):
        found[heading] = re.findall(r"^\| \[[^\]]+\]\(([\w/]+)\.ipynb\)", text, re.M)
    return found


def digest():
    "What the site is made of, as one hex number"
    h = hashlib.sha256()
    folders = [
        nbs.rglob("*.ipynb"),
        (root / "hydramix_nb").glob("*.py"),
        (root / ".ci").rglob("*"),
        (root / "results").rglob("*"),
        [root / name for name in ("CONTRIBUTING.md", "LICENSE", "settings.ini")],
    ]
    for path in sorted(
        path
        for files in folders
        for path in files
        if path.is_file() and ".ipynb_checkpoints" not in path.parts and path.suffix != ".pyc"
    ):
        h.update(
            f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return h.hexdigest()


# the library, read from its source


def comments(text):
    "The comment that ends each line, by line number"
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {
        token.start[0]: token.string.lstrip("# ").rstrip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }


class Symbol:
    "A function, class or constant of a module as its source states it"

    def __init__(self, node, notes, name, owner=None):
        self.name, self.node, self.members, self.parameters, self.returns = (
            name,
            node,
            [],
            [],
            ("", ""),
        )
        self.doc = ast.get_docstring(node) or "" if not isinstance(node, ast.Assign) else ""
        if isinstance(node, ast.Assign):
            self.kind, self.signature = "data", ""
        elif isinstance(node, ast.ClassDef):
            self.read_class(notes)
        else:
            decorators = {getattr(d, "id", "") for d in node.decorator_list}
            self.kind = (
                "function"
                if owner is None
                else "property"
                if decorators & {"property", "cached_property"}
                else "method"
            )
            self.static = bool(decorators & {"staticmethod"})
            self.read_function(node, notes, bound=owner is not None and not self.static)
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            self.signature = "" if self.kind == "property" else self.signature + returns

    def read_class(self, notes):
        "A dataclass is made from its fields, another class by its __init__"
        self.kind, self.signature, self.static = "class", "", False
        functions = {n.name: n for n in self.node.body if isinstance(n, ast.FunctionDef)}
        if any("dataclass" in ast.unparse(d) for d in self.node.decorator_list):
            fields = [n for n in self.node.body if isinstance(n, ast.AnnAssign)]
            self.parameters = [
                (
                    n.target.id,
                    ast.unparse(n.annotation),
                    "" if n.value is None else ast.unparse(n.value),
                    notes.get(n.end_lineno, ""),
                )
                for n in fields
            ]
            self.signature = ""  # its fields are the table
        elif "__init__" in functions:
            self.read_function(functions["__init__"], notes, bound=True)
        self.returns = "", ""
        members = [
            Symbol(n, notes, f"{self.name}.{n.name}", self)
            for n in functions.values()
            if not n.name.startswith("_") or n.name in ("__call__", "__getitem__")
        ]
        self.members = [
            m for m in members if m.doc or m.returns[1] or any(note for *_, note in m.parameters)
        ]

    def read_function(self, node, notes, bound):
        "Parameters and what is returned, each with the comment behind it"
        a = node.args
        if bound:
            (a.posonlyargs or a.args)[:1] = []
        positional = a.posonlyargs + a.args
        defaults = [None] * (len(positional) - len(a.defaults)) + a.defaults
        every = [
            *zip(positional, defaults, strict=True),
            *([(a.vararg, None)] if a.vararg else []),
            *zip(a.kwonlyargs, a.kw_defaults, strict=True),
            *([(a.kwarg, None)] if a.kwarg else []),
        ]
        ends = [max(arg.end_lineno, default.end_lineno if default else 0) for arg, default in every]
        last, body = max(ends, default=node.lineno), node.body[0].lineno
        line = next(
            (n for n in range(last + 1, body) if n in notes),
            last if last == node.lineno < body else None,
        )
        self.returns = ast.unparse(node.returns) if node.returns else "", notes.get(line, "")
        for i, ((arg, default), end) in enumerate(zip(every, ends, strict=True)):
            note = "" if end == line or end in ends[i + 1 :] else notes.get(end, "")
            stars = "*" if arg is a.vararg else "**" if arg is a.kwarg else ""
            self.parameters.append(
                (
                    stars + arg.arg,
                    ast.unparse(arg.annotation) if arg.annotation else "",
                    ast.unparse(default) if default else "",
                    note,
                )
            )
        self.signature = f"({ast.unparse(a)})"


class Module:
    "An exported module: its public symbols, its notebook, and the cell that exports each symbol"

    def __init__(self, path):
        text = path.read_text(encoding="utf-8")
        tree, notes = ast.parse(text), comments(text)
        self.name, self.doc = path.stem, ast.get_docstring(tree) or ""
        stated = next(
            (
                n.value
                for n in tree.body
                if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"
            ),
            None,
        )
        public = ast.literal_eval(stated) if stated else []
        origin = re.findall(r"^# %% \.\./(nbs/\S+\.ipynb) #(\S+)", text, re.M)
        self.notebook = origin[0][0] if origin else None
        lines = [
            (i, m[1])
            for i, line in enumerate(text.splitlines(), 1)
            if (m := re.match(r"# %% \S+ #(\S+)", line))
        ]
        self.symbols, self.cells, self.imported = {}, {}, {}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom):
                place = (node.module or "").removeprefix("hydramix_nb.")
                self.imported |= {alias.name: place for alias in node.names}
            name = (
                getattr(node, "name", "")
                or (isinstance(node, ast.Assign) and getattr(node.targets[0], "id", ""))
                or ""
            )
            if name not in public:
                continue
            self.symbols[name] = Symbol(node, notes, name)
            self.cells[name] = max((line, cell) for line, cell in lines if line < node.lineno)[1]

    def names(self):
        "Everything a text can name: symbols, and members as Class.member"
        return {
            *self.symbols,
            *(member.name for symbol in self.symbols.values() for member in symbol.members),
        }


class Library:
    def __init__(self):
        self.modules = {
            path.stem: Module(path)
            for path in sorted((root / "hydramix_nb").glob("*.py"))
            if not path.stem.startswith("_")
        }
        self.owners = {}
        for module in self.modules.values():
            for name in module.names():
                self.owners.setdefault(name, []).append(module.name)
        self.books = {path.stem: path.name for path in notebooks()}

    def doclink(self, text, own=None):
        """A link for code in the prose that names a symbol or a notebook; None for all other code

        Of two owners of a name it is the page's own module."""
        if text in self.books and text != "index":
            return f"[`{text}`](/{self.books[text]})"
        name = text.removesuffix("()").removeprefix("hydramix_nb.")
        module, _, rest = name.partition(".")
        if rest and module in self.modules and rest in self.modules[module].names():
            name = rest
        elif own in self.owners.get(name, []):
            module = own
        elif len(self.owners.get(name, [])) == 1:
            (module,) = self.owners[name]
        else:
            return None
        return f"{{py:obj}}`{text} <hydramix_nb.{module}.{name}>`"


# notebooks

FENCE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)\s*$|\$\$.*?\$\$)", re.M | re.S)
CODE = re.compile(r"(?<![\[`}])`([^`\n]+)`(?![\]`])")
LINK = re.compile(r'(\]\(|(?:src|href)=")([^)"\s]+)')


def here(target, folder, depth):
    """A link of a text in `folder`, as seen from the root, for the page that the text is on

    The page lies `depth` folders deep in the site's source."""
    if re.match(r"[a-z]+:", target):
        return target
    path, hash_, fragment = target.partition("#")
    fragment = github_slugify(unquote(fragment))
    if not path:
        return hash_ + fragment
    path = posixpath.normpath(posixpath.join(folder, path))
    if path == "nbs" or path == "README.md":
        path = "nbs/index.ipynb"
    if path.startswith("nbs/"):
        path = f"/{path[4:]}" + ("/index.md" if (root / path).is_dir() else "")
    elif path in ("CONTRIBUTING.md", "LICENSE"):
        path = f"/{path.removesuffix('.md')}.md"
    elif path.startswith("hydramix_nb") and path.endswith((".py", "nb")):
        path = f"/api/{Path(path).stem.replace('hydramix_nb', 'index')}.md"
    else:
        path = "../" * (depth + 2) + path
    return path + hash_ + fragment


def markdown(text, library, folder, depth, own=None):
    """Markdown of a notebook as MyST: callouts, Quarto's link attributes, links, doclinks

    Code, mathematics and headings stay as they are."""
    text = re.sub(r"^(:{3,})\s*\{\s*\.callout-(\w+)[^}]*\}", r"\1{\2}", text, flags=re.M)
    text = re.sub(r"(\]\([^)]*\))\{[^}\n]*\}", r"\1", text)
    pieces = FENCE.split(text)
    for i, piece in enumerate(pieces):
        if i % 2:
            continue
        piece = LINK.sub(lambda m: m[1] + here(m[2], folder, depth), piece)
        lines = [
            line
            if line.startswith("#")
            else CODE.sub(lambda m: library.doclink(m[1], own) or m[0], line)
            for line in piece.split("\n")
        ]
        pieces[i] = "\n".join(lines)
    return "".join(pieces)


def plain(text):
    "Markdown without its marks, on one line"
    text = FENCE.sub(" ", text)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^\s*(?:#+|>|[-*]|\d+\.)\s+", "", text, flags=re.M)
    text = re.sub(
        r"\\[,;! ]",
        "",
        re.sub(
            r"\\([a-zA-Z]+)",
            r"\1",
            re.sub(r"\\(?:math|text|operatorname)\w*\{([^}]*)\}", r"\1", text),
        ),
    )
    return re.sub(r"\s+", " ", re.sub(r"\*\*|\$|`|(?<!\w)[*_]|[*_](?!\w)", "", text)).strip()


def describe(heading, prose, longest=300):
    """Alternative text of a figure: its section, and the last sentences before it

    In a first cell it is the line of what the notebook is."""
    if line := re.match(r"#\s+.*\n\s*>\s*(.+)", prose):
        prose = line[1]
    paragraphs = [
        p
        for p in re.split(r"\n\s*\n", FENCE.sub("\n\n", prose))
        if not re.match(r"\s*(#|\||:::)", p) and plain(p)
    ]
    sentences = (
        re.split(r"(?<=[.:?!])\s+(?=[A-Z“\"(])", plain(paragraphs[-1])) if paragraphs else []
    )
    while len(sentences) > 1 and len(" ".join(sentences)) > longest:
        sentences.pop(0)
    text = " ".join(sentences)
    if len(text) > longest:
        text = text[:longest].rsplit(" ", 1)[0] + " …"
    return ": ".join(part for part in (heading, text.rstrip(":")) if part)


def bridge(nb, library, folder="nbs", own=None):
    "A notebook of `folder` as the site shows it; `own` is the module that it exports"
    depth = folder.count("/")
    cells, heading, prose = [], "", ""
    for cell in nb.cells:
        said = dict(re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", cell.source, re.M))
        if (
            "hide" in said
            or "default_exp" in said
            or said.get("include") == "false"
            or not cell.source.strip()
        ):
            continue
        cell.source = re.sub(r"^#\|.*\n?|^.*#\|\s*hide_line\s*\n?", "", cell.source, flags=re.M)
        if cell.cell_type == "markdown":
            for line in re.findall(r"^#+\s+(.*)$", FENCE.sub("", cell.source), re.M):
                heading = plain(line)
            prose = cell.source
            cell.source = markdown(cell.source, library, folder, depth, own)
        elif cell.cell_type == "code":
            tags = cell.metadata.setdefault("tags", [])
            if said.get("echo") == "false":
                tags.append("remove-input")
            if said.get("output") == "false":
                tags.append("remove-output")
            if "code-fold" in said:
                tags.append("hide-input")
            alt = said.get("fig-alt", "").strip("\"' ") or describe(heading, prose)
            cell.metadata["mystnb"] = {"image": {"alt": alt}}
            for data in (o.data for o in cell.outputs if "text/markdown" in o.get("data", ())):
                data["text/markdown"] = markdown(data["text/markdown"], library, folder, depth, own)
            if not cell.source.strip():
                continue
        cells.append(cell)
    nb.cells = cells
    return nb


def headings(path):
    "For each cell of a notebook the heading it stands under"
    found, heading = {}, ""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "markdown":
            for line in re.findall(r"^#+\s+(.*)$", FENCE.sub("", cell.source), re.M):
                heading = plain(line)
        found[cell.id] = heading
    return found


def title(path):
    "Name and description of a notebook, which its first cell states"
    name, _, rest = nbformat.read(path, 4).cells[0].source.partition("\n")
    described = re.search(r"^>\s*(.+)", rest, re.M)
    return name.lstrip("# "), described[1] if described else ""


# pages that no notebook has


def escape(text, library, own=None, names=()):
    "Text of a comment or docstring as Markdown: code is linked, everything else stands for itself"
    pieces = re.split(r"`([^`\n]+)`", text)
    for i, piece in enumerate(pieces):
        if i % 2:
            pieces[i] = (
                library.doclink(piece, own) if piece not in names else None
            ) or f"`{piece}`"
        else:
            pieces[i] = re.sub(r"([\\*_\[\]<>$|#~{}])", r"\\\1", piece)
    return "".join(pieces)


def with_owners(signature, library, module):
    "A signature in which a class that several modules have is named with the one it comes from"
    for name, place in module.imported.items():
        if name[0].isupper() and name in getattr(library.modules.get(place), "symbols", ()):
            if len(library.owners[name]) > 1:
                full = f"hydramix_nb.{place}.{name}"
                signature = re.sub(rf"(?<![\w.]){name}(?![\w(.])", full, signature)
    return signature


def entry(symbol, library, module, fence="::::::"):
    "One symbol in the reference: signature, docstring, parameters, what is returned, members"
    names = {name.lstrip("*") for name, *_ in symbol.parameters}
    signature = with_owners(symbol.signature, library, module)
    lines = [f"{fence}{{py:{symbol.kind}}} {symbol.name}{signature}"]
    if getattr(symbol, "static", False):
        lines.append(":staticmethod:")
    if symbol.kind == "property" and symbol.returns[0]:
        lines.append(f":type: {symbol.returns[0]}")
    lines += ["", escape(symbol.doc, library, module.name, names), ""]
    if symbol.kind == "data":
        value = ast.unparse(symbol.node.value)
        if len(value) < 200:
            lines += [f"`{value}`", ""]
        elif isinstance(symbol.node.value, ast.Dict) and all(
            isinstance(key, ast.Constant) for key in symbol.node.value.keys
        ):
            lines += [
                "A dictionary of " + ", ".join(f"`{key.value}`" for key in symbol.node.value.keys),
                "",
            ]
    if any(note for *_, note in symbol.parameters):
        lines += ["| parameter | meaning |", "|---|---|"]
        for name, kind, default, note in symbol.parameters:
            whole = (
                f"`{name}"
                + (f": {kind}" if kind else "")
                + (f" = {default}" if default else "")
                + "`"
            )
            lines.append(
                "| "
                + whole.replace("|", "\\|")
                + f" | {escape(note, library, module.name, names)} |"
            )
        lines.append("")
    if any(symbol.returns) and symbol.kind != "property":
        kind, note = symbol.returns
        lines += [
            "**Returns** "
            + " · ".join(
                part
                for part in (f"`{kind}`" if kind else "", escape(note, library, module.name, names))
                if part
            ),
            "",
        ]
    elif symbol.kind == "property" and symbol.returns[1]:
        lines += [escape(symbol.returns[1], library, module.name), ""]
    for member in symbol.members:
        lines += entry(member, library, module, fence[:-1])
    return [*lines, fence, ""]


def source_of(module, heading=""):
    "A link to the notebook that a module is written from, or to a section of it"
    place = f"#{github_slugify(heading)}" if heading else ""
    return f"[{Path(module.notebook).stem}](</{module.notebook[4:]}{place}>)"


def reference(module, library):
    "The page of a module"
    lines = [
        f"# {module.name}",
        "",
        f"> {escape(module.doc, library)}",
        "",
        f"```{{py:module}} hydramix_nb.{module.name}",
        "```",
        "",
        f"`from hydramix_nb.{module.name} import …`, written from {source_of(module)}.",
        "",
    ]
    under, before = headings(root / module.notebook), None
    for name, symbol in module.symbols.items():
        heading = under.get(module.cells[name], "")
        if heading != before and heading:
            lines += [f"## {heading}", "", f"Explained in {source_of(module, heading)}.", ""]
            before = heading
        lines += entry(symbol, library, module)
    return "\n".join(lines)


def toctree(pages, caption=None, hidden=True):
    return "\n".join(
        [
            "```{toctree}",
            *([f":caption: {caption}"] if caption else []),
            *([":hidden:"] if hidden else []),
            *pages,
            "```",
            "",
        ]
    )


def write(name, text):
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def contents():
    "The sidebar: the parts of the map, with what is on the site only under the last of them"
    trees = []
    for part, pages in parts().items():
        if part == "Experiments":
            pages = ["experiments/index"]
        if part == "Reference":
            pages = [*pages, "api/index", "CONTRIBUTING", "LICENSE"]
        trees.append(toctree(pages, part))
    return "\n".join(trees)


def write_notebooks(library):
    "The notebooks, with the sidebar in the first of them"
    modules = {module.notebook: module.name for module in library.modules.values()}
    for path in notebooks() + notebooks("tutorials") + notebooks("experiments"):
        name = path.relative_to(root)
        own = modules.get(name.as_posix())
        nb = bridge(nbformat.read(path, 4), library, name.parent.as_posix(), own)
        if path == nbs / "index.ipynb":
            nb.cells.append(nbformat.v4.new_markdown_cell(contents()))
        write(path.relative_to(nbs), nbformat.writes(nb))


def list_of_experiments(library):
    "The page that lists the experiments"
    rows = [(path.stem, *title(path)) for path in notebooks("experiments")]
    lines = [
        "# Experiments",
        "",
        "> One notebook with parameters for every table and figure of the paper; papermill or "
        "`hydramix_sweep` runs it.",
        "",
        "These pages show the committed notebooks, with the settings that each of them names.",
        "",
        "| notebook | what it shows |",
        "|---|---|",
    ]
    for stem, name, text in rows:
        text = markdown(text, library, "nbs/experiments", 1)
        lines.append(f"| [{name}]({stem}.ipynb) | {text} |")
    return "\n".join([*lines, "", toctree([stem for stem, *_ in rows])])


def list_of_modules(library):
    "The page that lists the modules of the reference"
    modules = sorted(library.modules.values(), key=lambda module: module.notebook)
    lines = [
        "# API reference",
        "",
        "> Every public name of `hydramix_nb`, module by module.",
        "",
        "| module | what it has | explained in |",
        "|---|---|---|",
    ]
    for module in modules:
        text = escape(module.doc, library)
        lines.append(f"| [{module.name}]({module.name}.md) | {text} | {source_of(module)} |")
    return "\n".join([*lines, "", toctree([module.name for module in modules])])


def copy_mathjax():
    "MathJax, served from the site itself, so that mathematics needs no network"
    package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
    for name in ("tex-chtml-full.js", "output/chtml/fonts"):
        files, copy = package / "static/mathjax" / name, source / "static/mathjax" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if files.is_dir() else shutil.copy)(files, copy)


def write_source():
    "The folder that Sphinx reads"
    library = Library()
    write_notebooks(library)
    write("experiments/index.md", list_of_experiments(library))
    write("api/index.md", list_of_modules(library))
    for module in library.modules.values():
        write(f"api/{module.name}.md", reference(module, library))
    contributing = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    write("CONTRIBUTING.md", markdown(contributing, library, "", 0))
    licence = "```{literalinclude} ../../LICENSE\n:language: text\n```"
    write("LICENSE.md", f"# Licence\n\n{licence}\n")
    copy_mathjax()


# links


class Page(html.parser.HTMLParser):
    "What a page links to, its places to link to, and its images without alternative text"

    def __init__(self, path):
        super().__init__()
        self.links, self.ids, self.silent = [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[key] for key in ("id", "name") if given.get(key)}
        self.links += [given[key] for key in ("href", "src") if given.get(key)]
        if tag == "img" and not (given.get("alt") or "").strip():
            self.silent.append(given.get("src", ""))


def broken(folder):
    "Links that lead nowhere and images without alternative text, each with its page"
    pages, found = {}, []
    for path in sorted(folder.rglob("*.html")):
        if "_static" not in path.parts:
            pages[path] = Page(path)
    for path, page in pages.items():
        where = path.relative_to(folder)
        found += [f"{where}: image without alternative text: {image[:80]}" for image in page.silent]
        for link in page.links:
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(to.path))) if to.path else path
            if target.is_dir():
                target /= "index.html"
            places = pages[target].ids | {"top"} if target in pages else set()
            if not target.is_relative_to(folder) or not target.exists():
                found.append(f"{where}: {link} does not exist")
            elif to.fragment and places and unquote(to.fragment) not in places:
                found.append(f"{where}: {link}: no such place on that page")
    return found


def build():
    "The whole site; the new one replaces _docs/ once all its links hold"
    made_of = digest()
    shutil.rmtree(work, ignore_errors=True)
    write_source()
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "--fail-on-warning",
        "--quiet",
        "--jobs",
        "2",
        "-b",
        "html",
        "-c",
        str(root / ".ci/site"),
        "-d",
        str(work / "doctrees"),
        str(source),
        str(work / "html"),
    ]
    if code := subprocess.run(command).returncode:
        sys.exit(code)
    if found := broken(work / "html"):
        sys.exit("\n".join(found))
    (work / "html/.made_of").write_text(made_of, encoding="utf-8")
    shutil.rmtree(site, ignore_errors=True)
    os.replace(work / "html", site)


def current():
    "Is the site that is there made of what is there?"
    return (site / ".made_of").exists() and (site / ".made_of").read_text(
        encoding="utf-8"
    ) == digest()


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    if current():
        print("_docs is up to date")
    else:
        build()
