"""Whether a model uses its images, on a loader of one's own: with the right, shuffled and blank images."""
