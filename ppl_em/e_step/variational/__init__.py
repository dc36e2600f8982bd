"""Mean-field and other guides, and importance weights on top of them."""
