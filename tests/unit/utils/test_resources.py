"""Recipes and DeepSpeed profiles are found in a checkout and in an installed wheel alike."""

from pathlib import Path

import pytest

from lingo_ds.utils import resources
from lingo_ds.utils.errors import UserError

CHECKOUT = Path(__file__).resolve().parents[3]


@pytest.fixture(params=["checkout", "wheel"])
def layout(request, tmp_path, monkeypatch) -> Path:
    """An installation with two recipes and one profile; returns the folder that holds the recipes' folder."""
    package = tmp_path / "lingo_ds"
    home = tmp_path if request.param == "checkout" else package
    files = ["recipes/quickstart.yaml", "recipes/tf_0.yaml", "recipes/notes.txt", "ds_configs/zero3.json"]
    for file in files:
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(file)
    monkeypatch.setattr(resources, "PACKAGE", package)
    return home


def test_lists_names_of_one_kind_only(layout):
    assert resources.list_resources("recipes") == ["quickstart", "tf_0"]
    assert resources.list_resources("ds_configs") == ["zero3"]


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml"])
def test_finds_a_file_with_or_without_its_ending(layout, name):
    path = resources.resource_path("recipes", name)
    assert path == layout / "recipes" / "quickstart.yaml"
    assert path.read_text() == "recipes/quickstart.yaml"


def test_unknown_name_is_the_users_mistake_and_the_nearest_is_given(layout):
    with pytest.raises(UserError) as caught:
        resources.resource_path("recipes", "quikstart")
    (mistake,) = caught.value.mistakes
    assert (mistake.where, mistake.value) == ("recipes", "quikstart")
    assert mistake.fix.startswith("use 'quickstart'")


@pytest.mark.parametrize(
    "name", ["", ".", "notes.txt", "zero3", "../ds_configs/zero3", "../recipes/quickstart"]
)
def test_only_listed_names_are_found(layout, name):
    with pytest.raises(UserError):
        resources.resource_path("recipes", name)


def test_installation_without_files_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "PACKAGE", tmp_path / "lingo_ds")
    with pytest.raises(UserError, match="install lingo_ds again"):
        resources.resource_path("recipes", "quickstart")


@pytest.mark.parametrize("kind", ["recipes", "ds_configs"])
def test_every_file_of_the_checkout_is_found(kind):
    files = sorted((CHECKOUT / kind).iterdir())
    assert files
    assert [resources.resource_path(kind, file.name) for file in files] == files
