"""Differentially private federated learning for medical images, on TFF."""
