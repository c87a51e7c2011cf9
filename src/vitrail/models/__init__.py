"""The networks: TNT, T2T-ViT, Twins, PyramidTNT, and how one is made by name. Imports no room but the root's files."""
