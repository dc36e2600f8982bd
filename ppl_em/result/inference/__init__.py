"""Model choice and uncertainty: what users ask of a finished fit."""
