"""Any long job: its processes and launcher, signals, child processes, locks and output files."""
