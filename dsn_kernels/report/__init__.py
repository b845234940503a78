"""Measurements as figures and as a page."""
