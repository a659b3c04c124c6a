"""The verbs that run a bundle, a file each."""
