"""From labelled structures to batches: catalogue, outliers, references, split, label sizes, sampling, storage."""
