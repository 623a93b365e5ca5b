"""From a data set to batches: augmentation, and the tf.data pipeline."""
