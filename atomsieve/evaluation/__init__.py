"""Predictions beside labels: errors, calibration, domain and mixture fitted on them, plots and a page."""
