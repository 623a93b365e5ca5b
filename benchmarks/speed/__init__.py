"""Speed and memory beside torchvision's, which runs in an environment of its own."""
