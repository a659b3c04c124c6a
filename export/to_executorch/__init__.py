"""Writes model.pte for ExecuTorch with XNNPACK."""
