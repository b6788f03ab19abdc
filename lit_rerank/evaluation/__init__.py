"""The commands of `evaluate.py`, one a file. Their signatures are the commands' options."""
