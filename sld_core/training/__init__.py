"""Recipes: buffers, heads, and backbones of many scenes."""
