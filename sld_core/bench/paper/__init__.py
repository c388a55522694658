"""`sld bench paper`: the paper's tables and figures, measured anew."""
