"""Results beside the truth: COCO's metrics and each error's kind."""
