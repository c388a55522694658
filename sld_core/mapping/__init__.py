"""Images of a place -> a labelled scene dataset: the stages of `sld map`."""
