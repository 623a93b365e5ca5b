"""The pixel normalizations that published ImageNet weights expect: (mean, deviation), RGB in 0..255."""

TORCHVISION = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
EFFICIENTNET_LITE = ((127.0, 127.0, 127.0), (128.0, 128.0, 128.0))
CAFFE = ((123.68, 116.779, 103.939), (1.0, 1.0, 1.0))
