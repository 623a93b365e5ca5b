def load_imagenet(*a): raise NotImplementedError
