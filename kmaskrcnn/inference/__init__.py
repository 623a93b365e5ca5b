"""Running a model on images: files, tiles of large images, test-time augmentation, video."""
