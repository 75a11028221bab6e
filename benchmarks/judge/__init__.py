"""Parts of benchmarks/accuracy.py: scores, trainings, timings, tables and the figure."""
