"""The networks: TNT, T2T-ViT, Twins, PyramidTNT, and how a model is made by name. Imports no room but the root's files."""
