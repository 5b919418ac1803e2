"""Demo data: synthetic speech with made-up intensities, in the layout of Hume-Vidmimic2."""
