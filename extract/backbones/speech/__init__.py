"""Speech encoders of the transformers library: wav2vec 2.0, HuBERT, WavLM."""
