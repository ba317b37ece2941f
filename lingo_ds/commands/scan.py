"""`lingo-ds scan`: slides an adapter over a genome, and writes its answers as a track and as peaks."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from lingo_ds.commands.predict import trained_window
from lingo_ds.config.run_config import PredictConfig
from lingo_ds.data.readers.genome import Genome
from lingo_ds.data.streams.tiles import Strand, Tiles, spans_of_contigs, spans_of_regions
from lingo_ds.distributed import agreement
from lingo_ds.distributed.job import job
from lingo_ds.distributed.process_group import DistEnv
from lingo_ds.evaluation.load_predictor import build_predictor, locate_adapter, read_source
from lingo_ds.evaluation.prediction_file import FinishedParts, PredictionFile, check_output
from lingo_ds.evaluation.prediction_job import prediction_job, run_job, warn_of_truncated
from lingo_ds.evaluation.predictor import Predictor
from lingo_ds.export.adapter_card import Card
from lingo_ds.export.adapter_folder import adapter_fingerprint
from lingo_ds.interpret.peaks import PEAK_SUFFIXES, find_peaks, write_peaks
from lingo_ds.interpret.target import Target, find_target
from lingo_ds.interpret.tracks import TRACK_SUFFIXES, TrackFormat, TrackTable, read_parts
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError
from lingo_ds.utils.files import atomic_write, default_cache

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ScanRequest:
    """What the command line asks for.

    Attributes:
        adapter: the folder of a run, or the `adapter/` in it.
        genome: the FASTA that is scanned.
        output: the track to write.
        step: bases of a tile, which has one value.
        contigs: contigs to scan; none, and no `regions`: all.
        regions: a BED whose intervals are scanned.
        window: bases that are read around the middle of a tile; None: as many as the adapter's training
            sequences had.
        target: name of the class, label or value; None: the positive class of two, or the only output.
        strand: which strand is read, or what is taken of the answers for both.
        max_n: largest share of N in a window that is predicted; a tile with more is a gap of the track.
        peaks: the file of peaks to write; None: none.
        threshold: the value above which a tile is of a peak; None: the adapter's own.
        overwrite: whether to replace files that exist.
    """

    adapter: Path
    genome: Path
    output: Path
    step: int
    contigs: Sequence[str] = ()
    regions: Path | None = None
    window: int | None = None
    target: str | None = None
    strand: Strand = "forward"
    max_n: float = 0.1
    peaks: Path | None = None
    threshold: float | None = None
    overwrite: bool = False


def scan(request: ScanRequest, config: PredictConfig, env: DistEnv) -> bool:
    """Writes the track of a genome, or resumes a scan that was stopped.

    Args:
        request: what is scanned, and how.
        config: how the adapter is computed.
        env: this process's rank and device.

    Returns:
        Whether the track is complete; False after Ctrl-C or SIGTERM.

    Raises:
        UserError: for mistakes in the request, the adapter or the genome.
    """
    with job(config.to_yaml(), env, output=request.output):
        request = replace(request, adapter=locate_adapter(request.adapter, env))
        source = read_source(request.adapter, config, env)
        card = source.adapter.card
        target = find_target(card.task, request.target)
        with agreement.errors_raised_on_all(env):
            _check(request, card, target)
        agreement.run_once_per_host(lambda: _open(request), env)  # makes an index of the genome
        with agreement.errors_raised_on_all(env):
            genome = _open(request)
            tiles = _tiles(request, genome)
            if env.is_main:
                _check_files(request)
            format = TrackFormat(request.output, target, genome.lengths)
        logger.info(
            "%s of windows of %s bases, one for each of %s tiles of %s bases",
            *(target, f"{tiles.window:,}", f"{tiles.count:,}", f"{tiles.step:,}"),
        )
        predictor = build_predictor(source, config, env)
        output = PredictionFile(request.output, format=format)
        table = TrackTable(target, tiles, stranded=not card.average_strands)
        key = _key(request, config, predictor, tiles)
        finish = partial(_finish, request, tiles, target, output, predictor)
        return run_job(prediction_job(predictor, tiles, table, output, key=key), before_joining=finish)


def _key(request: ScanRequest, config: PredictConfig, predictor: Predictor, tiles: Tiles) -> dict[str, Any]:
    """What the values of a track follow from."""
    return {
        "adapter": adapter_fingerprint(request.adapter),
        "tiles": tiles.fingerprint(),
        "target": request.target,
        "settings": config.model_dump(mode="json", exclude={"zero"}),
        "dtype": predictor.dtype,
    }


def _check(request: ScanRequest, card: Card, target: Target) -> None:
    """Raises for options that contradict each other, the adapter or sense."""
    mistakes = []
    for name, value in (("step", request.step), ("window", request.window)):
        if value is not None and value < 1:
            mistakes.append(Mistake(f"--{name}", value, "must be 1 or more", "give a number of bases"))
    if not 0 <= request.max_n <= 1:
        mistakes.append(Mistake("--max-n", request.max_n, "is no share", "give a number from 0 to 1"))
    if request.contigs and request.regions:
        rule = "cannot be combined with --contig"
        mistakes.append(Mistake("--regions", request.regions, rule, "give only one of them"))
    if request.strand != "forward" and card.average_strands:
        rule = "has no effect: the adapter reads both strands itself and averages them"
        mistakes.append(Mistake("--strand", request.strand, rule, "leave it away"))
    if request.threshold is not None and request.peaks is None:
        rule, fix = "has no effect without --peaks", "name the file of peaks"
        mistakes.append(Mistake("--threshold", request.threshold, rule, fix))
    if request.peaks is not None and request.threshold is None and target.threshold is None:
        rule = f"is needed for --peaks: {target} has none of its own"
        mistakes.append(Mistake("--threshold", "nothing", rule, "give the value that peaks are above"))
    if mistakes:
        raise UserError(mistakes)


def _check_files(request: ScanRequest) -> None:
    """Raises where a file cannot be written."""
    for path, suffixes, setting in (
        (request.output, TRACK_SUFFIXES, "--output"),
        (request.peaks, PEAK_SUFFIXES, "--peaks"),
    ):
        if path is None:
            continue
        check_output(
            path, source=request.genome, overwrite=request.overwrite, suffixes=suffixes, setting=setting
        )
    if request.peaks is not None and request.peaks.absolute() == request.output.absolute():
        raise UserError(Mistake("--peaks", request.peaks, "is the output, too", "name another file"))


def _open(request: ScanRequest) -> Genome:
    return Genome(request.genome, cache=default_cache())


def _tiles(request: ScanRequest, genome: Genome) -> Tiles:
    """The tiles that are scanned.

    Raises:
        UserError: where the genome lacks them, or nothing says how long their windows are.
    """
    if request.regions is not None:
        spans = spans_of_regions(request.regions, genome, step=request.step)
    else:
        spans = spans_of_contigs(genome, request.contigs, step=request.step)
    window = request.window or trained_window(request.adapter)
    return Tiles(genome, spans, step=request.step, window=window, strand=request.strand, max_n=request.max_n)


def _finish(
    request: ScanRequest,
    tiles: Tiles,
    target: Target,
    output: PredictionFile,
    predictor: Predictor,
    done: FinishedParts,
) -> None:
    """Tells of gaps and truncated windows, and writes the peaks, before the parts become the track.

    Raises:
        UserError: on every process, where no tile has a value.
    """
    warn_of_truncated(done.truncated, predictor, advice="; give a smaller --window")
    with agreement.errors_raised_on_all(predictor.env):
        if not predictor.env.is_main:
            return
        _tell_gaps(request, tiles, output)
        if request.peaks is None:
            return
        threshold = target.threshold if request.threshold is None else request.threshold
        assert threshold is not None, "what has no threshold of its own was given one"
        found = find_peaks(read_parts(output.parts), threshold=threshold)
        counts: list[int] = []
        atomic_write(request.peaks, lambda aside: counts.append(write_peaks(aside, found, target)))
        text = f"{counts[0]:,} peaks with a {target} above {threshold:g}: {request.peaks}"
        logs.results.print(text, highlight=False, soft_wrap=True)


def _tell_gaps(request: ScanRequest, tiles: Tiles, output: PredictionFile) -> None:
    """Logs how much of the track has no value, and of which contigs nothing has.

    Raises:
        UserError: where that is all of it.
    """
    bases, valued = 0, set[str]()
    for table in read_parts(output.parts):
        bases += pc.sum(pc.subtract(table["end"], table["start"])).as_py() or 0
        valued.update(pc.unique(table["contig"]).to_pylist())
    share = f"more than {request.max_n:.0%} N, with what is beyond the ends of their contigs"
    if not valued:
        rule = f"has no window of {tiles.window:,} bases without {share}"
        fix = "give a smaller --window or a larger --max-n"
        raise UserError(Mistake("--genome", request.genome, rule, fix))
    total = tiles.bases(tiles.count)
    if bases < total:
        lost = [name for name in tiles.contigs if name not in valued]
        without = f"; nothing is left of {len(lost)} contigs, e.g. {lost[0]}" if lost else ""
        logger.info(
            "gaps: %s of %s bases have no value, since their windows have %s%s",
            *(f"{total - bases:,}", f"{total:,}", share, without),
        )
