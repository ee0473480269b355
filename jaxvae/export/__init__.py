"""Trained models for use elsewhere: a web page, ONNX, StableHLO, weights with a model card."""
