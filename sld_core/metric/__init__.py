"""Metres, and what is up: the frame of a map."""
