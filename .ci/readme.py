"""Write README.md from nbs/index.ipynb; with --check, only say whether it is in sync.

nbconvert does the work. Hidden cells are dropped, figures go to README_files/ with the cell's
`#| fig-alt:` as their text, and links are turned from relative to nbs/ into relative to the
repository's root."""

import argparse
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExtractOutputPreprocessor

root = Path(__file__).resolve().parents[1]
pictures = "README_files"
link = re.compile(r'(\]\(|(?:src|href)=")([^)"#][^)"]*)')


def from_root(match):
    "A link as seen from the root; addresses and our own pictures stay as they are"
    target = match[2]
    if re.match(r"[a-z]+:", target) or target.startswith(pictures):
        return match[0]
    return match[1] + posixpath.normpath(posixpath.join("nbs", target))


def render():
    "README.md's text, and the pictures it shows by path"
    nb = nbformat.read(root / "nbs/index.ipynb", 4)
    nb.cells = [cell for cell in nb.cells if not re.match(r"#\|\s*hide\b", cell.source)]
    said = []
    for cell in nb.cells:
        if cell.cell_type != "code":
            continue
        alt = re.search(r"^#\|\s*fig-alt:\s*(.+)$", cell.source, re.M)
        said += [alt[1] if alt else ""] * sum(
            "image/png" in output.get("data", {}) for output in cell.outputs
        )
        if re.search(r"^#\|\s*echo:\s*false", cell.source, re.M):
            cell.metadata["transient"] = {"remove_source": True}
        cell.source = re.sub(r"^#\|.*\n?", "", cell.source, flags=re.M)
    extract = ExtractOutputPreprocessor(
        output_filename_template="{cell_index}_{index}{extension}", enabled=True
    )
    exporter = MarkdownExporter(preprocessors=[extract])
    text, resources = exporter.from_notebook_node(
        nb, {"unique_key": "README", "output_files_dir": pictures}
    )
    text = re.sub(r"!\[png\]", lambda _: f"![{said.pop(0)}]", text)
    text = "\n".join(line.rstrip() for line in link.sub(from_root, text).splitlines())
    text = re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
    return "<!-- written from nbs/index.ipynb by .ci/readme.py: edit there -->\n\n" + text, {
        name: data for name, data in resources.get("outputs", {}).items() if f"({name})" in text
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if README.md is not in sync",
    )
    check = parser.parse_args().check
    text, outputs = render()
    files = {
        root / "README.md": text.encode(),
        **{root / name: data for name, data in outputs.items()},
    }
    stale = sorted(set((root / pictures).glob("*")) - set(files))
    changed = [
        path for path, data in files.items() if not path.exists() or path.read_bytes() != data
    ]
    if check and (changed or stale):
        sys.exit(
            "not in sync with nbs/index.ipynb: "
            + ", ".join(str(p.relative_to(root)) for p in changed + stale)
            + "\nrun: python .ci/readme.py"
        )
    if check:
        return
    for path in stale:
        path.unlink()
    for path in changed:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(files[path])


if __name__ == "__main__":
    main()
