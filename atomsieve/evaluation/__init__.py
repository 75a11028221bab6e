"""Predictions compared with labels: errors, fits of calibration, domain and mixture, plots and a page."""
