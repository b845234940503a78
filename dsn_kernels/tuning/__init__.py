"""Thresholds for a budget, and the backend for an operator: what is found by measuring."""
