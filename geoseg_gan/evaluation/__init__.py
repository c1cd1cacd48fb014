"""Evaluation: how good generated pairs are, beside what real images reach."""
