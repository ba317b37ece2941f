"""`lingo-ds report`: the page of a run, or of a suite and its runs, anew from the files in the folder."""

import logging
from pathlib import Path

from lingo_ds.commands.suite_page import RESULTS, read_results, write_suite_page
from lingo_ds.monitor.progress import ProgressBar
from lingo_ds.training.page.page import write_run_page
from lingo_ds.training.page.record import PAGE
from lingo_ds.utils import logging as logs
from lingo_ds.utils.errors import Mistake, UserError

logger = logging.getLogger(__name__)


def report(folder: Path) -> Path:
    """Writes `report.html` into the folder of a run or of a suite, of a suite also into those of its runs.

    Returns:
        The page's path.

    Raises:
        UserError: where the folder holds neither, a file in it is damaged, or the page cannot be written.
    """
    try:
        if (folder / RESULTS).is_file():
            return _report_suite(folder)
        return write_run_page(folder)
    except OSError as error:
        where, reason = error.filename or folder / PAGE, error.strerror or str(error)
        fix = "free some space, or make the folder writable"
        raise UserError(Mistake(str(where), reason, "cannot be written", fix)) from error


def _report_suite(folder: Path) -> Path:
    """The pages of all runs that have begun, then that of the suite, which links them."""
    runs = [run for run in read_results(folder).runs if (folder / run.folder / "config.yaml").is_file()]
    with ProgressBar(len(runs), "run", enabled=True, console=logs.console) as progress:
        for place, run in enumerate(runs, start=1):
            write_run_page(folder / run.folder)
            progress.update(place, run.folder)
    return write_suite_page(folder)
