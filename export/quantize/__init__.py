"""Every tensor's codes are decided here, once; writers lay them out."""
