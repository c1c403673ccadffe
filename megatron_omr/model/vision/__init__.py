"""The vision towers: what they have in common, one file a family, and their work split over ranks."""
