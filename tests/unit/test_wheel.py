"""The wheel holds the package, the recipes and the DeepSpeed profiles, and nothing else of the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy so that the checkout stays as it is."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(CHECKOUT / name, copy / name)
    for name in ("lingo_ds", "recipes", "ds_configs", "tests", "launchers"):
        shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(copy)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = out.glob("lingo_ds-*.whl")
    return file


def test_holds_what_the_checkout_holds_and_no_more(wheel):
    files = (path for path in (CHECKOUT / "lingo_ds").rglob("*") if path.is_file())
    sources = {str(path.relative_to(CHECKOUT)): path for path in files if path.suffix != ".pyc"}
    for kind in ("recipes", "ds_configs"):
        sources |= {f"lingo_ds/{kind}/{path.name}": path for path in (CHECKOUT / kind).iterdir()}
    sources["lingo_ds/data/registry.yaml"] = CHECKOUT / "lingo_ds/data/registry.yaml"
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert names == set(sources)
        assert all(archive.read(name) == path.read_bytes() for name, path in sources.items())


def test_names_command_licence_and_dependencies(wheel):
    info = "lingo_ds-0.1.0.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        assert b"lingo-ds = lingo_ds.commands.cli:main" in archive.read(f"{info}/entry_points.txt")
        assert archive.read(f"{info}/licenses/LICENSE") == (CHECKOUT / "LICENSE").read_bytes()
        metadata = archive.read(f"{info}/METADATA").decode().splitlines()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Dist: torch>=2.10" in metadata


def test_installed_wheel_finds_its_own_files(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = ["pip", "install", "--quiet", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run([sys.executable, "-m", *install], check=True)
    code = (
        "from lingo_ds.utils.resources import list_resources, resource_path\n"
        "for kind in ('recipes', 'ds_configs'):\n"
        "    print(*(resource_path(kind, name) for name in list_resources(kind)), sep='\\n')"
    )
    # -S: without site-packages and its .pth files there is no editable install that could answer instead.
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), sysconfig.get_path("purelib")])}
    python = [sys.executable, "-S", "-c", code]
    done = subprocess.run(python, env=env, cwd=elsewhere, check=True, stdout=subprocess.PIPE, text=True)
    files = [path for kind in ("recipes", "ds_configs") for path in sorted((CHECKOUT / kind).iterdir())]
    assert done.stdout.split() == [str(target / "lingo_ds" / path.relative_to(CHECKOUT)) for path in files]
