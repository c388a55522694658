"""Pose errors, their summary, and the report that shows them."""
