"""What a model is: built, saved, loaded and sampled through transformers, so that any of its architectures fits."""
