"""The package as it is distributed and installed: what it needs besides modules is there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.compiler import FLAGS

ROOT = Path(__file__).parents[1]
SOURCES = ("ftjax", "configs", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
ABSENT = ("torch", "peft", "accelerate", "sentence_transformers", "bitsandbytes")  # references
OWN = ("ftjax", "__editable__", "__pycache__")  # of the checkout


def call(*command: object, **more) -> str:
    process = subprocess.run([*map(str, command)], capture_output=True, text=True, **more)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy: building leaves folders beside what is built."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def distributed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("distributed")
    code = "from setuptools.build_meta import build_sdist as b; import sys; b(sys.argv[1])"
    call(sys.executable, "-c", code, folder, cwd=sources)
    shutil.unpack_archive(next(folder.glob("*.tar.gz")), folder)
    return next(folder.glob("ftjax-*/"))


@pytest.fixture(scope="module")
def environment(distributed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with a wheel of the source distribution, and what there is here besides,
    less the libraries that only tests import."""
    wheels, folder = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    site = site_of(folder)
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith((*ABSENT, *OWN)) and not (site / package.name).exists():
            (site / package.name).symlink_to(package)
    offline = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip")
    call(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, distributed)
    python = ("--python", folder / "bin/python")
    call(*pip, *python, "install", *offline, *wheels.glob("*.whl"))
    return folder


def site_of(environment: Path) -> Path:
    return next(environment.glob("lib/python3*/site-packages"))


@pytest.fixture(scope="module")
def installed(environment: Path) -> Path:
    """Where the wheel is installed."""
    return site_of(environment)


def said(folder: Path, elsewhere: Path, *arguments: str) -> str:
    """What a command says of the package in a folder, from a place without a checkout."""
    code = "import sys, ftjax, ftjax.commands.entry; print(ftjax.__file__); sys.exit(ftjax.commands.entry.main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    text = call(sys.executable, "-c", code, *arguments, cwd=elsewhere, env=environment)
    place, _, rest = text.partition("\n")
    assert place == str(folder / "ftjax" / "__init__.py")
    return rest


def test_pages_are_found_by_name_in_a_wheel(installed, tmp_path):
    assert not (installed / "configs").exists()
    names = {file.stem for file in (installed / "ftjax/configs").iterdir() if file.suffix == ".py"}
    assert names == {file.stem for file in (ROOT / "configs").glob("*.py")}
    assert "SST-2: sentiment of sentences" in said(installed, tmp_path, "list", "pages")
    text = said(installed, tmp_path, "config", "--config", "sst2:lora")
    assert text == said(ROOT, tmp_path, "config", "--config", "sst2:lora")
    assert "verified of each" in said(installed, tmp_path, "list", "models")


def test_an_editable_install_finds_those_of_the_checkout(sources, tmp_path):
    code = "from setuptools.build_meta import build_editable as b; import sys; b(sys.argv[1])"
    call(sys.executable, "-c", code, tmp_path, cwd=sources)
    assert not (sources / "ftjax/configs").exists()
    assert "SST-2: sentiment of sentences" in said(sources, tmp_path, "list", "pages")


def test_a_source_distribution_has_the_pages(distributed):
    assert (distributed / "configs/sst2.py").exists()


def test_a_wheel_trains_where_there_is_no_torch(environment, shallow, corpus, tmp_path):
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    clean["XLA_FLAGS"] = FLAGS

    def ftjax(*arguments: object) -> str:
        return call(environment / "bin/ftjax", *arguments, cwd=tmp_path, env=clean)

    assert "fine-tune" in ftjax("--help").lower()
    code = "import ftjax, importlib.util as u; print(ftjax.__file__, u.find_spec('torch'))"
    place = call(environment / "bin/python", "-c", code, cwd=tmp_path, env=clean)
    assert place.split() == [str(site_of(environment) / "ftjax/__init__.py"), "None"]
    given = ("--task", "classification", "--model", shallow, "--data", corpus, "--method", "lora")
    keys = ("train.steps=5", "train.eval_every=5", "data.max_length=32", "data.prepare=()")
    ftjax("train", *given, "--workdir", "run", *(f"--config.{key}" for key in keys))
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["steps"] == 5 and result["metrics"].keys() == {"validation", "test"}
