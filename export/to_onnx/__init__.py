"""Writes model.onnx for onnxruntime and onnxruntime-genai, and reads what is stored there."""
