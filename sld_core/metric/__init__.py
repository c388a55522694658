"""The scale and the upward direction of a map."""
