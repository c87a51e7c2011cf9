"""The networks: TNT, T2T-ViT, Twins and PyramidTNT, and how a model is made by name. Imports no other room but the root's files."""
