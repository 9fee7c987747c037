"""The package: what is stated twice agrees, imports are light, nothing is unpickled, and nothing
speaks of one machine."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path
from shlex import split

import pytest
from packaging.requirements import Requirement

import hydramix_nb

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    path.stem for path in (ROOT / "hydramix_nb").glob("*.py") if not path.stem.startswith("_")
)
parser = ConfigParser(delimiters=["="])
parser.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = parser["DEFAULT"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = {
    key.removesuffix("_requirements"): split(value)
    for key, value in SETTINGS.items()
    if key.endswith("_requirements")
}


def names(requirements):
    return {Requirement(r).name.lower().replace("_", "-") for r in requirements}


def python(code, **environment):
    "Run code in an interpreter of its own, outside the checkout; its output"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    "What setup.py makes of settings.ini, as (PKG-INFO, entry points)"
    folder = tmp_path_factory.mktemp("egg")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (found,) = folder.glob("*.egg-info")
    return (found / "PKG-INFO").read_text(encoding="utf-8"), (found / "entry_points.txt").read_text(
        encoding="utf-8"
    )


# one statement, wherever it stands


def test_versions_agree(metadata):
    assert hydramix_nb.__version__ == SETTINGS["version"]
    assert f"\nVersion: {SETTINGS['version']}\n" in metadata[0]
    project = PYPROJECT.get("project", {})
    assert project.get("version", SETTINGS["version"]) == SETTINGS["version"]


def test_metadata_is_that_of_the_settings(metadata):
    text = metadata[0]
    assert f"\nName: {SETTINGS['lib_name']}\n" in text
    assert (
        f"\nLicense-Expression: {SETTINGS['license']}\n" in text
        and "\nLicense-File: LICENSE\n" in text
    )
    assert f"\nRequires-Python: >={SETTINGS['min_python']}\n" in text
    assert set(re.findall(r"^Provides-Extra: (\S+)$", text, re.M)) == set(EXTRAS)
    required = re.findall(r"^Requires-Dist: ([^;\n]+)$", text, re.M)
    assert names(required) == names(split(SETTINGS["requirements"]))


def test_pyproject_repeats_the_settings_truly():
    for key, value in PYPROJECT["tool"]["nbdev"].items():
        assert str(value).lower() == SETTINGS[key].lower(), key


def test_requirements_are_few():
    assert names(split(SETTINGS["requirements"])) == {
        "torch",
        "torchvision",
        "scikit-image",
        "numpy",
        "matplotlib",
        "safetensors",
        "tqdm",
    }


def test_dev_brings_what_the_tests_need():
    dev = [Requirement(r) for r in EXTRAS["dev"]]
    own = [r for r in dev if r.name == SETTINGS["lib_name"]]
    assert own and own[0].extras >= {"cse", "runs"}
    assert {"nbdev", "pytest", "ruff", "nbconvert", "jupyterlab"} <= names(EXTRAS["dev"])
    for r in own:
        assert r.extras <= set(EXTRAS)


def test_console_commands_exist(metadata):
    stated = [line.strip() for line in SETTINGS["console_scripts"].splitlines() if line.strip()]
    for line in stated:
        command, module, function = re.fullmatch(
            r"([\w-]+)\s*=\s*hydramix_nb\.(\w+):(\w+)", line
        ).groups()
        tree = ast.parse((ROOT / "hydramix_nb" / f"{module}.py").read_text(encoding="utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
            line
        )
        assert re.search(rf"^{command}\s*=", metadata[1], re.M), (
            f"{command} is not among the entry points"
        )


# light imports


def test_package_import_is_light():
    seconds, *loaded = python("""
