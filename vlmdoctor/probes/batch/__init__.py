"""What is what in a batch: token ids, labels, masks, images, and its rows."""
