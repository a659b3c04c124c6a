"""The HTTP server over one model."""
