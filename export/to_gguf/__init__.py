"""Writes model.gguf for llama.cpp, and reads such a file as a checkpoint."""
