"""The documentation site in a real browser, at the width of a phone and of a desk; the bridge that
makes it of the notebooks; JupyterLab.

The browser is Debian's (packages chromium and chromium-driver). Without it, the tests that need one
are skipped."""

import functools
import html.parser
import http.server
import json
import os
import posixpath
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from hydramix_nb.runs import Lock

ROOT = Path(__file__).resolve().parents[1]
NBS = ROOT / "nbs"
ALL = sorted(path for path in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
WIDTHS = {"desk": (1300, 900), "phone": (390, 844)}
pytestmark = pytest.mark.xdist_group("site")  # one process builds it and opens the browser
code = SimpleNamespace(**runpy.run_path(str(ROOT / ".ci/site.py")))


@pytest.fixture(scope="module")
def site():
    "The built site; it fails at any warning, and at a link that leads nowhere"
    with Lock(Path(tempfile.gettempdir()) / "hydramix-site.lock"):
        done = subprocess.run(
            [sys.executable, str(ROOT / ".ci/site.py")], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "_docs"


@pytest.fixture(scope="module")
def address(site):
    "Where a server on this machine shows the site"

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    ) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Browser:
    "Headless Chromium, and what a page did in it since the last look"

    def __init__(self, folder):
        from selenium import webdriver

        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (
            "headless=new",
            "no-sandbox",
            "disable-gpu",
            "disable-dev-shm-usage",
            "disable-quic",
            "no-first-run",
            "hide-scrollbars",
            "disable-background-networking",
            "disable-component-update",
            "disable-sync",
            f"user-data-dir={folder}",
        ):
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(
            options=options, service=webdriver.ChromeService(shutil.which("chromedriver"))
        )
        self.driver.set_page_load_timeout(60)
        self.driver.set_script_timeout(60)
        self.open("about:blank")
        self.requests()  # those of the page it starts with

    def size(self, width, height):
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 600),
        )

    def open(self, url):
        self.driver.get(url)

    def js(self, script, *args):
        return self.driver.execute_script(script, *args)

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def wait(self, condition, what, seconds=30):
        "The first true value of `condition`"
        end = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < end, f"{what}: not within {seconds} s"
            time.sleep(0.1)
        return value

    def errors(self):
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] in ("SEVERE", "ERROR")
        ]

    def requests(self):
        messages = (
            json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")
        )
        return [
            m["params"]["request"]["url"]
            for m in messages
            if m["method"] == "Network.requestWillBeSent"
        ]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.driver.quit()


# every page

SHOW = """
const [url, done] = arguments;
fetch(url).then(answer => answer.text()).then(text => {
  const page = new DOMParser().parseFromString(text, 'text/html');
  const article = document.adoptNode(page.querySelector('article'));
  for (const icon of document.querySelectorAll('link[rel~=icon]')) icon.href = icon.href;
  history.replaceState(null, '', url);
  document.title = page.title;
  MathJax.typesetClear();
  document.querySelector('article').replaceWith(article);
  const images = [...article.querySelectorAll('img')].map(i => i.decode().catch(() => null));
  return Promise.all([MathJax.typesetPromise([article]), ...images]);
}).then(() => done(''), error => done(String(error)));
"""

LOOK = """
const done = arguments[arguments.length - 1], width = arguments[0];
const set = m => m.querySelector('mjx-container mjx-math > *');
const math = [...document.querySelectorAll('.math')], started = Date.now();
const ready = new Promise(go => {
  const look = () => {
    if (math.every(set) || Date.now() - started > 20000) go();
    else setTimeout(look, 50);
  };
  look();
});
const boxed = e => {
  for (let p = e.parentElement; p; p = p.parentElement)
    if (['auto', 'scroll', 'hidden'].includes(getComputedStyle(p).overflowX)) return true;
  return false;
};
const column = () => {
  const pre = document.querySelector('article .cell_input pre');
  if (!pre) return null;
  const style = getComputedStyle(pre), ruler = document.createElement('span');
  ruler.textContent = 'x'.repeat(100);
  pre.append(ruler);
  const wide = ruler.getBoundingClientRect().width;
  ruler.remove();
  const room = pre.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  return Math.floor(room / wide * 100);
};
ready.then(() => {
  const images = [...document.images], wide = [];
  if (document.documentElement.scrollWidth > width)
    for (const e of document.querySelectorAll('article *'))
      if (e.getBoundingClientRect().right > width + 1 && !boxed(e))
        wide.push(e.outerHTML.slice(0, 120));
  done({
    column: column(),
    title: document.querySelector('h1') && document.querySelector('h1').innerText,
    width: document.documentElement.scrollWidth, wide: wide.slice(0, 3),
    missing: images.filter(i => !i.complete || !i.naturalWidth).map(i => i.src),
    silent: images.filter(i => !i.alt.trim()).map(i => i.src),
    formulas: math.length,
    raw: math.filter(m => !set(m)).map(m => m.textContent),
    wrong: [...document.querySelectorAll('mjx-merror')].map(
      m => m.getAttribute('data-mjx-error') || m.textContent),
    number: images.length });
});
"""


