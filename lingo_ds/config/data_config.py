"""The config's `data` section: where labelled sequences are, and how they become text."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from lingo_ds.config.fields import BelowOne, Name, PathText, PositiveInt, Section, UserPath, rule_error
from lingo_ds.config.templates import columns_in, names_in

PackingMode = Annotated[
    Literal["auto", "off"],
    Field(
        description="auto: examples without padding in one row, their common prefix once, where the family's "
        "attention allows it; off: batches padded to their longest example.",
    ),
]

Format = Literal["auto", "table", "fasta", "class_folders", "bed", "deepsea", "dataset"]


class IntervalsConfig(Section):
    """Intervals of a genome (BED) as examples."""

    genome: PathText = Field(
        description="FASTA of the reference genome, plain or gzipped; its index is written if there is none."
    )
    window: Annotated[int, Field(ge=1, le=1 << 24)] | None = Field(
        None,
        description="Width in bases of a window around each interval's centre. null: the interval itself.",
    )
    flank: Annotated[int, Field(ge=0, le=1 << 20)] = Field(
        0, description="Bases added on both sides of each interval."
    )
    negatives: Annotated[float, Field(ge=0, le=1000)] = Field(
        0.0,
        description="Number of windows drawn per interval from the same chromosome, of its length and GC "
        "share and outside of all intervals. Above 0, intervals are class 1, these are class 0, and no label "
        "is read.",
    )
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(0, description="Seed of the windows that are drawn.")
    center: Literal["middle", "summit"] = Field(
        "middle",
        description="What a window lies around: the interval's middle, or the summit of a peak, which column "
        "10 of narrowPeak holds.",
    )
    dev_chromosomes: tuple[Name, ...] = Field((), description="Chromosomes that make up the dev split.")
    test_chromosomes: tuple[Name, ...] = Field((), description="Chromosomes that make up the test split.")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.window is not None and self.flank:
            raise rule_error(
                "cannot be combined with data.intervals.window",
                "set only one",
                field="data.intervals.flank",
                value=self.flank,
            )
        return self

    @model_validator(mode="after")
    def _window_at_summit(self) -> Self:
        if self.center == "summit" and self.window is None:
            raise rule_error(
                "needs a window to lie around it",
                "set data.intervals.window too",
                field="data.intervals.center",
                value=self.center,
            )
        return self

    @model_validator(mode="after")
    def _chromosomes_apart(self) -> Self:
        if both := sorted({*self.dev_chromosomes} & {*self.test_chromosomes}):
            raise rule_error(
                "is among data.intervals.dev_chromosomes too",
                "leave it in only one",
                field="data.intervals.test_chromosomes",
                value=both[0],
            )
        return self


class DataConfig(Section):
    """Labelled sequences and how they become text."""

    task: Name | None = Field(
        None,
        description="Name of a known task (docs/tasks.md), which gives folder, domain and metric where the "
        "recipe does not. null: no known task.",
    )
    root: PathText | None = Field(
        None, description="Folder that holds the files of known tasks, e.g. GUE's. null: data.path says it."
    )
    hyperparameters: str | None = Field(
        None, description="Name of published settings for the task: `lingo` or `dnabert2`. null: none."
    )
    path: PathText = Field(
        description="File or folder of labelled sequences (docs/data.md), hub id with format `dataset`, "
        "or `builtin:promoters`."
    )
    format: Format = Field(
        "auto", description="Format of what is at the path. auto: as the files' endings and folders show."
    )
    sequence_column: Name = Field("sequence", description="Column of a table that holds the DNA.")
    pair_column: Name | None = Field(
        None,
        description="Column that holds a second sequence. null: `sequence2` of a table that has `sequence1` "
        "and `sequence2` instead of `sequence`, else none.",
    )
    pair_separator: str = Field("\n", description="Text between the two sequences of a pair.")
    label_column: Name | tuple[Name, ...] | None = Field(
        None,
        description="Column that holds the class, an integer from 0 or a name; or a list of columns; * in a "
        "name stands for any letters. null: `label`; of task.kind multilabel, where there is no such column, "
        "all that are not read as something else.",
    )
    class_names: tuple[Name, ...] | None = Field(
        None, description="Names of the classes 0, 1, .. in order. null: the names in the data, sorted."
    )
    only_task: Name | None = Field(
        None,
        description="Task whose examples alone are used, named in the third part of a FASTA header "
        "(>id|label|task) or in the column `task` of a table. null: all.",
    )
    subset: Name | None = Field(None, description="Configuration of a dataset on the hub. null: its default.")
    revision: Name | None = Field(
        None, description="Branch, tag or commit of a dataset on the hub. null: the newest."
    )
    one_hot_order: str | None = Field(
        None, description="Order of the one-hot channels. null: AGCT in a .mat (DeepSEA's), ACGT in a .npz."
    )
    intervals: IntervalsConfig | None = Field(
        None, description="Genome and windows of intervals in BED. null: the data is not BED."
    )
    dev_fraction: Annotated[BelowOne, Field(gt=0)] = Field(
        0.1, description="Share of the training rows that becomes dev where the data has no dev split."
    )
    test_fraction: Annotated[BelowOne, Field(gt=0)] = Field(
        0.1, description="Share of the training rows that becomes test where the data has no test split."
    )
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        0,
        description="Seed with which these shares are drawn; the run's own seed does not change the splits.",
    )
    prefix: str | None = Field(
        None,
        description="Template of the text around the DNA, with {sequence} and optionally {domain} and "
        "{column}s of the data; or the name of one: published, rich, none. null: the sequence alone.",
    )
    domain: Name | None = Field(
        None, description="Text for {domain} in the template, e.g. `human core promoters`. null: none."
    )
    max_length: PositiveInt | None = Field(
        None,
        description="Length of the longest example in tokens; longer sequences lose their end. "
        "null: the backbone's context.",
    )
    tokens: Literal["text", "nucleotides"] = Field(
        "text",
        description="text: the backbone's tokenizer reads the DNA with the text around it; "
        "nucleotides: one token per base, with learned embeddings of A, C, G, T and N (any other letter; U "
        "is T) that start from the backbone's own embeddings of these letters.",
    )
    packing: PackingMode = "auto"
    reverse_complement: Literal["off", "augment", "average", "both"] = Field(
        "off",
        description="off: the strand that is given; augment: each epoch reads each training example on a "
        "strand drawn anew; average: dev, test and predictions are mean probabilities over both strands; "
        "both: augment and average.",
    )
    strand_specific: bool = Field(
        False,
        description="Whether the label depends on the strand; reverse_complement is then refused.",
    )
    cache_dir: UserPath | None = Field(
        None,
        description="Folder of converted and tokenised data. null: $LINGO_DS_CACHE or ~/.cache/lingo_ds.",
    )

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The names of the label columns, one or several."""
        if self.label_column is None:
            return ("label",)
        return (self.label_column,) if isinstance(self.label_column, str) else self.label_column

    @property
    def augments(self) -> bool:
        """Whether training reads both strands."""
        return self.reverse_complement in ("augment", "both")

    @property
    def averages(self) -> bool:
        """Whether evaluation reads both strands."""
        return self.reverse_complement in ("average", "both")

    @model_validator(mode="after")
    def _strands(self) -> Self:
        if self.strand_specific and self.reverse_complement != "off":
            raise rule_error(
                "gives the label of one strand to the other, which data.strand_specific rules out",
                "set data.reverse_complement=off",
                field="data.reverse_complement",
                value=self.reverse_complement,
            )
        return self

    @field_validator("label_column", "class_names")
    @classmethod
    def _each_once(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        if isinstance(value, tuple) and (not value or len(set(value)) < len(value)):
            raise rule_error("must hold names, each once", "write e.g. [first, second]")
        return value

    @field_validator("one_hot_order")
    @classmethod
    def _all_bases(cls, value: str | None) -> str | None:
        if value is not None and sorted(value) != list("ACGT"):
            raise rule_error("is not A, C, G and T in some order", "write e.g. ACGT")
        return value

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.dev_fraction + self.test_fraction >= 1:
            raise rule_error(
                f"and data.dev_fraction {self.dev_fraction} leave no training rows",
                "lower one of them",
                field="data.test_fraction",
                value=self.test_fraction,
            )
        return self

    @model_validator(mode="after")
    def _fits_format(self) -> Self:
        """Refuses settings that the format does not read; with `auto` this is checked when data is opened."""
        if self.format != "auto":
            for name in self.unread_by(self.format):
                raise rule_error(
                    f"has no effect with data.format {self.format}",
                    "remove it or set another data.format",
                    field=f"data.{name}",
                    value=getattr(self, name),
                )
        if self.format == "bed" and self.intervals is None:
            raise rule_error(
                "is needed by data.format bed",
                "name the reference FASTA",
                field="data.intervals.genome",
                value="nothing",
            )
        return self

    def unread_by(self, format: str) -> list[str]:
        """Names of the settings that are set although a format does not read them."""
        readers = {
            "intervals": ("bed",),
            "subset": ("dataset",),
            "revision": ("dataset",),
            "one_hot_order": ("deepsea",),
            "only_task": ("table", "fasta", "dataset"),
            "pair_column": ("table", "dataset"),
        }
        return [name for name, of in readers.items() if format not in of and getattr(self, name) is not None]

    @property
    def prompt_columns(self) -> tuple[str, ...]:
        """Columns of the data that the template reads, each once."""
        return columns_in(self.prefix or "")

    @model_validator(mode="after")
    def _of_a_task(self) -> Self:
        for name in ("root", "hyperparameters"):
            if self.task is None and getattr(self, name) is not None:
                raise rule_error(
                    "has no effect without data.task",
                    "set data.task, or remove it",
                    field=f"data.{name}",
                    value=getattr(self, name),
                )
        return self

    @model_validator(mode="after")
    def _template(self) -> Self:
        if self.prefix is None:
            return self
        names = names_in(self.prefix)
        if names.count("sequence") != 1 or not all(name.strip() for name in names):
            raise rule_error(
                "needs {sequence} once; other names in braces are {domain} or columns of the data",
                "write e.g. 'Domain: {domain}\\nSequence: {sequence}\\nAnnotation:', or published",
                field="data.prefix",
                value=self.prefix,
            )
        if answers := [name for name in names if name in self.label_columns]:
            raise rule_error(
                f"names {{{answers[0]}}}, the column that holds the answer",
                "leave it out",
                field="data.prefix",
                value=self.prefix,
            )
        if "domain" in names and self.domain is None:
            raise rule_error(
                "is needed by {domain} in data.prefix", "set it", field="data.domain", value="nothing"
            )
        return self
