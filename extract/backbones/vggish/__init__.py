"""VGGish: 128 numbers for 0.96 s of sound."""
