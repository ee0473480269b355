"""Trained models for use elsewhere: a web page, StableHLO, weights with a model card."""
