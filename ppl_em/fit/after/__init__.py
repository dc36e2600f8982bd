"""What can be asked of a finished fit: one file per question."""
