"""Equivariant building blocks shared by the three models."""
