"""What a run did: curves, groups, tokens; as one HTML file (`rlad report`) and in the terminal (`rlad show`)."""