class Loaded(html.parser.HTMLParser):
    "Scripts and styles that a page loads, from anywhere"

    def __init__(self, path, site):
        super().__init__()
        self.found, self.folder = set(), path.parent.relative_to(site).as_posix()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag == "script" and "src" in given:
            self.found.add(posixpath.normpath(posixpath.join(self.folder, given["src"])))
        if tag == "link" and given.get("rel") in ("stylesheet", "preload", "modulepreload"):
            self.found.add(posixpath.normpath(posixpath.join(self.folder, given["href"])))


@pytest.fixture(scope="module")
def pages(site):
    "Names of all pages, and which of them are opened: the longest of each folder, and the odd ones"
    files = {
        path.relative_to(site).as_posix(): path
        for path in sorted(site.rglob("*.html"))
        if "_static" not in path.parts
    }
    longest = {}
    for name, path in sorted(files.items(), key=lambda item: item[1].stat().st_size):
        longest[path.parent] = name
    odd = {name for name in files if re.match(r"[^/\d]+$|\w+/index", name)}
    return files, {*longest.values(), *odd}


@pytest.fixture(scope="module")
def looks(pages, address, browser):
    """What each page looked like, by width and name

    Some are opened. The others have the same frame: their article is put into an open page. Pages
    of modules, which are made by rule, are put into the narrow one."""
    files, opened = pages
    found = {}
    for name in [*sorted(opened), "10_masks.html", *sorted(files.keys() - opened)]:
        if name in opened or name == "10_masks.html":
            browser.size(*WIDTHS["desk"])
            browser.open(address + name)
        else:
            assert not (error := browser.driver.execute_async_script(SHOW, address + name)), error
        by_rule = name.startswith(("api/", "_modules/")) and name not in opened
        for width in ["phone"] if by_rule else WIDTHS:
            size = WIDTHS[width]
            browser.size(*size)
            look = browser.driver.execute_async_script(LOOK, size[0])
            found[width, name] = SimpleNamespace(
                **look, limit=size[0], console=browser.errors(), requests=browser.requests()
            )
    return found


def problems(looks, complaint):
    "Complaints about pages, each with the width and the page it is about"
    return "\n".join(
        f"{name} ({width}): {said}"
        for (width, name), look in looks.items()
        if (said := complaint(look))
    )


def test_every_notebook_and_module_has_its_page(site):
    for path in ALL:
        assert (site / path.relative_to(NBS).with_suffix(".html")).exists(), path
    for path in (ROOT / "hydramix_nb").glob("[!_]*.py"):
        assert (site / "api" / f"{path.stem}.html").exists(), path


def test_pages_load_without_errors(looks):
    assert not (
        found := problems(looks, lambda look: look.console or (not look.title and "no heading"))
    ), found


def test_pages_that_are_not_opened_load_what_the_others_load(pages, site):
    files, opened = pages
    loaded = {name: Loaded(path, site).found for name, path in files.items()}
    assert 5 < len(opened) < 20
    assert set().union(*loaded.values()) == set().union(*(loaded[name] for name in opened))


def test_nothing_is_fetched_from_elsewhere(looks, address):
    assert any(look.requests for look in looks.values())
    assert not (
        found := problems(
            looks,
            lambda look: [
                url for url in look.requests if not url.startswith((address, "data:", "blob:"))
            ],
        )
    ), found


def test_images_are_there_and_described(looks):
    assert sum(look.number for look in looks.values()) > 50
    assert not (found := problems(looks, lambda look: look.missing + look.silent)), found


def test_mathematics_is_typeset(looks):
    assert sum(look.formulas for look in looks.values()) > 50
    assert not (found := problems(looks, lambda look: look.raw + look.wrong)), found


