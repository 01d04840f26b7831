"""Stages on Ray, the command line and the recipes. The only package that imports ray."""
