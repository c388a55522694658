"""Lenses, and pixels as cameras and files have them."""
