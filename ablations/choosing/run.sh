#!/usr/bin/env bash
# Is labelling the chosen images better than labelling random ones? Start it again after an interruption.
# usage: bash ablations/choosing/run.sh DATA      (from the repository's root; DATA holds nuclei, coco_mini, imagenet_samples)
# Then ablations/reproduction/write_page.py puts the figures into docs/feature_analysis.md, as it says there.
# The tiles and the encoders are the reproduction's, made here where they are missing: 10 minutes of a core each.
set -euo pipefail
data=$1
of_tiles=runs/reproduction/data
out=runs/choosing
grids=ablations/reproduction/grids

[ -d $of_tiles ] || python ablations/reproduction/prepare.py "$data" $of_tiles
python tools/ablate.py $grids/pretraining.yaml --rows fcmae --output-dir runs/reproduction/pretraining

for name in nuclei coco_mini; do
    if [ $name = nuclei ]; then
        images=$of_tiles/tiles/images pool=$of_tiles/tiles/train.json test=$of_tiles/tiles/val.json
        config=ablations/reproduction/tiles.yaml
    else
        images=$data/coco_mini/images
        pool=$data/coco_mini/annotations/train.json test=$data/coco_mini/annotations/val.json
        config=quick/mask_rcnn_convnextv2_atto_fcmae_quick.yaml
    fi
    python ablations/choosing/choose_labels.py $name "$pool" "$images" $out/labels
    for count in 16 32 64; do
        rows=()
        for by in random k-centre typicality; do
            rows+=("rows.$by.detect.DATASETS.TRAIN=['json:$out/labels/${name}_${count}_${by}_seed_{seed}.json:$images']")
        done
        python tools/ablate.py ablations/choosing/choosing.yaml --output-dir $out/${name}_$count \
            --set "${rows[@]}" "detect.config-file=$config" "detect.DATASETS.TEST=['json:$test:$images']"
    done
done
