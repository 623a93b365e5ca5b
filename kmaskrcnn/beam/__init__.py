"""Prediction over more images than one machine can do: a pipeline for Apache Beam, `kmaskrcnn batch`."""
