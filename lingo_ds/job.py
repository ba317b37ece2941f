"""What surrounds every verb: the process group, the watch over it, and a full disk told in words."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lingo_ds import distributed, liveness, logs
from lingo_ds.config import Section
from lingo_ds.distributed import DistEnv
from lingo_ds.files import in_words
from lingo_ds.preflight import require_alike


@contextmanager
def job(config: Section, env: DistEnv, *, output: Path) -> Iterator[None]:
    """The process group around a verb, with one config on all processes.

    Args:
        config: the same on all processes, or they end here.
        env: place of this process.
        output: what the verb writes to.

    Raises:
        UserError: where hosts or configs differ, or nothing more can be written.
    """
    logs.quieten_libraries()
    if env.world_size > 1:
        distributed.start(env)
    try:
        with liveness.watching(env), in_words(output):
            require_alike(env)
            distributed.require_equal(config.to_yaml(), "config", env)
            yield
    finally:
        distributed.stop()
