"""End-to-end training: media → backbone → the head of the cached mode, in one graph (`emi.finetune`)."""
