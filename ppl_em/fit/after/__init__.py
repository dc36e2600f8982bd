"""What is asked of a finished fit: loaded when it is asked for."""
