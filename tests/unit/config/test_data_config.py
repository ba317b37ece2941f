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
