"""Labels, and the splits made of labels and cached features."""
