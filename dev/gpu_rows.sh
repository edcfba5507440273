#!/usr/bin/env bash
# Every row of docs/performance.md that needs a GPU, in at most 8 minutes on one card:
#   bash dev/gpu_rows.sh FOLDER [PHOTOGRAPHS]
# Writes FOLDER/*.txt, a table each with card and versions in its first line. Each part has a time of
# its own, so that one that fails or takes too long costs none of the others. Tests come first: a
# table of kernels that are wrong is worth nothing.
set -u
out=${1:?usage: bash dev/gpu_rows.sh FOLDER [PHOTOGRAPHS]}
photographs=${2:+--data $2}
mkdir -p "$out"
part() {
    local name=$1 seconds=$2
    shift 2
    timeout "$seconds" "$@" >"$out/$name.txt" 2>"$out/$name.log" || echo "$name: ended with $?"
}
run="python tools/benchmark.py"
part tests 90 python -m pytest -q -x -p no:cacheprovider -n 4 tests/test_backbones_triton_mlp.py tests/test_fcmae_triton_kernels.py
part encoder 90 $run encoder --device cuda --sizes convnextv2_base --precision bf16 --batch 256 --rounds 10
part step 60 $run pretrain --device cuda --sizes convnextv2_atto convnextv2_tiny convnextv2_base --precision bf16 --batch 256 --rounds 5
part inference 120 $run inference --device cuda --compile --sizes convnextv2_atto convnextv2_base --precision bf16 --batch 64 --rounds 10
for size in atto tiny base; do
    part "data_$size" 40 $run data --device cuda --sizes "convnextv2_$size" --precision bf16 --batch 256 --workers 14 --rounds 20 $photographs
done
tail -n +1 "$out"/*.txt
