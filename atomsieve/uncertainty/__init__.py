"""Calibration, domain and mixture of heads: plain data and their fits. No files, no predictor."""
