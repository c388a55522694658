"""`sld bench depth`: methods of depth completion side by side."""
