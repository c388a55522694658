"""Every setting once, with its unit, its default and its range."""
