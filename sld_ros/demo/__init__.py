"""The demo: record a drive, teach the scene and localize in it, through the nodes."""
