"""Run notebooks from top to bottom and compare what their cells show with what is committed.

    python .ci/outputs.py nbs/10_masks.ipynb            # run and compare
    python .ci/outputs.py --write nbs/10_masks.ipynb    # run and keep; then nbdev_clean

Texts are compared: what is printed, values, Markdown, tables. Their words have to be the same,
whole numbers equal, and other numbers equal within a hundredth or one unit of the last digit,
since machines differ there. Of figures only their number counts.

A cell says at its top what holds for it. The output of `#| varies` differs from run to run (times,
accuracies after a training) and only has to be there; that of `#| needs_data` is there only where
HYDRAMIX_DATA is set. `#| eval: false` is not run, `#| slow` and `#| cuda` only where --flags names
them."""

import argparse
import difflib
import html
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

root = Path(__file__).resolve().parents[1]
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:,\d{3})*(?:\.\d*)?(?:e[-+]?\d+)?(?![\w])")
TOLERANCE = 0.01


def directives(cell):
    "The `#|` lines of a cell, as a dict"
    return dict(re.findall(r"^#\|\s*([\w-]+):?[ \t]*(.*)$", cell.source, re.M))


def is_run(cell, flags=()):
    "Is this a cell that a test runs?"
    said = directives(cell)
    if cell.cell_type != "code" or said.get("eval", "").lower() == "false":
        return False
    return not ({"slow", "cuda"} - set(flags)) & set(said)


def run(nb, folder, flags=(), timeout=1200):
    "Run a notebook in `folder`, in a kernel of its own; a cell that is skipped keeps its outputs"
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    client = NotebookClient(
        nb, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    with client.setup_kernel(env={**os.environ, "PYTHONPATH": path}):
        for index, cell in enumerate(nb.cells):
            if is_run(cell, flags):
                client.execute_cell(cell, index)
    return nb


def plain(text):
    "A text without addresses, temporary paths and colours, which differ between equal runs"
    text = re.sub(r"\x1b\[[\d;]*m", "", text)
    text = re.sub(r"\b0x[0-9a-f]{6,}\b", "ADDRESS", text)
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/[\w.-]+", "TEMPORARY", text)


def texts(cell):
    "What a cell shows as (kind, text): first all that it prints, then values and figures in order"
    printed = "".join(o.text for o in cell.outputs if o.get("name") == "stdout")
    shown = [("stdout", plain(printed))] if printed else []
    for output in cell.outputs:
        data = output.get("data", {})
        for kind in ("image/png", "image/svg+xml", "text/html", "text/markdown", "text/plain"):
            if kind in data:
                break
        else:
            continue
        if kind == "text/html":
            # styles are not read, and a tag ends a word
            text = re.sub(r"<style.*?</style>", " ", data[kind], flags=re.S)
            text = html.unescape(re.sub(r"<[^>]*>", " ", text))
        else:
            text = data[kind] if kind.startswith("text/") else ""
        shown.append((kind, plain(text)))
    return shown


def value(number):
    return float(number.replace(",", "").replace("−", "-"))


def unit(number):
    "One unit of the last digit of a number as it is written; nothing for a whole number"
    digits, _, exponent = number.partition("e")
    _, point, decimals = digits.partition(".")
    return 10.0 ** (int(exponent or 0) - len(decimals)) if point or exponent else 0.0


def equal(number, other):
    "Are two numbers equal, as far as two machines can agree?"
    a, b = value(number), value(other)
    precision = max(unit(number), unit(other))
    if precision == 0:
        return a == b
    return abs(a - b) <= max(TOLERANCE * max(abs(a), abs(b)), 1.001 * precision)


def same(text, other):
    "Have two texts the same words, and equal numbers?"
    words, numbers = zip(*((NUMBER.sub("#", t).split(), NUMBER.findall(t)) for t in (text, other)))
    return words[0] == words[1] and all(map(equal, *numbers))


def difference(committed, fresh):
    "Of two cells with the same code, in what their outputs differ; empty if they do not"
    old, new = texts(committed), texts(fresh)
    if "needs_data" in directives(committed) and not os.environ.get("HYDRAMIX_DATA"):
        return ""
    if "varies" in directives(committed):
        return "" if bool(old) == bool(new) else f"{len(old)} outputs committed, {len(new)} now"
    kinds = [", ".join(kind for kind, _ in shown) for shown in (old, new)]
    if kinds[0] != kinds[1]:
        return f"committed: {kinds[0] or 'nothing'}; now: {kinds[1] or 'nothing'}"
    lines = []
    for (_, text), (_, other) in zip(old, new):
        if not same(text, other):
            lines += difflib.unified_diff(
                text.splitlines(), other.splitlines(), "committed", "now", n=0, lineterm=""
            )
    return "\n".join(lines)


def differences(path, flags=()):
    "Run a notebook; each cell whose outputs are not those that are committed, with the difference"
    committed, nb = nbformat.read(path, 4), nbformat.read(path, 4)
    for cell in nb.cells:
        if is_run(cell, flags):
            cell.outputs = []
    run(nb, path.parent, flags)
    found = []
    for number, (old, new) in enumerate(zip(committed.cells, nb.cells)):
        if is_run(new, flags) and (text := difference(old, new)):
            found.append(f"{path.name}, cell {number}:\n{old.source}\n{text}")
    return found


def rewrite(path, flags=()):
    "Run a notebook and keep what it shows; cells that are skipped keep their outputs"
    nb = nbformat.read(path, 4)
    fresh = run(nbformat.read(path, 4), path.parent, flags)
    for old, new in zip(nb.cells, fresh.cells, strict=True):
        if is_run(old, flags):
            old.outputs = new.outputs
    nbformat.write(nb, path)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="+", type=Path, help="notebooks to run")
    parser.add_argument("--flags", default="", help="run cells with these directives, too: 'slow'")
    parser.add_argument("--write", action="store_true", help="keep the new outputs, compare none")
    given = parser.parse_args()
    failed = False
    for path in given.notebooks:
        if given.write:
            rewrite(path.resolve(), given.flags.split())
            continue
        try:
            found = differences(path.resolve(), given.flags.split())
        except CellExecutionError as error:
            found = [f"{path.name}: {error}"]
        print("\n\n".join(found) or f"{path.name}: outputs are those of the code")
        failed |= bool(found)
    sys.exit(failed)


if __name__ == "__main__":
    main()
