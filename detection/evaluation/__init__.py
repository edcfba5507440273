"""Results compared with the labels: COCO's metrics, and errors by kind."""
