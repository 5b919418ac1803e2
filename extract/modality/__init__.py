"""What backbones take, and how files become it: see `registry`."""
