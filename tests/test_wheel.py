"""The package as it is installed: what it needs besides modules is there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ("ftjax", "configs", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


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
def installed(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the wheel is installed."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("site")
    offline = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")
    pip = (sys.executable, "-m", "pip")
    call(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", wheels, sources)
    call(*pip, "install", *offline, "--target", target, *wheels.glob("*.whl"))
    return target


def said(folder: Path, elsewhere: Path, *arguments: str) -> str:
    """What a command says of the package in a folder, from a place without a checkout."""
    code = "import sys, ftjax, ftjax.commands.entry; print(ftjax.__file__); sys.exit(ftjax.commands.entry.main())"
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


def test_a_source_distribution_has_the_pages(sources, tmp_path):
    code = "from setuptools.build_meta import build_sdist as b; import sys; b(sys.argv[1])"
    call(sys.executable, "-c", code, tmp_path, cwd=sources)
    shutil.unpack_archive(next(tmp_path.glob("*.tar.gz")), tmp_path)
    assert next(tmp_path.glob("ftjax-*/configs/sst2.py"))
