"""What was found in an image: predictions, masks at its size, drawing, files. No TensorFlow."""
