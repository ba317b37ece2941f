"""docs/pictures/rooms.svg shows the import rules as they are."""

from scripts.import_rules import PACKAGE, read_rules
from scripts.readme_tree import ROOT
from scripts.rooms_picture import draw, labels

COMMITTED = ROOT / "docs/pictures/rooms.svg"


def test_the_committed_picture_has_the_labels_of_a_new_one(tmp_path):
    draw(ROOT, tmp_path / "rooms.svg")
    new = labels((tmp_path / "rooms.svg").read_text())
    assert labels(COMMITTED.read_text()) == new, "docs/pictures/rooms.svg is out of date: make picture"


def test_it_shows_every_room_layer_and_seam():
    shown = " ".join(labels(COMMITTED.read_text()))
    rules = read_rules(ROOT)
    words = set(shown.replace("|", " ").split())
    for layers in rules.floors.values():
        assert {name for layer in layers for name in layer} <= words
    for seam in rules.seams:
        for module in seam.modules:
            assert f"{seam.library} is imported by {module.partition('.')[2]}" in shown


def test_the_rules_name_every_room_and_both_seams():
    rules = read_rules(ROOT)
    rooms = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert {name for floor in rules.floors[PACKAGE] for name in floor} == rooms
    by_library = {seam.library: set(seam.modules) for seam in rules.seams}
    assert by_library["deepspeed"] == {"models.backbone.zero", "distributed.process_group"}
    assert by_library["bitsandbytes"] == {"models.backbone.quantized_linear"}
    assert not by_library["peft"]
