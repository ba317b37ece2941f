"""README's tree of files is what the docstrings say."""

import pytest

from scripts.readme_tree import BEGIN, END, ROOT, file_lines, first_line, with_tree


def test_readme_has_the_tree_of_the_code():
    readme = (ROOT / "README.md").read_text()
    assert with_tree(readme, ROOT) == readme, "README.md: its tree is out of date: make tree"


def test_every_module_has_its_line():
    lines = list(file_lines(ROOT))
    listed = {line.split()[0] for line in lines if line.startswith(" ")}
    folders = [ROOT / name for name in ("lingo_ds", "launchers", "scripts", "benchmarks")]
    modules = {path.name for folder in folders for path in folder.rglob("*.py")}
    assert modules - {"__init__.py"} == listed
    assert any(line.startswith("  cli.py ") for line in lines)


def test_what_is_outside_of_the_marks_stays():
    text = with_tree(f"before\n{BEGIN}\nold\n{END}\nafter\n", ROOT)
    assert text.startswith(f"before\n{BEGIN}\n```\nlingo_ds/") and text.endswith(
        f"</details>\n{END}\nafter\n"
    )
    assert "old" not in text.splitlines()


def test_a_missing_mark_and_a_missing_docstring_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"README\.md: has no lines"):
        with_tree("no marks", ROOT)
    module = tmp_path / "silent.py"
    module.write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"silent\.py: has no docstring"):
        first_line(module)
