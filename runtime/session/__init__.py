"""Bundles become logits: one protocol, an engine for each kind of model file."""
