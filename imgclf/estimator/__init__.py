"""`Classifier`, and the stages of its fit in the order in which they happen."""
