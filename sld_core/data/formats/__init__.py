"""Scene datasets and reconstructions on disk, in the layouts of Indoor-6, 7-Scenes and COLMAP."""
