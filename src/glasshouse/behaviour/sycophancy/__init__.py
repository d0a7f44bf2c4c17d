"""Sycophancy."""
