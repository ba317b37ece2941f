"""The options of every verb of the command line."""

import argparse
from pathlib import Path

BASELINES = ("logistic", "cnn")


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return number


def _count_or_none(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _layer(text: str) -> int | None:
    """The number of a layer; None: the last."""
    if text == "last":
        return None
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number nor last") from None


def _grid_setting(text: str) -> str:
    """`NAME=V1,V2` as the setting of a suite that it stands for."""
    name, equals, values = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=V1,V2, e.g. adapter.rank=4,8")
    return f"grid.{name}={values if values.startswith('[') else f'[{values}]'}"


def recipe_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of a verb that reads a recipe."""
    add = parser.add_argument
    help = "A recipe: a YAML file, or the name of a shipped one, e.g. quickstart."
    add("--config", required=True, metavar="FILE", help=help)
    help = (
        "Values of one setting to try, e.g. train.learning_rate=1e-4,3e-4; the best on dev is chosen. "
        "Several --grid try all combinations."
    )
    add("--grid", action="append", default=[], type=_grid_setting, metavar="NAME=V1,V2", help=help)


def baseline_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `baseline`."""
    recipe_options(parser)
    help = (
        "logistic: logistic regression of one-hot bases, for values ridge regression; cnn: a small "
        "convolutional network on them (default: both)."
    )
    parser.add_argument("--models", nargs="+", default=BASELINES, metavar="NAME", help=help)


def plan_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `plan`."""
    recipe_options(parser)
    about = (
        "Prints memory, FLOPs, bytes, seconds and advice. Of the backbone only config.json and the\n"
        "tokenizer are read; with --tokens and --rows neither tokenizer nor data."
    )
    add = parser.add_argument_group("a job on other machines", about).add_argument
    absent = "when the data is not on this machine"
    add("--gpu", metavar="NAME", help="The kind of GPU, e.g. h200, h100, a100 or l40s.")
    add("--hosts", type=_count, metavar="N", help="Number of hosts (default: 1).")
    add("--gpus", type=_count, metavar="N", help="Number of GPUs in each host (default: 8).")
    add("--link", metavar="RATE", help="Network of each host, e.g. 8x400Gb for eight cards (default: 400Gb).")
    add("--tokens", type=_count, metavar="N", help=f"Tokens per example, {absent}; needs --rows.")
    add("--rows", type=_count, metavar="N", help=f"Number of training examples, {absent}; needs --tokens.")
    shared = "How many of the --tokens are a prefix that all examples have in common (default: 0)."
    add("--shared", type=int, metavar="N", help=shared)
    add("--json", type=Path, metavar="FILE", help="A file to write plan, estimate and advice to.")


def _adapter_option(parser: argparse.ArgumentParser) -> None:
    help = (
        "The folder of a run, or the adapter/ in it; or the hub id of a published adapter, OWNER/NAME or "
        "OWNER/NAME@REVISION."
    )
    parser.add_argument("--adapter", required=True, type=Path, metavar="ADAPTER", help=help)


def _backbone_option(parser: argparse.ArgumentParser) -> None:
    help = "Folder or hub id of the backbone, if it has moved."
    parser.add_argument("--backbone", metavar="PATH", help=help)


def predict_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `predict`."""
    add = parser.add_argument
    _adapter_option(parser)
    source = (
        "Sequences in .csv .tsv .jsonl .fa .fasta .fna (also .gz) or .parquet; with --genome variants in "
        ".vcf or intervals in .bed .narrowPeak .broadPeak (also .gz). FASTA and VCF may have any name."
    )
    add("--input", required=True, type=Path, dest="source", metavar="FILE", help=source)
    target = "The file to write: .csv .tsv (also .gz) or .parquet."
    add("--output", required=True, type=Path, dest="target", metavar="FILE", help=target)
    _input_options(parser)
    embeddings = "Write a column of pooled hidden states, too: what the head reads, as lists in .parquet."
    add("--embeddings", action="store_true", help=embeddings)
    layer = "The layer of these states, from 0, the input embeddings (default: last, which the head reads)."
    add("--layer", type=_layer, metavar="K|last", help=layer)
    _backbone_option(parser)
    add("--overwrite", action="store_true", help="Replace the output file if it exists.")


def _input_options(parser: argparse.ArgumentParser) -> None:
    """Declares how the file of `--input` is read."""
    add = parser.add_argument
    column = "The column that holds the DNA (default: sequence)."
    add("--sequence-column", default="sequence", metavar="NAME", help=column)
    column = "The column that holds the ids (default: id if there is one, else rows are numbered from 0)."
    add("--id-column", metavar="NAME", help=column)
    genome = "The genome to which the positions of variants or intervals refer."
    add("--genome", type=Path, metavar="FASTA", help=genome)
    window = (
        "Bases to read around each variant (default: as many as the training sequences had) or around the "
        "centre of each interval (default: as in training)."
    )
    add("--window", type=int, metavar="BASES", help=window)
    flank = "Bases to read on both sides of each interval, instead of a window (default: as in training)."
    add("--flank", type=int, metavar="BASES", help=flank)
    center = "What the window of an interval lies around (default: as in training)."
    add("--center", choices=["middle", "summit"], help=center)
    strict = "Refuse a file that has rows which do not fit the genome, instead of skipping these rows."
    add("--strict", action="store_true", help=strict)


def explain_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `explain`."""
    add = parser.add_argument
    _adapter_option(parser)
    source = (
        "Sequences in .csv .tsv .jsonl .fa .fasta .fna (also .gz) or .parquet; with --genome intervals in "
        ".bed .narrowPeak .broadPeak, or variants in .vcf, both of whose alleles are explained (also .gz)."
    )
    add("--input", required=True, type=Path, dest="source", metavar="FILE", help=source)
    add("--output", required=True, type=Path, metavar="DIR", help="The folder to write.")
    target = (
        "The class, label or value to explain, by its name or its number from 0 (default: the positive class "
        "of two, or the only output)."
    )
    add("--target", metavar="NAME", help=target)
    method = (
        "ism: saturation mutagenesis, every base to every other (default). integrated-gradients: much fewer "
        "passes, for adapters trained with data.tokens=nucleotides."
    )
    add("--method", choices=["ism", "integrated-gradients"], default="ism", help=method)
    steps = "Steps of integrated gradients (default: 32); a warning tells when they are too few."
    add("--steps", type=_count, default=32, metavar="N", help=steps)
    both = "Average over each sequence and its reverse complement; positions stay those of the sequence."
    add("--both-strands", action="store_true", help=both)
    limit = "Explain the first N sequences (default: all); of a VCF each allele's window is one."
    add("--limit", type=_count, metavar="N", help=limit)
    pictures = "Draw the first N sequences (default: 20)."
    add("--pictures", type=_count_or_none, default=20, metavar="N", help=pictures)
    motifs = "Find the motifs of all sequences: motifs.meme, motifs.csv and a logo of each."
    add("--motifs", action="store_true", help=motifs)
    database = "Motifs in MEME format, e.g. JASPAR's, to compare those found with; implies --motifs."
    add("--database", type=Path, metavar="FILE", help=database)
    _input_options(parser)
    _backbone_option(parser)
    add("--overwrite", action="store_true", help="Replace what another job wrote into the folder.")


def scan_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `scan`."""
    add = parser.add_argument
    _adapter_option(parser)
    add("--genome", required=True, type=Path, metavar="FASTA", help="The genome to scan.")
    output = "The track to write: .bw .bigwig, .bedgraph .bdg .bg, or .bed (the last two also .gz)."
    add("--output", required=True, type=Path, metavar="FILE", help=output)
    step = "Bases of a tile: each has one value, that of the window around its middle."
    add("--step", required=True, type=int, metavar="BASES", help=step)
    contig = "A contig to scan; may be given several times (default: all, unless there are --regions)."
    add("--contig", action="append", default=[], dest="contigs", metavar="NAME", help=contig)
    add("--regions", type=Path, metavar="BED", help="Intervals to scan, instead of whole contigs.")
    window = "Bases to read around the middle of a tile (default: as many as the training sequences had)."
    add("--window", type=int, metavar="BASES", help=window)
    target = "The class, label or value (default: the positive class of two, or the only value)."
    add("--target", metavar="NAME", help=target)
    strand = "The strand to read, or which of both strands' answers to take (default: forward)."
    add("--strand", choices=["forward", "reverse", "max", "mean"], default="forward", help=strand)
    max_n = "Largest share of N in a window; a tile with more is a gap of the track (default: 0.1)."
    add("--max-n", type=float, default=0.1, metavar="SHARE", help=max_n)
    peaks = "A file of peaks to write, as narrowPeak: .bed or .narrowPeak."
    add("--peaks", type=Path, metavar="FILE", help=peaks)
    threshold = "The value that peaks are above (default: the adapter's own for a class or label)."
    add("--threshold", type=float, metavar="VALUE", help=threshold)
    _backbone_option(parser)
    add("--overwrite", action="store_true", help="Replace files that exist.")


def export_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `export`."""
    add = parser.add_argument
    _adapter_option(parser)
    to = "The format: an AdaLoRA or LoRA folder of PEFT, or a whole Hugging Face model."
    add("--to", required=True, choices=["adalora", "lora", "merged"], help=to)
    add("--output", required=True, type=Path, metavar="DIR", help="The folder to write.")
    _backbone_option(parser)
    dtype = "Data type of merged weights (default: the backbone's own)."
    add("--dtype", choices=["fp32", "bf16", "fp16"], help=dtype)
    size = "Size of the largest file of a merged model (default: 4)."
    add("--shard-gb", type=float, default=4.0, metavar="GB", help=size)
    license = "License for the model card, as the Hugging Face hub names it (default: other)."
    add("--license", default="other", metavar="NAME", help=license)
    overwrite = "Replace an earlier export; with --push also files of a model that is on the hub already."
    add("--overwrite", action="store_true", help=overwrite)
    push = "Publish the folder under this id on the Hugging Face hub, with the login of `hf auth login`."
    add("--push", metavar="OWNER/NAME", help=push)
    add("--private", action="store_true", help="Publish it for its owner alone.")
    dry = "With --push: list what would be uploaded, and upload nothing; needs no network."
    add("--dry-run", action="store_true", help=dry)


def report_options(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `report`."""
    help = "The folder of a run or of a suite; of a suite the reports of its runs are written, too."
    parser.add_argument("run", type=Path, metavar="RUN", help=help)
