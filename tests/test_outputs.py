"""Every notebook runs from top to bottom, and what it shows is what it is committed with.

One test runs one notebook, once, in a kernel of its own. Experiments are not among them: they have
parameters, and test_experiments runs them at tiny settings."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
BOOK = sorted(
    path
    for path in NBS.rglob("*.ipynb")
    if ".ipynb_checkpoints" not in path.parts and not (path.parent / ".notest").exists()
)
code = SimpleNamespace(**runpy.run_path(str(ROOT / ".ci/outputs.py")))


@pytest.mark.parametrize("path", BOOK, ids=lambda path: str(path.relative_to(NBS)))
def test_outputs_are_those_of_the_code(path, quick_kernels):
    found = code.differences(path)
    assert not found, "\n\n".join([*found, f"run {path.relative_to(ROOT)} again and commit it"])


def test_the_book_is_there():
    assert {"index", "10_masks", "26_gan", "your_own_images"} <= {path.stem for path in BOOK}
    assert not any(path.parent.name == "experiments" for path in BOOK)


# how texts are compared


@pytest.mark.parametrize(
    "text, other",
    [
        ("loss 0.123", "loss  0.124"),
        ("tensor([1.2345e-03, -4.])", "tensor([1.2346e-03, -4.])"),
        ("10,000 steps", "10000 steps"),
        ("1.50", "1.49"),
        ("a | b\n1.0 | 2", "a   | b\n1.001 | 2"),
    ],
)
def test_texts_that_are_the_same(text, other):
    assert code.same(text, other)


@pytest.mark.parametrize(
    "text, other",
    [
        ("loss 0.123", "lost 0.123"),
        ("loss 0.123", "loss 0.126"),
        ("16 segments", "17 segments"),
        ("1 of 2", "1 of"),
        ("a8f3 1", "a8f4 1"),
        ("-1.5", "1.5"),
    ],
)
def test_texts_that_are_not(text, other):
    assert not code.same(text, other)


def cell(source, *outputs):
    return nbformat.v4.new_code_cell(source, outputs=list(outputs))


def printed(text):
    return nbformat.v4.new_output("stream", name="stdout", text=text)


def shown(**data):
    names = dict(text="text/plain", html="text/html", png="image/png", markdown="text/markdown")
    return nbformat.v4.new_output(
        "display_data", {names[kind]: value for kind, value in data.items()}
    )


def test_an_output_that_is_missing_or_other():
    assert not code.difference(cell("f()", printed("a\n")), cell("f()", printed("a")))
    assert "nothing" in code.difference(cell("f()"), cell("f()", printed("a")))
    assert "nothing" in code.difference(cell("f()", shown(text="1")), cell("f()"))
    found = code.difference(cell("f()", printed("a\nb\n")), cell("f()", printed("a\nc\n")))
    assert "-b" in found and "+c" in found and "a\n" not in found


def test_what_varies_only_has_to_be_there():
    source = "#| varies\nf()"
    assert not code.difference(cell(source, printed("1 s")), cell(source, printed("2 s")))
    assert code.difference(cell(source), cell(source, printed("2 s")))


def test_of_figures_the_number_counts():
    figure, other = shown(png="aaaa", text="<Figure>"), shown(png="bbbb", text="<Figure>")
    assert not code.difference(cell("f()", figure), cell("f()", other))
    assert code.difference(cell("f()", figure), cell("f()", other, other))


def test_tables_are_compared_as_text():
    table = "<style>td {color: red}</style><table><tr><td>a</td><td>1.00</td></tr></table>"
    assert not code.difference(
        cell("f()", shown(html=table)),
        cell("f()", shown(html=table.replace("red", "blue").replace("1.00", "1.001"))),
    )
    assert code.difference(
        cell("f()", shown(html=table)), cell("f()", shown(html=table.replace("a", "b")))
    )


def test_addresses_and_temporary_paths_do_not_count(tmp_path):
    texts = [
        f"<f at 0x7f{i:010x}> in {code.tempfile.gettempdir()}/tmp{i}abc/run/x.png" for i in (1, 2)
    ]
    assert not code.difference(*(cell("f()", printed(text)) for text in texts))


def test_cells_that_are_skipped_keep_their_outputs(tmp_path):
    kept = [
        cell(f"#| {directive}\n1 / 0", printed("before"))
        for directive in ("slow", "cuda", "eval: false")
    ]
    nb = nbformat.v4.new_notebook(
        cells=[*kept, cell("print(1)", printed("2")), cell("#| hide\n3", shown(text="3"))]
    )
    nbformat.write(nb, tmp_path / "made.ipynb")
    (found,) = code.differences(tmp_path / "made.ipynb")
    assert re.match(r"made\.ipynb, cell 3:\nprint\(1\)", found)
    done = code.run(nb, tmp_path)
    assert [c.outputs[0].get("text") for c in done.cells] == [*["before"] * 3, "1\n", None]
