"""Train one head: settings, model inputs, the loop."""
