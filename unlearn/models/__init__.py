"""Models: locate, load, adapt, save.

Write `transformers.Name` here instead of importing `Name`: transformers imports its model classes at their
first use, which takes one to two seconds, and commands that load no model save them.
"""
