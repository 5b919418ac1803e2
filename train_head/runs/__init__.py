"""The folder of a run: make one, resume one, load one."""
