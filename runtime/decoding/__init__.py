"""From a session's logits to the pieces of an answer."""
