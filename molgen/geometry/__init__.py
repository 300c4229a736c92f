"""Geometry without learning: superposition, bonds, atom mapping, handedness, embedding of distances."""
