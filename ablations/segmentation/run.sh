#!/usr/bin/env bash
# mIoU from random weights against FCMAE on three data sets; start it again after an interruption.
# usage: bash ablations/segmentation/run.sh DATA      (from the repository's root; DATA holds nuclei and coco_mini)
# Then ablations/reproduction/write_page.py puts the figures into docs/segmentation.md, as it says there.
set -euo pipefail
data=$1
out=runs/segmentation_pairs
grids=ablations/segmentation

[ -d $out/data ] || python $grids/prepare.py "$data" $out/data
for name in nuclei scenes coco_mini; do
    python tools/ablate.py $grids/pretraining.yaml --rows $name --output-dir $out/pretraining
    python tools/ablate.py $grids/$name.yaml --output-dir $out/$name
done
