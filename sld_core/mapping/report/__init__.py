"""The HTML page about a map, and its pictures."""
