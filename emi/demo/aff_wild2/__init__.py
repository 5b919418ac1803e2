"""Demo data with valence and arousal per frame, in the layout of Aff-Wild2's VA track."""
