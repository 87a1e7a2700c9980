"""The data as text and pictures: who speaks, what is in the loss, what the images show."""
