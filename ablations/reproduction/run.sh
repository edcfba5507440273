#!/usr/bin/env bash
# Everything that docs/reproduction.md shows, from the folder of the data sets; start it again after an interruption.
# usage: bash ablations/reproduction/run.sh DATA      (from the repository's root; DATA holds nuclei, coco_mini, imagenet_samples)
# A part of it alone: the line, by hand. Several runs at a time, more seeds: --jobs, --set, as tools/ablate.py --help shows.
set -euo pipefail
data=$1
out=runs/reproduction
grids=ablations/reproduction/grids
tiles=$out/data/tiles

[ -d $out/data ] || python ablations/reproduction/prepare.py "$data" $out/data
python tools/ablate.py $grids/pretraining.yaml --output-dir $out/pretraining

# collapse: by epoch, and of the finished encoders on 1,000 photographs
python tools/analyze_features.py --output-dir $out/diversity_by_epoch \
    --run fcmae=$out/pretraining/pretrain/fcmae_seed_0 --run no_grn=$out/pretraining/pretrain/no_grn_seed_0 \
    --run mask_token=$out/pretraining/pretrain/mask_token_seed_0
python tools/ablate.py $grids/supervised.yaml --output-dir $out/supervised
python tools/analyze_features.py --output-dir $out/diversity_supervised --run supervised=$out/supervised/classify/supervised_seed_0
python tools/analyze_features.py --output-dir $out/diversity --data "$data/imagenet_samples/train" --images 1000 --workers 0 \
    --model fcmae=$out/pretraining/pretrain/fcmae_seed_0/encoder.safetensors \
    --model no_grn=$out/pretraining/pretrain/no_grn_seed_0/encoder.safetensors \
    --model mask_token=$out/pretraining/pretrain/mask_token_seed_0/encoder.safetensors \
    --model supervised=$out/supervised/classify/supervised_seed_0/classifier.safetensors \
    --model untrained=random:convnextv2_atto

# learning rates of each arm, then the arms, each seed with the encoder that it pretrained
python tools/ablate.py $grids/classification_rates.yaml --output-dir $out/classification_rates
python tools/ablate.py $grids/classification.yaml --output-dir $out/classification
python tools/ablate.py $grids/rates.yaml --output-dir $out/rates
python tools/ablate.py $grids/detection.yaml --output-dir $out/detection_64
python tools/ablate.py $grids/detection.yaml --output-dir $out/detection_16 --rows scratch fcmae \
    --set "detect.DATASETS.TRAIN=['json:$tiles/train_16_seed_{seed}.json:$tiles/images']"
python tools/ablate.py $grids/detection.yaml --output-dir $out/detection_all --rows scratch fcmae \
    --set "detect.DATASETS.TRAIN=['json:$tiles/train.json:$tiles/images']"

# random weights at half of their rate
python tools/ablate.py $grids/detection.yaml --output-dir $out/detection_half_rate --rows scratch \
    --set "seeds=[0,1,2,3]" rows.scratch.detect.SOLVER.BASE_LR=2.5e-4

# the same fine-tunings of one pretraining of each arm
python tools/ablate.py $grids/one_pretraining.yaml --output-dir $out/one_pretraining

# 334 epochs: on a GPU, which seven runs can share: --jobs 7
long=$out/pretraining_long
python tools/ablate.py $grids/pretraining_long.yaml --output-dir $long
python tools/analyze_features.py --output-dir $out/diversity_long \
    --run fcmae=$long/pretrain/fcmae_seed_0 --run no_grn=$long/pretrain/no_grn_seed_0 --run mask_token=$long/pretrain/mask_token_seed_0 \
    --run tiny=$long/pretrain/tiny_seed_0 --run tiny_v1=$long/pretrain/tiny_v1_seed_0
python tools/ablate.py $grids/rates_long.yaml --output-dir $out/rates_long
python tools/ablate.py $grids/detection_long.yaml --output-dir $out/detection_long_64
python tools/ablate.py $grids/detection_long.yaml --output-dir $out/detection_long_all --rows scratch fcmae \
    --set "detect.DATASETS.TRAIN=['json:$tiles/train.json:$tiles/images']"

# what may suit small data, each against the default
python tools/ablate.py $grids/small_data.yaml --output-dir $out/small_data
