"""The encoder and the decoder as ONNX files."""
