"""Models: locate, load, adapt, save.

Classes of transformers are named through the package where they are used: to import those of models takes a
second or two, which commands that load none need not wait for.
"""
