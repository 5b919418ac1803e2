"""The encoder of a Whisper checkpoint as a backbone."""
