"""Features → a label or a depth at every pixel: heads and the losses that train them."""
