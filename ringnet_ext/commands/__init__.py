"""The commands: a file a verb. What they do is in the libraries beside them."""