def test_nothing_overflows(looks):
    assert not (
        found := problems(looks, lambda look: look.width > look.limit and (look.width, look.wide))
    ), found


def test_a_line_of_code_fits_the_column(looks):
    columns = [look.column for (width, _), look in looks.items() if width == "desk" and look.column]
    assert len(columns) > 20 and min(columns) >= 100


def test_the_sidebar_shows_the_parts_of_the_map(address, browser):
    browser.size(*WIDTHS["desk"])
    browser.open(address + "index.html")
    captions = [e.text for e in browser.find(".bd-sidebar-primary .caption-text")]
    assert captions == list(code.parts())
    assert captions[0] == "The method" and captions[-2:] == ["The machinery", "Reference"]
    links = [a.get_attribute("href") for a in browser.find(".bd-sidebar-primary nav li a")]
    names = [link.removeprefix(address).removesuffix(".html") for link in links]
    chapters = [page for part, pages in code.parts().items() for page in pages]
    shown = [name for name in names if name in chapters and not name.startswith("experiments/")]
    assert shown == [page for page in chapters if not page.startswith("experiments/")]


# what a reader does


@pytest.mark.parametrize("width", WIDTHS)
def test_search_finds_a_function(browser, address, width):
    browser.size(*WIDTHS[width])
    browser.open(address + "index.html")
    (button,) = [
        b for b in browser.find(".search-button__button, .search-button-field") if b.is_displayed()
    ]
    button.click()
    field = browser.wait(
        lambda: [f for f in browser.find("input[type=search]") if f.is_displayed()],
        "a field to search in",
    )[0]
    field.send_keys("hydra_mask\n")
    first = browser.wait(lambda: browser.find("#search-results li a"), "results")[0]
    assert "hydra_mask" in first.text
    first.click()
    browser.wait(
        lambda: "/api/masks.html" in browser.driver.current_url, "the page of the function"
    )
    assert browser.driver.current_url.endswith("#hydramix_nb.masks.hydra_mask")
    assert (
        "each segment of image i = 1…N"
        in browser.driver.find_element("id", "hydramix_nb.masks.hydra_mask")
        .find_element("xpath", "..")
        .text
    )
    assert not browser.errors()


def test_dark_mode(browser, address):
    def shown(selector):
        return [b for b in browser.find(selector) if b.is_displayed()]

    def background():
        return browser.js("return getComputedStyle(document.body).backgroundColor")

    def choose(mode):
        shown(".theme-switch-button")[0].click()
        browser.wait(lambda: shown(f".theme-change-button[data-mode={mode}]"), "the menu of modes")[
            0
        ].click()
        return background()

    browser.size(*WIDTHS["desk"])
    browser.open(address + "10_masks.html")
    light, dark = choose("light"), choose("dark")
    assert (
        sum(map(int, re.findall(r"\d+", dark)[:3]))
        < 150
        < 600
        < sum(map(int, re.findall(r"\d+", light)[:3]))
    )
    browser.open(address + "api/masks.html")
    assert background() == dark  # the choice stays
    assert choose("light") == light


def test_the_contents_open_on_a_phone(browser, address):
    browser.size(*WIDTHS["phone"])
    browser.open(address + "index.html")

    def links():
        return [
            a
            for a in browser.find(
                ".bd-sidebar-primary a[href='30_mixing.html'], dialog a[href='30_mixing.html']"
            )
            if a.is_displayed()
        ]

    assert not links()
    [b for b in browser.find(".primary-toggle") if b.is_displayed()][0].click()
    browser.wait(links, "the contents")[0].click()
    browser.wait(lambda: browser.driver.current_url.endswith("30_mixing.html"), "the page")


# the bridge


def md(source):
    return nbformat.v4.new_markdown_cell(source)


def py(source):
    return nbformat.v4.new_code_cell(source)


def bridged(*cells, **where):
    return code.bridge(nbformat.v4.new_notebook(cells=list(cells)), library(), **where).cells


@functools.cache
def library():
    return code.Library()


def test_directives():
    cells = bridged(
        py("#| default_exp masks"),
        py("#| hide\nsecret = 1"),
        py("#| export\n#| slow\ndef f(): pass"),
        py("#| echo: false\nplot()"),
        py("#| code-fold: true\nlong()"),
    )
    assert [cell.source for cell in cells] == ["def f(): pass", "plot()", "long()"]
    assert [cell.metadata.tags for cell in cells] == [[], ["remove-input"], ["hide-input"]]


