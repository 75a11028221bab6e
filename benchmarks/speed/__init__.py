"""Programs that measure time and memory; those beside this folder measure how good models and choices are."""
