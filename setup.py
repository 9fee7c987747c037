"Packaging: everything is stated in settings.ini, this only reads it."

from configparser import ConfigParser
from pathlib import Path
from shlex import split

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
parser = ConfigParser(delimiters=["="])
if not parser.read(here / "settings.ini", encoding="utf-8"):
    raise FileNotFoundError(f"{here}/settings.ini is missing")
cfg = parser["DEFAULT"]
readme = here / "README.md"
extras = {
    key.removesuffix("_requirements"): split(value)
    for key, value in cfg.items()
    if key.endswith("_requirements")
}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    author=cfg["author"],
    keywords=cfg["keywords"].split(),
    license_expression=cfg["license"],
    license_files=["LICENSE"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    classifiers=[
        "Development Status :: 3 - Alpha",
        f"Intended Audience :: {cfg['audience']}",
        f"Natural Language :: {cfg['language']}",
        "Programming Language :: Python :: 3",
    ],
    # the notebooks that sweeps execute travel with the package
    packages=find_packages(str(here), include=["hydramix_nb", "hydramix_nb.*"])
    + ["hydramix_nb.experiments"],
    package_dir={"hydramix_nb.experiments": "nbs/experiments"},
    package_data={
        "hydramix_nb": ["*.csv", "*.safetensors", "py.typed"],
        "hydramix_nb.experiments": ["*.ipynb"],
    },
    python_requires=">=" + cfg["min_python"],
    install_requires=split(cfg["requirements"]),
    extras_require=extras,
    entry_points={
        "console_scripts": [line for line in cfg["console_scripts"].splitlines() if line.strip()],
        "nbdev": [f"{cfg['lib_path']}=hydramix_nb._modidx:d"],
    },
    zip_safe=False,
)