import sys, time
start = time.perf_counter()
import hydramix_nb
print(time.perf_counter() - start, *sys.modules)
""").split()
    heavy = {"hydramix_nb", "torch", "torchvision", "numpy", "matplotlib", "skimage"}
    assert [name for name in loaded if name.split(".")[0] in heavy] == ["hydramix_nb"]
    assert float(seconds) < 1


BLOCK = """
import sys
class Without:
    "A finder that finds nothing of what an extra brings, as on a machine without extras"
    names = set({names!r})
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.names:
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
FROM_EXTRAS = [
    "fastcore",
    "nbdev",
    "execnb",
    "ghapi",
    "papermill",
    "ipykernel",
    "IPython",
    "jupyterlab",
    "nbformat",
    "nbclient",
    "nbconvert",
    "pytest",
    "pandas",
    "tensorboard",
    "distributed",
    "dask",
    "dask_jobqueue",
    "open_clip",
    "timm",
    "wn",
    "pacmap",
    "numba",
    "sklearn",
    "pycocotools",
    "lightly",
    "diffusers",
    "transformers",
    "accelerate",
    "kymatio",
    "huggingface_hub",
]


def blocked(code):
    return python(BLOCK.format(names=FROM_EXTRAS) + code)


def test_modules_import_without_extras():
    out = blocked(f"""
import importlib
for module in {MODULES!r}:
    try: importlib.import_module("hydramix_nb." + module)
    except ImportError as e: print(f"hydramix_nb.{{module}} needs {{e.name}} at import, not at use")
""")
    assert not out, out


def test_all_works_without_extras():
    out = blocked("""
before = set(globals())
from hydramix_nb.all import *
print(*set(globals()) - before - {"before"})
""")
    brought = set(out.split())
    assert set(MODULES) - {"all"} <= brought and {"HydraMix", "hydra_mask"} <= brought
    assert not {"fit", "main", "run", "values", "inspect", "torch", "Path", "test_eq"} & brought


# names


def test_every_module_comes_from_a_notebook():
    for module in MODULES:
        text = (ROOT / "hydramix_nb" / f"{module}.py").read_text(encoding="utf-8")
        source = re.search(
            r"^# AUTOGENERATED! DO NOT EDIT! File to edit: \.\./(nbs/\S+\.ipynb)\.$", text, re.M
        )
        assert source and (ROOT / source[1]).exists(), f"{module}.py has no notebook"


# safety

UNPICKLERS = {
    "pickle": {"load", "loads"},
    "torch": {"load"},
    "torch.serialization": {"load"},
    "joblib": {"load"},
    "dill": {"load", "loads"},
    "cloudpickle": {"load", "loads"},
    "pd": {"read_pickle"},
    "pandas": {"read_pickle"},
}