def test_markdown():
    def said(text, **where):
        return bridged(md(text), **where)[0].source

    assert said("::: {.callout-note}\nMind.\n:::") == ":::{note}\nMind.\n:::"
    assert said("[a](https://a.b/){target=_blank}") == "[a](https://a.b/)"
    assert (
        said("[m](../10_masks.ipynb#The-mask-of-HydraMix)", folder="nbs/experiments")
        == "[m](/10_masks.ipynb#the-mask-of-hydramix)"
    )
    assert (
        said(
            "[c](../CONTRIBUTING.md) [e](experiments) [r](../results/results.csv) "
            "[l](../hydramix_nb/masks.py)"
        )
        == "[c](/CONTRIBUTING.md) [e](/experiments/index.md) [r](../../results/results.csv) "
        "[l](/api/masks.md)"
    )


def test_markdown_that_a_cell_prints():
    cell = py("table")
    cell.outputs = [
        nbformat.v4.new_output(
            "display_data",
            {"text/markdown": "[m](10_masks.ipynb#The-mask-of-HydraMix)", "text/plain": "m"},
        )
    ]
    assert (
        bridged(cell)[0].outputs[0].data["text/markdown"]
        == "[m](/10_masks.ipynb#the-mask-of-hydramix)"
    )


def test_code_in_prose_is_linked_where_its_name_has_one_owner():
    def said(text, **where):
        return bridged(md(text), **where)[0].source

    assert said("`hydra_mask`, `x`") == "{py:obj}`hydra_mask <hydramix_nb.masks.hydra_mask>`, `x`"
    assert said("`fit`") == "`fit`"  # of gan, or of classifier?
    assert said("`fit`", own="gan") == "{py:obj}`fit <hydramix_nb.gan.fit>`"
    assert said("`classifier.fit()`") == "{py:obj}`classifier.fit() <hydramix_nb.classifier.fit>`"
    assert said("`10_masks`") == "[`10_masks`](/10_masks.ipynb)"
    for text in ("## `segment`", "[`segment`](https://a.b/)", "```\n`segment`\n```"):
        assert said(text) == text


def test_alternative_text():
    cells = bridged(
        md("## Segments\n\nFirst.\n\nFour pictures, *outlined* by `segment`:"),
        py("show()"),
        py("#| fig-alt: Four pictures\nshow()"),
        md("### Noise in $q$"),
        py("show()"),
    )
    assert [cell.metadata.mystnb.image.alt for cell in cells if cell.cell_type == "code"] == [
        "Segments: Four pictures, outlined by segment",
        "Four pictures",
        "Noise in q",
    ]
    (first,) = [
        cell
        for cell in bridged(md("# table_1\n\n> Accuracies.\n\nMore."), py("show()"))
        if cell.cell_type == "code"
    ]
    assert first.metadata.mystnb.image.alt == "table_1: Accuracies."
    long = code.describe("H", "Word upon word upon word. " * 20 + "The last sentence.")
    assert len(long) < 310 and long.endswith("The last sentence.")


def test_docments(tmp_path):
    (tmp_path / "made.py").write_text("""
__all__ = ["f", "g", "Settings", "Net", "N"]
# %% ../nbs/10_made.ipynb #c0ffee
from dataclasses import dataclass
# %% ../nbs/10_made.ipynb #decade
def f(a, # first, [n]
      b:int|None=None, # second
      *rest, # more
      k=(1, 2), # by name
     ) -> float: # the answer
    "What f does"
def g(a, b=2): # both
    "What g does"
def hidden(): pass
@dataclass
class Settings:
    "What is set"
    x:int = 3 # the x
    def twice(self): # int
        "Two of it"
class Net:
    "A network"
    def __init__(self, width:int=8): # features
        self.width = width
    @staticmethod
    def mix(a): "Mixes"
    def quiet(self): pass
N = 5
""")
    module = code.Module(tmp_path / "made.py")
    f, g, settings, net, n = module.symbols.values()
    assert f.parameters == [
        ("a", "", "", "first, [n]"),
        ("b", "int | None", "None", "second"),
        ("*rest", "", "", "more"),
        ("k", "", "(1, 2)", "by name"),
    ]
    assert (f.signature, f.returns, f.doc) == (
        "(a, b: int | None=None, *rest, k=(1, 2)) -> float",
        ("float", "the answer"),
        "What f does",
    )
    assert (g.parameters, g.returns) == ([("a", "", "", ""), ("b", "", "2", "")], ("", "both"))
    assert settings.parameters == [("x", "int", "3", "the x")] and [
        m.name for m in settings.members
    ] == ["Settings.twice"]
    assert net.signature == "(width: int=8)" and [
        (m.name, m.static, m.signature) for m in net.members
    ] == [("Net.mix", True, "(a)")]
    assert (
        n.kind == "data"
        and module.cells["f"] == "decade"
        and module.notebook == "nbs/10_made.ipynb"
    )


