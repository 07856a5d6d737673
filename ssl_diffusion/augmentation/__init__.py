"""Synthetic variations of labelled patches, and whether a classifier gains by them."""
