"""The page of a large image: regions of slides, the server on this machine, what it serves."""
