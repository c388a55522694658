"""`sld bench`: speed and accuracy, measured side by side in one run."""
