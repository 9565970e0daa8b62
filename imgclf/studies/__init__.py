"""Whatever trains or measures more than once."""
