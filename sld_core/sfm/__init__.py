"""Structure from motion: camera poses and points from images, or points with given poses."""
