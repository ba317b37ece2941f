#!/usr/bin/env bash
# Trains under Open MPI: launchers/mpi.sh PROCESSES --config FILE [section.field=value ..]
# For several hosts set MPIRUN_ARGS="--hostfile hosts".
# It needs Open MPI (Debian: openmpi-bin) and mpi4py (pip install lingo_ds[mpi]).
set -euo pipefail
processes=${1:?give the number of processes}
shift
here=$(dirname "${BASH_SOURCE[0]}")
read -ra more <<<"${MPIRUN_ARGS:-}"
exec mpirun -np "$processes" --bind-to none "${more[@]}" "${PYTHON:-python}" "$here/train.py" "$@"