def test_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.html").write_text(
        '<h1 id="top-of-a">A</h1><a href="sub/b.html#there">b</a> <a href="#top-of-a">a</a> '
        '<img src="x.png" alt="an x"> <a href="https://example.org/">out</a>'
    )
    (tmp_path / "sub/b.html").write_text('<p id="there">B <a href="../a.html?q=1#top-of-a">a</a>')
    (tmp_path / "x.png").write_bytes(b"")
    assert code.broken(tmp_path) == []
    (tmp_path / "sub/b.html").write_text(
        '<p id="here">B <a href="../c.html">c</a> <a href="../../outside.html">o</a> '
        '<img src="../x.png" alt=" ">'
    )
    assert [problem.split(": ")[0] for problem in code.broken(tmp_path)] == [
        "a.html",
        "sub/b.html",
        "sub/b.html",
        "sub/b.html",
    ]
    assert "sub/b.html#there" in code.broken(tmp_path)[0]


# JupyterLab


@pytest.mark.parametrize("path", ALL, ids=lambda path: str(path.relative_to(NBS)))
def test_notebook_is_what_jupyter_opens(path):
    nb = json.loads(path.read_text(encoding="utf-8"))
    assert nb["nbformat"] == 4
    nbformat.validate(nb)
    assert nb["metadata"]["kernelspec"]["name"] == "python3"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "JupyterLab on this machine, without a browser: a function that asks it, its address and token"
    folder, token = tmp_path_factory.mktemp("lab"), "of-these-tests"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **{f"JUPYTER_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "RUNTIME", "DATA")},
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(folder / "workspaces"),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        "--LabApp.news_url=None",
        "--LabApp.extension_manager=readonly",
    ]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(command, cwd=NBS, env=environment, stdout=log, stderr=log) as server,
    ):

        def ask(path):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/api/{path}", headers={"Authorization": f"token {token}"}
            )
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)

        try:
            for _ in range(300):
                try:
                    ask("status")
                    break
                except OSError:
                    time.sleep(0.2)
                assert server.poll() is None, (folder / "log").read_text()
            yield SimpleNamespace(ask=ask, origin=f"http://127.0.0.1:{port}", token=token)
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()  # its threads sometimes outlive it


def test_jupyterlab_lists_and_opens_the_notebooks(lab):
    folders = {path.parent.relative_to(NBS).as_posix() for path in ALL}
    listed = {
        entry["path"]
        for folder in folders
        for entry in lab.ask(f"contents/{'' if folder == '.' else folder}")["content"]
        if entry["type"] == "notebook"
    }
    assert listed == {path.relative_to(NBS).as_posix() for path in ALL}
    for path in ALL:
        opened = lab.ask(f"contents/{path.relative_to(NBS).as_posix()}")
        assert opened["type"] == "notebook" and len(opened["content"]["cells"]) == len(
            nbformat.read(path, 4).cells
        )
    assert "python3" in lab.ask("kernelspecs")["kernelspecs"]


def test_jupyterlab_shows_a_notebook(lab, browser):
    browser.size(*WIDTHS["desk"])
    browser.errors(), browser.requests()  # those of other tests
    browser.open(f"{lab.origin}/lab/tree/10_masks.ipynb?token={lab.token}")
    browser.wait(
        lambda: "masks" in [h.text.strip("¶") for h in browser.find(".jp-Notebook h1")],
        "the notebook's heading",
        60,
    )
    browser.wait(lambda: browser.find(".jp-Notebook .jp-CodeCell"), "a cell of code")
    assert not browser.errors()
    assert not [
        url for url in browser.requests() if not url.startswith((lab.origin, "data:", "blob:"))
    ]
