"""Logistic normalization of anomaly scores: a method for anomnorm."""
