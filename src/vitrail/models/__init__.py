"""The networks: TNT, T2T-ViT and Twins, and how a model is made by name. Imports no other room but the root's files."""