def unpickles(code):
    """What in a module could run code out of a file

    Arrays and weights come without pickle. An Unpickler is allowed only as a subclass that says
    which classes it takes."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call):
            owner, _, name = ast.unparse(node.func).rpartition(".")
            options = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            if name in UNPICKLERS.get(owner, ()) and not (
                owner.startswith("torch") and options.get("weights_only") is True
            ):
                yield f"line {node.lineno}: {owner}.{name}"
            if (owner, name) == ("pickle", "Unpickler"):
                yield f"line {node.lineno}: a bare Unpickler takes any class"
            for option, safe in dict(allow_pickle=False, weights_only=True).items():
                if options.get(option, safe) is not safe:
                    yield f"line {node.lineno}: {option}"
        if isinstance(node, ast.ClassDef) and any(
            "Unpickler" in ast.unparse(base) for base in node.bases
        ):
            if "find_class" not in {
                item.name for item in node.body if isinstance(item, ast.FunctionDef)
            }:
                yield f"{node.name} takes any class"
        if isinstance(node, ast.ImportFrom) and UNPICKLERS.get(node.module, set()) & {
            alias.name for alias in node.names
        }:
            yield f"line {node.lineno}: {node.module}"


@pytest.mark.parametrize("module", MODULES)
def test_nothing_is_unpickled(module):
    assert not list(unpickles((ROOT / "hydramix_nb" / f"{module}.py").read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    "code",
    [
        "pickle.load(f)",
        "torch.load(f)",
        "torch.serialization.load(f, weights_only=False)",
        "torch.serialization.load(f)",
        "torch.load(f, weights_only=safe)",
        "np.load(f, allow_pickle=True)",
        "pickle.Unpickler(f)",
        "class Any(pickle.Unpickler): pass",
        "from torch.serialization import load",
    ],
)
def test_unpickling_is_seen(code):
    assert list(unpickles(code)) and not list(
        unpickles("torch.load(f, weights_only=True), np.load(f, allow_pickle=False)")
    )


def repository():
    "Files under version control; without git, all that is not made by a tool"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode == 0 and listed.stdout:
        return [
            ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()
        ]
    folders = ["nbs", "hydramix_nb", "tests", ".ci"]
    return [
        p
        for f in folders
        for p in (ROOT / f).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    ] + [p for p in ROOT.iterdir() if p.is_file()]


def test_no_weights_or_pickles_in_the_repository():
    "But for the one small generator that comes with the package"
    kinds = {".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".npy", ".bin", ".safetensors"}
    shipped = ROOT / "hydramix_nb" / "pretrained.safetensors"
    assert [p for p in repository() if p.suffix in kinds] == [shipped]
    assert shipped.stat().st_size < 1_000_000


MACHINE = re.compile(
    r"(?<![\w./<])(?:/(?:home|Users|root|work|mnt|srv|scratch)/[\w.~-]+|/tmp/[\w.-]+|[A-Z]:\\\\?Users)"
)


def test_no_machine_paths_in_the_repository():
    found = []
    for path in repository():
        if path == Path(__file__).resolve():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        text = re.sub(r'"image/(?:png|jpeg|svg\+xml)": "[^"]*"', "", text)
        found += [f"{path.relative_to(ROOT)}: {match[0]}" for match in MACHINE.finditer(text)]
    assert not found, "\n".join(found)


# what is distributed


def distribute(work):
    "A source distribution of what is under version control, and the wheel that is built from it"
    for path in repository():
        there = work / "tree" / path.relative_to(ROOT)
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, there)
    hook = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"
    dist = work / "dist"
    options = dict(check=True, capture_output=True)
    subprocess.run(
        [sys.executable, "-c", hook.format("sdist"), str(dist)], cwd=work / "tree", **options
    )
    (source,) = dist.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # new in Python 3.11.4
        archive.extractall(work)
    unpacked = work / source.name.removesuffix(".tar.gz")
    subprocess.run([sys.executable, "-c", hook.format("wheel"), str(dist)], cwd=unpacked, **options)
    (wheel,) = dist.glob("*.whl")
    return unpacked, wheel


def test_distributions_install_and_compose_outside_a_checkout(tmp_path):
    unpacked, wheel = distribute(tmp_path)
    for needed in ("settings.ini", "README.md", "LICENSE", "CHANGELOG.md"):
        assert (unpacked / needed).is_file(), f"the source distribution lacks {needed}"
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
        archive.extractall(tmp_path / "site")  # what pip does with a wheel of pure Python
    kinds = "*.py *.csv *.safetensors py.typed"
    needed = [p for kind in kinds.split() for p in (ROOT / "hydramix_nb").glob(kind)]
    assert len(needed) > 50
    assert {f"hydramix_nb/{p.name}" for p in needed} <= inside
    assert "hydramix_nb/experiments/quickstart.ipynb" in inside
    out = subprocess.run(
        [sys.executable, "-c", COMPOSE],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    assert Path(out.stdout.strip()) == tmp_path / "site/hydramix_nb/__init__.py"


COMPOSE = """
import torch, hydramix_nb
from hydramix_nb import gan, sweeps
from hydramix_nb.data import load_images
from hydramix_nb.mixing import HydraMix
train = load_images("toys", few=(2, 0))[:6]
images = HydraMix(gan.pretrained(), train)(train.labels[:1])
assert images.shape == (1, 3, 32, 32) and images.isfinite().all()
assert sweeps.find_notebook("classify").is_file()
print(hydramix_nb.__file__)
"""
