"""imgclf."""
