#!/usr/bin/env bash
# The tables of docs/augmentation.md, from the folder of the data sets; start it again after an interruption.
# usage: bash ablations/augmentation/run.sh DATA      (from the repository's root; DATA holds nuclei, coco_mini, imagenet_samples)
# Some rows alone, several runs at a time: the line, by hand, with --rows and --jobs.
set -euo pipefail
data=$1
out=runs/augmentation
grids=ablations/augmentation

[ -d $out/data/coco_mini ] || { rm -rf $out/data; python $grids/prepare.py "$data" $out/data; }
python tools/ablate.py $grids/nuclei.yaml --output-dir $out/nuclei
python tools/ablate.py $grids/coco_mini.yaml --output-dir $out/coco_mini
python $grids/write_page.py $out
