#!/usr/bin/env bash
# Trains under Open MPI: launchers/mpi.sh PROCESSES --config FILE [a.b=value]; more hosts: MPIRUN_ARGS="--hostfile hosts".
# Needs Open MPI (Debian: openmpi-bin) and mpi4py (pip install lingo_ds[mpi]).
set -euo pipefail
processes=${1:?how many processes}
shift
here=$(dirname "${BASH_SOURCE[0]}")
read -ra more <<<"${MPIRUN_ARGS:-}"
exec mpirun -np "$processes" --bind-to none "${more[@]}" "${PYTHON:-python}" "$here/train.py" "$@"
