"""From the bytes of an image file to the pixels a network reads: decoding, preprocessing, augmentation."""
