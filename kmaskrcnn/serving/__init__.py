"""A server for exported models on LitServe: TensorFlow Serving's REST body, and a page to try it."""
