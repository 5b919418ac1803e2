"""Score predictions: metrics, intervals, comparisons, submission files."""
