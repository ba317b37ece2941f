"""The section `data` refuses settings that contradict each other."""

import pytest

from tests.unit.config.recipes import MINIMAL


@pytest.mark.parametrize(
    "prefix",
    [
        "DNA:",
        "{sequence}{sequence}",
        "{Sequence}",
        "{}{sequence}",
        "{ }{sequence}",
        "{domain}",
        "{sequence",
        "{sequence!r}",
        "",
    ],
)
def test_template_needs_the_sequence_once_and_names_in_braces(refused, prefix):
    text = MINIMAL + f"  prefix: '{prefix}'\n  domain: yeast\n"
    (mistake,) = refused(text)
    assert mistake.where.startswith("data") and "run.yaml:" in mistake.where
    assert mistake.value == prefix and "{sequence} once" in mistake.rule


@pytest.mark.parametrize("column", ["label", "class"])
def test_template_must_not_name_the_answer(refused, load, column):
    text = MINIMAL + f"  label_column: {column}\n  prefix: 'Class: {{{column}}}, {{sequence}}'\n"
    (mistake,) = refused(text)
    assert mistake.where.startswith("data.prefix (") and "holds the answer" in mistake.rule
    assert load(text.replace(f"{{{column}}}", "{cell}")).data.prefix == "Class: {cell}, {sequence}"


@pytest.mark.parametrize("name", ["root", "hyperparameters"])
def test_what_only_a_known_task_reads_is_refused_without_one(refused, name):
    (mistake,) = refused(MINIMAL, f"data.{name}=lingo")
    assert mistake.where == f"data.{name} (command line)" and "without data.task" in mistake.rule


def test_template_with_domain_needs_the_domain(load, refused):
    text = MINIMAL + '  prefix: "Domain: {domain}\\nSequence: {sequence}\\nAnnotation:"\n'
    (mistake,) = refused(text)
    assert mistake.where.startswith("data.domain (") and mistake.fix == "set it"
    assert (
        load(text + "  domain: yeast\n").data.prefix == "Domain: {domain}\nSequence: {sequence}\nAnnotation:"
    )


@pytest.mark.parametrize(
    "settings, field, says",
    [
        (["data.dev_fraction=0.5", "data.test_fraction=0.5"], "data.test_fraction", "leave no training rows"),
        (["data.format=bed"], "data.intervals.genome", "is needed by data.format bed"),
        (["data.format=fasta", "data.intervals.genome=g.fa"], "data.intervals", "data.format fasta"),
        (["data.format=table", "data.subset=x"], "data.subset", "data.format table"),
        (["data.format=bed", "data.intervals.genome=g.fa", "data.only_task=x"], "data.only_task", "bed"),
        (
            ["data.intervals.genome=g.fa", "data.intervals.window=9", "data.intervals.flank=1"],
            "data.intervals.flank",
            "cannot be combined with data.intervals.window",
        ),
        (
            [
                "data.intervals.genome=g.fa",
                "data.intervals.dev_chromosomes=[c1, c2]",
                "data.intervals.test_chromosomes=[c2]",
            ],
            "data.intervals.test_chromosomes",
            "dev_chromosomes too",
        ),
        (["data.intervals.window=200"], "data.intervals.genome", "is required"),
        (["data.intervals.genom=g", "data.intervals.genome=g"], "data.intervals.genom", "is not a known"),
    ],
)
def test_settings_of_data_that_contradict_are_refused(refused, settings, field, says):
    (mistake,) = refused(MINIMAL, *settings)
    assert mistake.where == f"{field} (command line)" or mistake.where == f"{field} (run.yaml:4)"
    assert says in mistake.rule and mistake.fix


def test_one_or_several_label_columns(load):
    assert load().data.label_columns == ("label",)
    assert load(MINIMAL, "task.kind=multilabel", "data.label_column=[a, b]").data.label_columns == ("a", "b")


# -- names that YAML takes for numbers

NAMES = {
    "label_column: 3": ("label_column", "3"),
    "label_column: [1, 2]\ntask: {kind: multilabel}": ("label_column", ("1", "2")),
    "class_names: [0, 1.5, x]": ("class_names", ("0", "1.5", "x")),
    "sequence_column: 0": ("sequence_column", "0"),
    "pair_column: 1": ("pair_column", "1"),
    "only_task: 7": ("only_task", "7"),
    "domain: 9": ("domain", "9"),
    "revision: 1234567": ("revision", "1234567"),
}


@pytest.mark.parametrize("line", NAMES)
def test_a_number_may_be_a_name(load, line):
    name, value = NAMES[line]
    assert getattr(load(f"{MINIMAL}  {line}\n").data, name) == value


def test_chromosomes_and_labels_may_be_numbers(load):
    intervals = "  intervals: {genome: g.fa, dev_chromosomes: [2], test_chromosomes: [X, 3]}\n"
    config = load(f"{MINIMAL}{intervals}task: {{labels: [0, 1]}}\n", "name=2024")
    assert config.data.intervals.dev_chromosomes == ("2",)
    assert config.data.intervals.test_chromosomes == ("X", "3")
    assert config.task.labels == ["0", "1"] and config.name == "2024"


@pytest.mark.parametrize(
    "line", ["label_column: true", "class_names: [true, false]", "only_task: .nan", "task: no"]
)
def test_what_is_no_name_is_refused(refused, line):
    assert all(
        mistake.where.startswith(f"data.{line.split(':')[0]}") for mistake in refused(f"{MINIMAL}  {line}\n")
    )


def test_a_number_is_looked_up_as_the_name_of_a_task(refused):
    (mistake,) = refused(f"{MINIMAL}  task: 3\n")
    assert mistake.where == "data.task (run.yaml:6)" and mistake.value == "3"


def test_a_summit_needs_a_window(refused, load):
    lines = f"{MINIMAL}  intervals: {{genome: g.fa, center: summit}}\n"
    (mistake,) = refused(lines)
    assert mistake.where.startswith("data.intervals.center (run.yaml:6)") and "needs a window" in mistake.rule
    assert load(lines, "data.intervals.window=100").data.intervals.center == "summit"
