"""What the groups of a job tell each other: a log in the job's store, which all read in the same order.

Groups that train runs of their own have no collective between them (`process_group.divided`).
"""

import json
from datetime import timedelta
from typing import Any

from torch.distributed.distributed_c10d import PrefixStore

from lingo_ds.distributed.process_group import own_connection

PATIENCE = timedelta(seconds=20)
"""Longest time for which the store may not answer; `watchdog` names the process that is lost."""


class JobLog:
    """One process's view of the log: it appends to it, and reads what is new to this process."""

    def __init__(self) -> None:
        """Opens the log; the process must be in the job's process group, and may leave it then."""
        self._store = PrefixStore("job log", own_connection(PATIENCE))
        self._read = 0

    def append(self, entry: Any) -> None:
        """Appends JSON."""
        place = self._store.add("entries", 1) - 1
        self._store.set(str(place), json.dumps(entry))

    def read(self) -> list[Any]:
        """The entries that this process has not read yet, its own ones too; in the order of the log."""
        end = self._store.add("entries", 0)
        keys = [str(place) for place in range(self._read, end)]
        self._read = end
        return [json.loads(text) for text in self._store.multi_get(keys)] if keys else []
