#!/bin/bash
# Submits an archive in N shards, and the job that merges what they have done:
#
#   ./submit.sh cpu|gpu N MANIFEST MODEL DIR [FLAGS of microtome batch ...]
#
# Prints the numbers of both jobs. What Slurm should know besides (account, partition, time) goes into SBATCH_ACCOUNT, SBATCH_PARTITION,
# SBATCH_TIMELIMIT, which sbatch reads.
set -eu
if [ $# -lt 5 ] || { [ "$1" != cpu ] && [ "$1" != gpu ]; } || ! [ "$2" -gt 0 ] 2>/dev/null; then
    echo "usage: ${0##*/} cpu|gpu N MANIFEST MODEL DIR [FLAGS ...]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
kind=$1 shards=$2 dir=$5
shift 2
array=$(sbatch --parsable --array="0-$((shards - 1))" "$here/shard-$kind.sbatch" "$@")
merge=$(sbatch --parsable --dependency="afterany:$array" "$here/merge.sbatch" "$dir")
echo "array $array"
echo "merge $merge"
