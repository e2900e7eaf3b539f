"""Heads at work on a user's images: ``Predictor`` in predictor.py, what it gives in result.py, and the work on whole
folders and videos in files.py.
"""
